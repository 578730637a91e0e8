"""The server by OpenAI's own client: models, conversations, texts, streams, and the shape of errors."""

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
from stemma.conversations import Turn, prompt_ids, writer
from stemma.rewrites import WeightOnly, apply

TALK = [{"role": "user", "content": "a leaf"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving.port(serving.server({"tiny": serving.decoder(), "plain": serving.decoder(None)})) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def alone(prompt: Any, **options: Any) -> Any:
    return stemma.generate(serving.decoder(), [prompt], **options)[0]


def test_models_with_what_stemma_knows(client: Any) -> None:
    first, second = client.models.list().data
    assert (first.id, second.id) == ("tiny", "plain") and client.models.retrieve("tiny").id == "tiny"
    facts = first.stemma
    assert facts["family"] == facts["lineage"][-1] == "llama" and facts["lineage"][0] == "transformer"
    assert facts["structure"] == "decoder" and facts["writes"] and facts["chats"] and not second.stemma["chats"]
    assert facts["context"] == 256
    assert facts["parameters"] == sum(p.numel() for p in serving.decoder().parameters())


def test_packed_matrices_count_as_what_they_stand_for() -> None:
    model = serving.decoder(context=64)
    plain = sum(p.numel() for p in model.parameters())
    packed = stemma.build("llama", layers=2, d_model=32, heads=4, d_ff=48, vocab=model.dims.vocab, context=64)
    apply(packed, (WeightOnly(("*.mlp.*",)),))
    assert sum(p.numel() for p in packed.parameters()) < plain
    assert serving.server({"packed": packed}).models.entries()[0]["stemma"]["parameters"] == plain


def test_a_conversation_has_the_answer_that_generate_gives(client: Any) -> None:
    model = serving.decoder()
    talk = [{"role": "system", "content": "short"}, {"role": "user", "content": "a <|im_end|> leaf"}]
    ids = prompt_ids(model.tokenizer, writer(model.tokenizer).prompt([Turn(m["role"], m["content"]) for m in talk]))
    own = alone(ids, max_new_tokens=12, temperature=0.8, top_k=20, seed=5, stop=["<|im_end|>"])
    asked = {"model": "tiny", "messages": talk, "max_tokens": 12, "temperature": 0.8, "seed": 5}
    got = client.chat.completions.create(**asked, extra_body={"top_k": 20})
    assert got.choices[0].message.content == own.text and got.choices[0].message.role == "assistant"
    assert got.usage.prompt_tokens == len(ids) and got.usage.completion_tokens == len(own.ids)
    assert got.choices[0].finish_reason == {"length": "length", "eos": "stop", "stop": "stop"}[own.reason]
    parts = [{"type": "text", "text": "a <|im_end|>"}, {"type": "text", "text": " leaf"}]
    asked |= {"messages": [talk[0], {"role": "user", "content": parts}], "max_completion_tokens": 12}
    asked.pop("max_tokens")
    assert client.chat.completions.create(**asked, extra_body={"top_k": 20}).choices[0].message.content == own.text


def test_a_stream_joins_to_the_whole_answer(client: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": TALK, "max_tokens": 40, "seed": 3}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    last = chunks.pop()
    assert last.choices == [] and last.usage == whole.usage and all(c.usage is None for c in chunks)
    deltas = [c.choices[0].delta for c in chunks]
    assert [d.role for d in deltas] == ["assistant", *[None] * (len(deltas) - 1)]
    assert "".join(d.content or "" for d in deltas) == whole.choices[0].message.content
    ends = [c.choices[0].finish_reason for c in chunks]
    assert ends[:-1] == [None] * (len(ends) - 1) and ends[-1] == whole.choices[0].finish_reason
    assert len({c.id for c in chunks}) == 1


def test_no_half_of_a_character_is_sent(client: Any) -> None:
    """The bias makes the model write the bytes of one character, which its tokenizer has as several tokens."""
    own = serving.tokenizer()
    text = "🍂🍁"
    ids = own.encode_continuation(text)
    assert len(ids) > len(text)
    pieces: list[str] = []
    from stemma.decoding import Detokenizer

    told = Detokenizer(serving.decoder(), own.encode("a"))
    for n in range(1, len(ids) + 1):
        pieces.append(told.add(ids[:n], n == len(ids))[0])
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)


def test_texts_with_their_prompts(client: Any) -> None:
    got = client.completions.create(
        model="plain", prompt=["a leaf", "a branch"], max_tokens=6, echo=True, temperature=0
    )
    own = [stemma.generate(serving.decoder(None), [p], max_new_tokens=6)[0].text for p in ("a leaf", "a branch")]
    assert [c.text for c in got.choices] == ["a leaf" + own[0], "a branch" + own[1]]
    assert [c.index for c in got.choices] == [0, 1]
    ids = serving.tokenizer(None).encode("a leaf")
    same = client.completions.create(model="plain", prompt=ids, max_tokens=6, temperature=0)
    assert same.choices[0].text == own[0] and same.usage.prompt_tokens == len(ids)
    none = client.completions.create(model="plain", prompt="a leaf", max_tokens=0, echo=True)
    assert none.choices[0].text == "a leaf" and none.usage.completion_tokens == 0
    streamed: dict[int, str] = {0: "", 1: ""}
    asked = {"model": "plain", "prompt": ["a leaf", "a branch"], "max_tokens": 6, "echo": True, "temperature": 0}
    for chunk in client.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert [streamed[i] for i in range(2)] == [c.text for c in got.choices]


def test_the_same_seed_gives_the_same_text_and_none_another(client: Any) -> None:
    def said(**more: Any) -> str:
        asked = {"model": "tiny", "messages": TALK, "max_tokens": 24, "temperature": 1.5, **more}
        return str(client.chat.completions.create(**asked).choices[0].message.content)

    assert said(seed=1) == said(seed=1) != said(seed=2)
    assert said() != said()
    assert said(top_p=5e-324) == said(temperature=0)  # float32 makes 0 of it: the likeliest token stays


def test_a_final_message_goes_on(client: Any) -> None:
    talk = [*TALK, {"role": "assistant", "content": "a br"}]
    got = client.chat.completions.create(
        model="tiny", messages=talk, max_tokens=6, temperature=0, extra_body={"continue_final_message": True}
    )
    own = serving.tokenizer()
    ids = prompt_ids(own, writer(own).prompt([Turn("user", "a leaf")]))
    assert got.choices[0].message.content == alone([*ids, *own.encode_continuation("a br")], max_new_tokens=6).text


def test_several_answers_are_those_that_generate_gives(client: Any) -> None:
    asked: dict[str, Any] = {"model": "plain", "prompt": "a leaf", "max_tokens": 8, "temperature": 1, "seed": 3, "n": 3}
    plain = serving.decoder(None)
    own = stemma.generate(plain, ["a leaf"], max_new_tokens=8, temperature=1.0, seed=3, n=3)[0].choices
    got = client.completions.create(**asked)
    assert [c.text for c in got.choices] == [c.text for c in own] and [c.index for c in got.choices] == [0, 1, 2]
    joined = ["", "", ""]
    for chunk in client.completions.create(**asked, stream=True):
        joined[chunk.choices[0].index] += chunk.choices[0].text
    assert joined == [c.text for c in own]
    best = client.completions.create(**asked | {"n": 1, "best_of": 3}).choices
    top = stemma.generate(plain, ["a leaf"], max_new_tokens=8, temperature=1.0, seed=3, best_of=3)[0]
    assert [c.text for c in best] == [top.text]
    talks = client.chat.completions.create(model="tiny", messages=TALK, max_tokens=8, seed=3, n=2, stream=True)
    ends: dict[int, list[Any]] = {0: [], 1: []}
    for chunk in talks:
        ends[chunk.choices[0].index].append((chunk.choices[0].delta.role, chunk.choices[0].finish_reason))
    for each in ends.values():
        assert each[0] == ("assistant", None) and each[-1][1] and not any(end for _, end in each[:-1])


def test_a_text_that_ends_tells_the_log_probability_of_its_end(client: Any) -> None:
    """Who scores given texts asks for one token more and leaves the last one out (the harness does)."""
    end, ids = serving.tokenizer(None).eos_id, serving.tokenizer(None).encode("a leaf")
    asked: dict[str, Any] = {"model": "plain", "prompt": "a leaf", "max_tokens": 3, "logit_bias": {str(end): 100}}
    got = client.completions.create(**asked, logprobs=1, echo=True).choices[0]
    assert got.finish_reason == "stop" and got.text == "a leaf"
    assert len(got.logprobs.token_logprobs) == len(ids) + 1 and got.logprobs.tokens[-1] == "</s>"


def test_log_probabilities(client: Any) -> None:
    own = stemma.generate(serving.decoder(None), ["a leaf"], max_new_tokens=5, logprobs=3, ignore_eos=True)[0]
    asked: dict[str, Any] = {"model": "plain", "prompt": "a leaf", "max_tokens": 5, "temperature": 0, "logprobs": 3}
    asked["extra_body"] = {"ignore_eos": True}
    got = client.completions.create(**asked).choices[0].logprobs
    assert got.token_logprobs == pytest.approx(own.logprobs, abs=1e-5) and len(got.tokens) == 5
    assert [sorted(row.values())[-1] for row in got.top_logprobs] == pytest.approx(
        [row[0][1] for row in own.top], abs=1e-5
    )
    whole = client.completions.create(**asked, echo=True).choices[0].logprobs
    ids = serving.tokenizer(None).encode("a leaf")
    assert whole.token_logprobs[len(ids) :] == got.token_logprobs and whole.token_logprobs[0] is None
    assert whole.top_logprobs[0] is None and "".join(whole.tokens[: len(ids)]).removeprefix("<s>") == "a leaf"
    assert whole.text_offset[0] == 0 and whole.text_offset[-1] == sum(map(len, whole.tokens[:-1]))
    with torch.no_grad():
        logits = serving.decoder(None)(torch.tensor([ids])).logits[0].log_softmax(-1)
    right = [float(logits[i, token]) for i, token in enumerate(ids[1:])]
    assert whole.token_logprobs[1 : len(ids)] == pytest.approx(right, abs=1e-4)

    chat: dict[str, Any] = {
        "model": "tiny",
        "messages": TALK,
        "max_tokens": 5,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    told = client.chat.completions.create(**chat).choices[0].logprobs.content
    assert all(len(one.top_logprobs) == 2 and one.top_logprobs[0].logprob == one.logprob for one in told)
    assert bytes(b for one in told for b in one.bytes or ()).decode("utf-8", "replace")
    joined = [
        one
        for c in client.chat.completions.create(**chat, stream=True)
        if c.choices[0].logprobs
        for one in c.choices[0].logprobs.content
    ]
    assert joined == told
    assert client.chat.completions.create(model="tiny", messages=TALK, max_tokens=1).choices[0].logprobs is None


def test_penalties_and_biases_have_their_effect(client: Any) -> None:
    own = serving.tokenizer()
    token = own.encode("7", add_special=False)[-1]
    asked: dict[str, Any] = {"model": "tiny", "messages": TALK, "max_tokens": 6, "temperature": 0}
    forced = client.chat.completions.create(**asked, logit_bias={str(token): 100})
    assert forced.choices[0].message.content == own.decode([token] * 6)
    varied = client.chat.completions.create(
        **asked, logit_bias={str(token): 3}, presence_penalty=2, frequency_penalty=2
    )
    assert varied.choices[0].message.content != forced.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="none of this model's"):
        client.chat.completions.create(**asked, logit_bias={"99999": 1})


def test_forms(client: Any) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["n"],
        "additionalProperties": False,
    }
    asked: dict[str, Any] = {"model": "tiny", "messages": TALK, "max_tokens": 120, "seed": 1}
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    got = client.chat.completions.create(**asked, response_format=given).choices[0]
    assert got.finish_reason == "stop" and 0 <= json.loads(got.message.content)["n"] <= 99
    for extra, right in (
        ({"guided_regex": "[ab]{3}c"}, lambda text: len(text) == 4 and text[3] == "c"),
        ({"guided_choice": ["oak", 'e"lm']}, lambda text: text in ("oak", 'e"lm')),
        ({"guided_choice": ["oak"] * 5000}, lambda text: text == "oak"),
        ({"guided_choice": [f"木 {i}" for i in range(5000)]}, lambda text: int(text.removeprefix("木 ")) < 5000),
        ({"guided_json": schema}, lambda text: "n" in json.loads(text)),
        ({"guided_grammar": 'start: "x" | "y"'}, lambda text: text in ("x", "y")),
    ):
        text = client.chat.completions.create(**asked, extra_body=extra).choices[0].message.content
        assert right(text), (extra, text)  # type: ignore[no-untyped-call]
    for extra, words in (
        ({"guided_regex": "("}, "regular expression"),
        ({"guided_json": {"type": "object", "x-guidance": "a"}}, "x-guidance .* must be an object"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "both ask for a form"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            client.chat.completions.create(**asked, extra_body=extra)


# ---------------------------------------------------------------- errors

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
GOOD = {"model": "tiny", "messages": TALK, "max_tokens": 2}
WRONG: list[tuple[str, str, Any, int, str | None, str]] = [
    ("unknown model", CHAT, GOOD | {"model": "tinny"}, 404, "model", "did you mean 'tiny'"),
    ("unknown adapter", CHAT, GOOD | {"model": "tiny:x"}, 404, "model", "tiny:x"),
    ("no model", CHAT, {"messages": TALK}, 400, "model", "missing"),
    ("unknown field", CHAT, GOOD | {"reasoning_effort": "low"}, 400, "reasoning_effort", "no field"),
    ("unknown inner field", CHAT, GOOD | {"messages": [TALK[0] | {"mood": 1}]}, 400, "messages[0].mood", "no field"),
    ("wrong type", CHAT, GOOD | {"temperature": "hot"}, 400, "temperature", "'hot'"),
    ("wrong number", CHAT, GOOD | {"max_tokens": 1.5}, 400, "max_tokens", "integer"),
    ("out of range", CHAT, GOOD | {"top_p": 2}, 400, "top_p", "less than or equal to 1"),
    ("true is no number", CHAT, GOOD | {"max_tokens": True}, 400, "max_tokens", "integer"),
    ("no messages", CHAT, GOOD | {"messages": []}, 400, "messages", "at least 1"),
    ("unknown role", CHAT, GOOD | {"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0]", "wizard"),
    ("a picture", CHAT, GOOD | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content[0].type", "'text'"),
    ("no user", CHAT, GOOD | {"messages": [{"role": "system", "content": "x"}]}, 400, "messages", "nothing"),
    ("long prompt", CHAT, GOOD | {"messages": [{"role": "user", "content": "leaf " * 900}]}, 400, "messages", "context length is 256"),
    ("long answer", CHAT, GOOD | {"max_tokens": 256}, 400, "messages", "256 new ones"),
    ("no template", CHAT, GOOD | {"model": "plain"}, 400, "model", "no chat template"),
    ("empty stop", CHAT, GOOD | {"stop": [""]}, 400, "stop[0]", "at least 1"),
    ("empty prompt", TEXT, {"model": "tiny", "prompt": []}, 400, "prompt", "at least 1"),
    ("no prompt", TEXT, {"model": "tiny"}, 400, "prompt", "missing"),
    ("long text", TEXT, {"model": "tiny", "prompt": "leaf " * 900}, 400, "prompt", "context length is 256"),
    ("unknown token", TEXT, {"model": "tiny", "prompt": [5, 999]}, 400, "prompt", "token 999"),
    ("no infilling", TEXT, {"model": "tiny", "prompt": "a", "suffix": "b"}, 400, "suffix", "fill in the middle"),
    ("an unknown token back", "/detokenize", {"model": "tiny", "tokens": [5, 999]}, 400, "tokens", "token 999"),
    ("too many stops", TEXT, {"model": "tiny", "prompt": "a", "stop": ["x"] * 17}, 400, "stop", "at most 16 items, not 17"),
    ("best_of and a stream", TEXT, {"model": "tiny", "prompt": "a", "best_of": 2, "stream": True}, 400, "best_of", "stream"),
    ("too many answers", CHAT, GOOD | {"n": 33}, 400, "n", "n=33"),
    ("top_logprobs alone", CHAT, GOOD | {"top_logprobs": 2}, 400, "top_logprobs", "logprobs: true"),
    ("a list", CHAT, [1], 400, None, "JSON object"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG]
)
def test_wrong_requests(url: str, path: str, body: Any, status: int, param: str | None, words: str) -> None:
    got = httpx.post(url + path, json=body)
    error = got.json()["error"]
    assert got.status_code == status and error["param"] == param and words in error["message"], error
    assert error["type"] == {400: "invalid_request_error", 404: "not_found_error"}[status]
    assert {*got.json()} == {"error"} and {*error} == {"message", "type", "param", "code"}


DEEP = b'{"model": "tiny", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
RAW: list[tuple[str, bytes, int, str]] = [
    ("no JSON", b"{", 400, "not JSON"),
    ("nothing", b"", 400, "not JSON"),
    ("bad UTF-8", b'{"model": "\xff"}', 400, "not UTF-8"),
    ("half a character", b'{"model": "tiny", "messages": "\\ud83c"}', 400, "half a character"),
    ("half in a name", b'{"\\ud83c": 1}', 400, "half a character"),
    ("nested deeply", DEEP, 400, "nested"),
    ("nested a little too deeply", b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", 400, "64 levels"),
    ("not a number", b'{"temperature": NaN}', 400, "NaN"),
    ("infinite", b'{"temperature": -Infinity}', 400, "-Infinity"),
    ("too large a number", b'{"temperature": 1e999}', 400, "1e999"),
    ("a number of many digits", b'{"seed": ' + b"9" * 5000 + b"}", 400, "not JSON"),
    ("a seed that does not fit", json.dumps(GOOD | {"seed": 2**70}).encode(), 400, "seed"),
    ("huge", b'{"model": "' + b"x" * 9_000_000 + b'"}', 413, "8,388,608 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "status", "words"), [r[1:] for r in RAW], ids=[r[0] for r in RAW])
def test_bodies_that_are_none(url: str, raw: bytes, status: int, words: str) -> None:
    got = httpx.post(url + CHAT, content=raw, headers={"Content-Type": "application/json"})
    assert got.status_code == status and words in got.json()["error"]["message"]


def test_other_methods_paths_and_types(url: str) -> None:
    for method, path, status in (
        ("GET", CHAT, 405), ("DELETE", "/v1/models", 405), ("GET", "/v1/nothing", 404), ("GET", "/v1/models/none", 404),
        ("POST", "/admin/models", 404), ("GET", "/v1/models/../../etc/passwd", 404),
    ):  # fmt: skip
        got = httpx.request(method, url + path)
        assert got.status_code == status and got.json()["error"]["message"], path
    assert httpx.post(url + CHAT, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert httpx.get(f"{url}/health").json() == {"status": "ok"} and httpx.get(f"{url}/ready").json() == {
        "status": "ready"
    }
    assert httpx.get(f"{url}/openapi.json").json()["openapi"] == "3.1.0"
    told = httpx.get(f"{url}/metrics").text
    assert "stemma_http_requests_total" in told and 'stemma_engine_written_total{model="tiny"}' in told
    assert 'stemma_first_part_seconds_count{route="/v1/chat/completions"}' in told
