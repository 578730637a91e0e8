"""Routes of models that write no text, or another's, embeddings, tokens, and the newer form of conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai")

import httpx
import torch

import serving
import stemma
from stemma.decoding import infill
from stemma.text import Specials, Tokenizer
from stemma.tuning.predicting import Tuned, predict, task_of

SIZES: dict[str, Any] = {"layers": 1, "d_model": 32, "heads": 4, "d_ff": 48, "context": 64}
BERT = Specials(unk="[UNK]", cls="[CLS]", sep="[SEP]", pad="[PAD]", mask="[MASK]")


def encoder(**more: Any) -> Any:
    tokenizer = Tokenizer.train("wordpiece", serving.TEXTS, 112, BERT, lowercase=True, alphabet=60)
    model = stemma.build("bert-base-uncased", vocab=tokenizer.vocab_size, **SIZES, **more)
    model.tokenizer = tokenizer
    return model


def writer() -> Any:
    tokenizer = Tokenizer.train("unigram", serving.TEXTS, 310, Specials(eos="</s>", unk="<unk>", pad="<pad>", extra=10))
    model = stemma.build("t5-small", vocab=tokenizer.vocab_size, **SIZES)
    model.tokenizer = tokenizer
    return model


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    classify = encoder(task="classify", labels=["no", "yes"])
    tag, answer = encoder(task="tag", labels=["O", "B-TREE", "I-TREE"]), encoder(task="answer")
    score = encoder(task="classify", labels=1, problem="regression")
    tuned = {
        name: (one, task_of(one))
        for name, one in (("classify", classify), ("tag", tag), ("answer", answer), ("score", score))
    }
    return {"bert": encoder(), "t5": writer(), "tiny": serving.decoder()} | tuned


@pytest.fixture(scope="module")
def url(models: dict[str, Any]) -> Iterator[str]:
    with serving.port(serving.server(models)) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(url: str, path: str, status: int = 200, **body: Any) -> Any:
    got = httpx.post(url + path, json=body, timeout=30)
    assert got.status_code == status, got.text
    return got.json()


def test_embeddings_in_both_forms(client: Any, models: dict[str, Any]) -> None:
    texts = ["a leaf", "a branch of a tree"]
    own = stemma.embed(models["bert"], texts)
    for form in ("float", "base64"):
        got = client.embeddings.create(model="bert", input=texts, encoding_format=form)
        vectors = torch.tensor([one.embedding if form == "float" else _floats(one.embedding) for one in got.data])
        assert torch.allclose(vectors, own, atol=1e-6) and [one.index for one in got.data] == [0, 1]
    plain = client.embeddings.create(model="bert", input="a leaf")  # the client asks for base64 and decodes
    assert torch.allclose(torch.tensor(plain.data[0].embedding), own[0], atol=1e-6)
    ids = models["bert"].tokenizer.encode("a leaf")
    assert client.embeddings.create(model="bert", input=ids).usage.prompt_tokens == len(ids)
    assert client.embeddings.create(model="bert", input=texts, dimensions=32).data[0].index == 0
    with pytest.raises(openai.BadRequestError, match="have 32 dimensions"):
        client.embeddings.create(model="bert", input=texts, dimensions=16)
    with pytest.raises(openai.BadRequestError, match="context length is 64"):
        client.embeddings.create(model="bert", input="leaf " * 100)
    assert len(client.embeddings.create(model="tiny", input="a leaf").data[0].embedding) == 32


def _floats(text: Any) -> list[float]:
    import base64
    import struct

    raw = base64.b64decode(text) if isinstance(text, str) else None
    return list(text) if raw is None else list(struct.unpack(f"<{len(raw) // 4}f", raw))


def test_tokens_and_back(url: str) -> None:
    own = serving.tokenizer()
    text = "<|im_start|>a leaf 木"
    assert ask(url, "/tokenize", model="tiny", content=text)["tokens"] == own.encode(text, add_special=False)
    special = ask(url, "/tokenize", model="tiny", content=text, parse_special=True, with_pieces=True)["tokens"]
    assert [p["id"] for p in special] == own.encode(text, add_special=False, allow_special=True)
    assert special[0]["piece"] == "<|im_start|>"
    raw = [p["piece"] if isinstance(p["piece"], list) else list(p["piece"].encode()) for p in special]
    assert bytes(b for piece in raw for b in piece).decode() == text
    assert ask(url, "/detokenize", model="tiny", tokens=own.encode("a leaf"))["content"] == "a leaf"


def test_masks_are_filled(url: str, models: dict[str, Any]) -> None:
    got, own = (
        ask(url, "/fill", model="bert", text="a [MASK] of a tree", top=3),
        stemma.fill(models["bert"], "a [MASK] of a tree", top=3),
    )
    assert got["text"] == own.text and [g["id"] for g in got["guesses"][0]] == [g.id for g in own.guesses[0]]
    spans = ask(url, "/fill", model="t5", text="a [MASK] of [MASK]", max_tokens=8)
    assert spans["spans"] == stemma.fill(models["t5"], "a [MASK] of [MASK]", max_new_tokens=8).spans
    assert ask(url, "/fill", text="a [MASK]")["model"] == "bert"  # the first that can
    assert "no [MASK]" in ask(url, "/fill", 400, model="bert", text="a leaf")["error"]["message"]
    assert ask(url, "/fill", 400, model="bert", text="[MASK] " * 100)["error"]["code"] == "context_length_exceeded"
    assert "does not do this" in ask(url, "/fill", 400, model="tiny", text="[MASK]")["error"]["message"]


def test_heads_answer(url: str, models: dict[str, Any]) -> None:
    row = {"question": "which tree", "context": "a leaf of a tree"}
    for name, texts in (("classify", ["a leaf", "a tree"]), ("tag", ["a leaf of a tree"]), ("answer", [row])):
        got = ask(url, f"/{name}", model=name, input=texts)
        own = predict(Tuned(*models[name]), texts)
        assert json.dumps(got["data"]) == json.dumps(own)
    assert ask(url, "/classify", input="a leaf")["data"][0]["label"] in ("no", "yes")


def test_documents_are_ranked(url: str, models: dict[str, Any]) -> None:
    texts = ["a leaf", "0123", "a branch"]
    got = ask(url, "/rerank", model="bert", query="a leaf", documents=texts, top_n=2, return_documents=True)["results"]
    assert got[0]["index"] == 0 and got[0]["document"] == {"text": "a leaf"} and len(got) == 2
    assert (
        got[0]["relevance_score"] == pytest.approx(1, abs=1e-5)
        and got[0]["relevance_score"] >= got[1]["relevance_score"]
    )


def test_texts_that_answer_texts(url: str, client: Any, models: dict[str, Any]) -> None:
    own = stemma.generate(models["t5"], ["a leaf"], max_new_tokens=6)[0]
    got = ask(url, "/write", model="t5", input=["a leaf", "a tree"], max_tokens=6)
    assert got["data"][0]["text"] == own.text and [one["index"] for one in got["data"]] == [0, 1]
    beams = stemma.generate(models["t5"], ["a leaf"], max_new_tokens=6, num_beams=3)[0]
    assert ask(url, "/write", model="t5", input="a leaf", max_tokens=6, num_beams=3)["data"][0]["text"] == beams.text
    assert (
        "beam search"
        in ask(url, "/write", 400, model="t5", input="a", num_beams=3, temperature=1.0)["error"]["message"]
    )
    text = client.completions.create(model="t5", prompt="a leaf", max_tokens=6, temperature=0).choices[0].text
    assert text == own.text
    with pytest.raises(openai.BadRequestError, match="writes no text"):
        client.completions.create(model="bert", prompt="a leaf")
    with pytest.raises(openai.BadRequestError, match="writes no text"):
        client.chat.completions.create(model="bert", messages=[{"role": "user", "content": "a"}])


def test_a_suffix_is_filled_in() -> None:
    own = serving.tokenizer(None, tokens=("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"))
    model = stemma.build("codellama-7b", vocab=own.vocab_size, **SIZES)
    model.tokenizer = own
    assert infill.infill_tokens(model) is not None
    with (
        serving.port(serving.server({"code": model})) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client,
    ):
        got = client.completions.create(model="code", prompt="def f(", suffix="return x", max_tokens=8, temperature=0)
    ids = infill.prompt(model, "def f(", "return x")
    assert got.choices[0].text == stemma.generate(model, [ids], max_new_tokens=8)[0].text
    assert got.usage.prompt_tokens == len(ids)


# ---------------------------------------------------------------- responses


def test_a_response_and_its_events(client: Any) -> None:
    chat = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "short"}, {"role": "user", "content": "a leaf"}],
        max_tokens=24,
        temperature=0,
    )
    asked: dict[str, Any] = {
        "model": "tiny",
        "input": "a leaf",
        "instructions": "short",
        "max_output_tokens": 24,
        "temperature": 0,
    }
    whole = client.responses.create(**asked)
    assert (
        whole.output_text == chat.choices[0].message.content
        and whole.usage.output_tokens == chat.usage.completion_tokens
    )
    assert whole.status == ("incomplete" if chat.choices[0].finish_reason == "length" else "completed")
    listed = [{"role": "user", "content": [{"type": "input_text", "text": "a leaf"}]}]
    assert client.responses.create(**asked | {"input": listed}).output_text == whole.output_text
    events = list(client.responses.create(**asked, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert [e.type for e in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type == f"response.{whole.status}" and events[-1].response.output_text == whole.output_text


def test_what_a_response_does_not_do(client: Any) -> None:
    for more, words in (
        ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"background": True}, "background"),
        ({"input": "leaf " * 900}, "context length"), ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError, match=words):
            client.responses.create(**{"model": "tiny", "input": "a leaf", "max_output_tokens": 4} | more)


def test_a_response_calls_a_tool() -> None:
    pytest.importorskip("llguidance")
    from test_serve_calls import QWEN

    tool = {
        "type": "function",
        "name": "stop",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    }
    with (
        serving.port(serving.server({"qwen": serving.decoder(QWEN, context=2048)})) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client,
    ):
        asked: dict[str, Any] = {
            "model": "qwen",
            "input": "a leaf",
            "tools": [tool],
            "tool_choice": "required",
            "parallel_tool_calls": False,
        }
        events = list(client.responses.create(**asked, stream=True))
        whole = events[-1].response
        (call,) = whole.output
        assert call.type == "function_call" and call.name == "stop" and json.loads(call.arguments) == {}
        assert "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta") == call.arguments
        more = [
            {"role": "user", "content": "a leaf"},
            call.model_dump(exclude_none=True),
            {"type": "function_call_output", "call_id": call.call_id, "output": "done"},
        ]
        assert (
            client.responses.create(
                **asked | {"input": more, "tool_choice": "none", "max_output_tokens": 4}
            ).usage.input_tokens
            > 10
        )


def test_adapters_by_name(tmp_path: Any) -> None:
    """Each answers as the base with that adapter alone does, also while others are asked."""
    from stemma.rewrites import LoRA, adapters, apply
    from stemma.serve.models import Wanted, load
    from stemma.serve.settings import Settings

    base = serving.decoder(None)
    base.save(str(tmp_path / "base"))
    right = {"": stemma.generate(base, ["a leaf"], max_new_tokens=8)[0].text}
    for seed, name in enumerate(("one", "two")):
        model = stemma.load(tmp_path / "base")
        apply(model, [LoRA(("*.attention.[qv]",), rank=2)])
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for part in adapters.layers(model):
                for p in (part.down.weight, part.up):
                    p.normal_(0, 0.5, generator=generator)
        right[name] = stemma.generate(model, ["a leaf"], max_new_tokens=8)[0].text
        model.save(str(tmp_path / name), layout="peft")
    assert len({*right.values()}) == 3
    own = Settings()
    served = load(Wanted(str(tmp_path / "base"), adapters={n: str(tmp_path / n) for n in ("one", "two")}), own)
    made = serving.server({"tiny": serving.decoder()})
    made.models.add(served)
    with serving.port(made) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        assert [m.id for m in client.models.list()] == ["tiny", "base", "base:one", "base:two"]
        assert client.models.retrieve("base:one").parent == "base"
        for name in ("one", "", "two", "one"):
            asked = f"base:{name}" if name else "base"
            text = client.completions.create(model=asked, prompt="a leaf", max_tokens=8, temperature=0).choices[0].text
            assert text == right[name], name
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="base:three", prompt="a")
        _adapters_have_vectors(client, tmp_path)


def _adapters_have_vectors(client: Any, folder: Any) -> None:
    """Of embeddings too, and while texts are written with another one."""
    right = {}
    for name in ("one", "two"):
        model = stemma.load(folder / name)
        right[name] = stemma.embed(model, ["a leaf"])[0]
    asked = {"model": "base:two", "prompt": "a", "max_tokens": 60, "logit_bias": {str(model.tokenizer.eos_id): -100}}
    streams = [client.completions.create(**asked, stream=True) for _ in range(3)]
    for stream in streams:
        next(stream)
    for name in ("one", "two", "one"):
        got = torch.tensor(client.embeddings.create(model=f"base:{name}", input="a leaf").data[0].embedding)
        assert torch.allclose(got, right[name], atol=1e-5), name
    assert all(list(stream) for stream in streams)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="base:three", input="a")
