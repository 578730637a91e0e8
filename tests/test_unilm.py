"""UniLM under its four masks: against an implementation of its own, against BERT of the reference with the same masks,
and decoding against the full pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import stemma
from oracle import jitter
from reference import unilm as reference
from running import check_rows
from stemma import disk
from stemma.decoding import beams
from stemma.decoding.session import Session
from stemma.decoding.sessions import begin
from stemma.errors import UsageError
from stemma.text import Specials, Tokenizer
from test_generate import LENGTHS, full_pass, last_logits
from tiny import batch, build, tiny

TOLERANCE = 1e-5
FIELDS = dict(vocab_size=89, hidden_size=36, num_hidden_layers=3, num_attention_heads=3, intermediate_size=50,
              max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, type_vocab_size=6)  # fmt: skip
CHOICES = ("full", "causal", "reverse", "prefix")


def files(folder: Path, **keys: Any) -> Any:
    """A UniLM checkpoint of jittered weights in `folder`; returns the reference's BERT that has them."""
    torch.manual_seed(0)
    theirs = hf.BertForPreTraining(hf.BertConfig(**FIELDS))
    jitter(theirs, 1)
    theirs.eval().save_pretrained(folder)
    raw = disk.read_json(folder / "config.json")
    raw |= {"model_type": "unilm", "architectures": ["BertForSeq2SeqDecoder"], "mask_token_id": 4, "eos_token_id": 3}
    disk.write_json(folder / "config.json", raw | keys)
    return theirs


def rows(lengths: list[int], seed: int = 5) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 89, (n,), generator=generator).tolist() for n in lengths]


def asked(attention: str, source: list[int]) -> dict[str, Any]:
    return {"attention": attention} | ({"prefix": torch.tensor(source)} if attention == "prefix" else {})


@pytest.mark.parametrize("attention", CHOICES)
def test_four_masks_equal_the_paper(attention: str, tmp_path: Path) -> None:
    """Texts of several lengths in one batch, each as it is alone."""
    files(tmp_path)
    model = stemma.load(tmp_path)
    assert model.family.name == "unilm"
    state = load_file(tmp_path / "model.safetensors")
    texts, sources = rows([17, 9, 13, 1]), [6, 9, 1, 1]
    ids = torch.zeros(4, 17, dtype=torch.int64)
    real = torch.zeros_like(ids)
    for i, text in enumerate(texts):
        ids[i, : len(text)], real[i, : len(text)] = torch.tensor(text), 1
    with torch.no_grad():
        out = model(ids, real, **asked(attention, sources))
        for i, text in enumerate(texts):
            want = reference.forward(state, text, 3, attention, sources[i])
            alone = model(torch.tensor([text]), **asked(attention, sources[i : i + 1]))
            for got, row in ((out, i), (alone, 0)):
                assert (got.hidden[row, : len(text)] - want["hidden"]).abs().max() <= TOLERANCE
                assert (got.logits[row, : len(text)] - want["logits"]).abs().max() <= TOLERANCE
                assert (got.seq_relationship_logits[row] - want["pair"]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("attention", CHOICES)
@pytest.mark.parametrize("left", [False, True])
def test_four_masks_equal_the_reference_library(attention: str, left: bool, tmp_path: Path) -> None:
    """BERT of the reference library takes a mask of any pattern; segments are given here."""
    theirs = files(tmp_path)
    ours = stemma.load(tmp_path)
    ids = torch.tensor(rows([15, 15, 15]))
    real = torch.ones(3, 15, dtype=torch.int64)
    real[1, 11:] = 0
    real = real.flip(1) if left else real
    segments = torch.randint(0, 6, ids.shape, generator=torch.Generator().manual_seed(2))
    sources = [5, 8, 12]
    seen = torch.stack([reference.mask(attention, 15, n) == 0 for n in sources]) & real[:, None].bool()
    seen |= torch.eye(15, dtype=torch.bool)  # padding on the left under a causal mask would see nothing
    with torch.no_grad():
        want = theirs(ids, seen[:, None], segments)
        got = ours(ids, real, segments, **asked(attention, sources))
    keep = real.bool()
    assert (got.logits[keep] - want.prediction_logits[keep]).abs().max() <= TOLERANCE


def test_saved_files_are_the_same(tmp_path: Path) -> None:
    files(tmp_path / "a", source_type_id=1, target_type_id=2)
    ours = stemma.load(tmp_path / "a")
    assert (ours.arch.mask.source, ours.arch.mask.target) == (1, 2)
    ours.save(tmp_path / "b")
    again = stemma.load(tmp_path / "b")
    assert again.arch == ours.arch and again.text == ours.text
    first, second = load_file(tmp_path / "a/model.safetensors"), load_file(tmp_path / "b/model.safetensors")
    assert set(first) == set(second) and all(torch.equal(v, second[k]) for k, v in first.items())
    config = disk.read_json(tmp_path / "b/config.json")
    assert config["model_type"] == "unilm" and config["type_vocab_size"] == 6


def test_old_files_of_the_authors_load(tmp_path: Path) -> None:
    """Weights in a .bin file, norms by their first names."""
    files(tmp_path / "a")
    state = load_file(tmp_path / "a/model.safetensors")
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in state.items()}  # fmt: skip
    old["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    (tmp_path / "b").mkdir()
    torch.save(old, tmp_path / "b/pytorch_model.bin")
    disk.write_json(tmp_path / "b/config.json", disk.read_json(tmp_path / "a/config.json"))
    a, b = (stemma.load(tmp_path / x) for x in "ab")
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# ---------------------------------------------------------------- decoding


class Whole(Session):
    """A session without a cache: everything again for every token."""

    def __init__(self, model: Any, prompts: list[list[int]], *_: Any) -> None:
        self.model, self.device = model, model.device
        self.texts = [(p, []) for p in prompts]
        self.ask()

    def ask(self) -> None:
        self.logits = torch.stack([last_logits(self.model, p, done) for p, done in self.texts])

    def step(self, tokens: torch.Tensor | Sequence[int]) -> torch.Tensor:
        self.texts = [(p, [*done, int(t)]) for (p, done), t in zip(self.texts, tokens, strict=True)]
        self.ask()
        return self.logits

    def keep(self, rows: Sequence[int]) -> None:
        self.texts = [self.texts[i] for i in rows]


@pytest.mark.parametrize("lengths", [[6], [5, 5], LENGTHS], ids=["one", "even", "ragged"])
def test_cache_equals_full_pass(lengths: list[int], tmp_path: Path) -> None:
    files(tmp_path)
    model = stemma.load(tmp_path)
    prompts = rows(lengths)
    got = stemma.generate(model, prompts, max_new_tokens=14, ignore_eos=True)
    assert [r.ids for r in got] == [full_pass(model, p, 14) for p in prompts]


@pytest.mark.parametrize("lengths", [[6], [5, 5], LENGTHS], ids=["one", "even", "ragged"])
def test_cached_logits_equal_full_logits(lengths: list[int], tmp_path: Path) -> None:
    files(tmp_path)
    model = stemma.load(tmp_path).double()
    prompts, texts = rows(lengths), rows([12] * len(lengths), seed=9)
    with torch.inference_mode():
        session = begin(model, prompts, 12)
        for step in range(12):
            for i, prompt in enumerate(prompts):
                full = last_logits(model, prompt, texts[i][:step])
                assert (session.logits[i] - full.float()).abs().max() < 1e-5
            session.step(torch.tensor([t[step] for t in texts]))


def test_rows_that_join_and_leave_read_as_alone(tmp_path: Path) -> None:
    files(tmp_path)
    model = stemma.load(tmp_path).double()
    check_rows(model, rows([4, 11, 1, 7, 2]), rows([16] * 5, seed=9), lambda p, new: last_logits(model, p, new))


@pytest.mark.parametrize("lengths", [[6], LENGTHS], ids=["one", "ragged"])
def test_beams_equal_a_search_over_full_passes(
    lengths: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which some end early: a third of the tokens end a text."""
    files(tmp_path, eos_token_id=list(range(60, 89)))
    model = stemma.load(tmp_path)
    prompts = rows(lengths)
    got = stemma.generate(model, prompts, max_new_tokens=9, num_beams=3)
    monkeypatch.setattr(beams, "begin", Whole)
    assert [r.ids for r in got] == [r.ids for r in stemma.generate(model, prompts, max_new_tokens=9, num_beams=3)]


def test_a_source_and_its_answer_must_fit(tmp_path: Path) -> None:
    files(tmp_path)
    model = stemma.load(tmp_path)
    with pytest.raises(UsageError, match="40 positions"):
        stemma.generate(model, [[5] * 35], max_new_tokens=6)
    assert len(stemma.generate(model, [[5] * 35], max_new_tokens=5, ignore_eos=True)[0].ids) == 5


def test_a_mask_token_that_nobody_names_is_asked_for(tmp_path: Path) -> None:
    files(tmp_path, mask_token_id=None)
    with pytest.raises(UsageError, match="mask token stands"):
        stemma.generate(stemma.load(tmp_path), [[5, 6]])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"attention": "sideways"}, "one of full, causal, reverse, prefix, not 'sideways'"),
        ({"attention": "prefix"}, "go together"),
        ({"attention": "causal", "prefix": torch.tensor([2])}, "go together"),
    ],
)
def test_choices_that_cannot_be_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build(tiny("unilm"))(torch.full((1, 5), 7), **given)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_models_that_have_no_choice_refuse_one(family: str) -> None:
    design = tiny(family)
    with pytest.raises(UsageError, match="is for a model with an open mask"):
        build(design)(**batch(design), attention="causal")


def test_segments_that_a_table_lacks_are_refused() -> None:
    with pytest.raises(UsageError, match=r"dims\.segments=2 must be at least 6"):
        build(tiny("unilm", **{"dims.segments": 2}))


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("attention", CHOICES)
def test_every_mask_is_one_graph(attention: str, backend: str) -> None:
    torch._dynamo.reset()
    design = tiny("unilm")
    model = build(design)
    given = {"input_ids": batch(design)["input_ids"], **asked(attention, [3, 9, 5])}
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert torch.allclose(compiled(**given).hidden, model(**given).hidden, atol=1e-5)


def test_a_text_is_a_source_and_its_answer_a_text_of_its_own() -> None:
    words = ["the king and the queen went to the house"] * 50
    specials = Specials(pad="[PAD]", unk="[UNK]", mask="[MASK]", cls="[CLS]", sep="[SEP]")
    tokenizer = Tokenizer.train("wordpiece", words, 300, specials)
    model = build(tiny("unilm", **{"dims.vocab": tokenizer.vocab_size, "text.eos_id": tokenizer.sep_id}))
    model.tokenizer = tokenizer
    got = stemma.generate(model, ["the king"], max_new_tokens=5, repetition_penalty=1.5)[0]
    want = stemma.generate(model, [tokenizer.encode("the king")], max_new_tokens=5, repetition_penalty=1.5)[0]
    assert got.ids == want.ids and got.text == tokenizer.decode(got.ids)
