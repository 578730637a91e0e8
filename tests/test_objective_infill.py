"""Infilling: where documents are cut, what is written, and that a model so trained fills the middle of a text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stemma
from stemma import families
from stemma.declare.family import INFILL_NAMES
from stemma.declare.objectives import CLM, Infill
from stemma.decoding import generation_config, infill
from stemma.errors import DataError, UsageError
from stemma.nn.model import IGNORED
from stemma.objectives import Setting, incompatible_reason, objective, tokens
from stemma.objectives.infill import Infilling
from stemma.text import Specials, Tokenizer
from stemma.train import pretrain, verify_resume
from test_objectives import each, network, same, take

CODE = [
    f"def {name}({a}, {b}):\n    if {a} > {b}:\n        return {a} {op} {b}\n    return {name}({b}, {a})\n"
    for name in ("add", "multiply", "größe", "swap")
    for a, b in (("left", "right"), ("x", "y"), ("alpha", "beta"))
    for op in ("+", "-", "**")
]
LLAMA = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")


@pytest.fixture(scope="session")
def known() -> dict[str, Tokenizer]:
    """A byte-level tokenizer with one special token, one of LLaMA's kind, and one of whole words."""
    return {
        "gpt2": Tokenizer.train(
            "bpe", CODE, 320, Specials(bos="<|endoftext|>", eos="<|endoftext|>", more=INFILL_NAMES)
        ),
        "codellama-7b": Tokenizer.train("spm-bpe", CODE, 340, Specials(bos="<s>", eos="</s>", unk="<unk>", more=LLAMA)),
        "gpt1": Tokenizer.train("gpt-bpe", CODE, 200, Specials(unk="<unk>", more=INFILL_NAMES)),
    }


class Texts:
    """A view in memory."""

    def __init__(self, texts: list[str], tokenizer: Tokenizer) -> None:
        self.texts = texts
        self.ids = [np.asarray(tokenizer.encode(t, add_special=False), dtype=np.int64) for t in texts]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> Any:
        return self.ids[i]

    def text(self, i: int) -> str:
        return self.texts[i]

    def closed(self, i: int) -> bool:
        return True

    def sentences(self, i: int) -> Any:
        return np.zeros(1, dtype=np.int64)


def make(
    tokenizer: Tokenizer, name: str, goal: Infill = Infill(), context: int = 128, mixed: bool = False, seed: int = 1
) -> Infilling:
    found = objective(goal, Setting(tokenizer, families.design(name).text, context, seed, mixed))
    assert isinstance(found, Infilling)
    return found


def parts(tokenizer: Tokenizer, name: str, ids: list[int]) -> tuple[str, list[int], list[int], list[int]] | None:
    """Of a rearranged document the order, prefix, middle and suffix; None of a plain one. In SPM the middle is with the
    prefix."""
    pre, suf, mid, end = (tokenizer.id(n) for n in families.design(name).text.infill or INFILL_NAMES)
    if pre not in ids:
        return None
    assert ids[-1] == end and [ids.count(m) for m in (pre, suf, mid, end)] == [1, 1, 1, 1]
    first, second, third = ids.index(pre), ids.index(suf), ids.index(mid)
    assert first == (0 if tokenizer.bos_id is None else 1) and first < second < third
    if second == first + 1:
        return "SPM", ids[third + 1 : -1], [], ids[second + 1 : third]
    return "PSM", ids[first + 1 : second], ids[third + 1 : -1], ids[second + 1 : third]


def rows(goal: Infilling, view: Texts, n: int) -> list[dict[str, Any]]:
    return [e for e, _ in take(goal, view, n)]


def pieces(example: dict[str, Any]) -> list[list[int]]:
    owner = example["documents"]
    return [example["input_ids"][owner == d].tolist() for d in range(int(owner.max()) + 1)]


# ---------------------------------------------------------------- documents


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.sampled_from(list("ab \n()=é☺x1")), min_size=1, max_size=60),
    st.sampled_from(["gpt2", "codellama-7b"]),
    st.sampled_from(["characters", "tokens"]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 10**6),
)
def test_a_text_can_be_rebuilt(
    known: dict[str, Tokenizer], text: str, name: str, cut: Any, swapped: float, seed: int
) -> None:
    tokenizer = known[name]
    view = Texts([text], tokenizer)
    goal = make(tokenizer, name, Infill(rate=1.0, swapped=swapped, cut=cut), seed=seed)
    written = goal.rearranged(view, 0, 0)
    assert written is not None
    found = parts(tokenizer, name, written.tolist())
    assert found is not None
    order, prefix, middle, suffix = found
    if cut == "tokens":
        assert prefix + middle + suffix == view[0].tolist()
        return
    rest = "".join(tokenizer.decode_continuation(part) for part in (middle, suffix))
    if order == "PSM" or swapped == 1:
        assert tokenizer.decode(prefix) + rest == text
    else:  # which a document without a prefix looks like, whose middle is written as a continuation
        assert text in (tokenizer.decode(prefix) + rest, tokenizer.decode_continuation(prefix) + rest)
    if swapped == 1:  # prefix and middle are tokenised as one
        at = len(text) - len(tokenizer.decode_continuation(suffix))
        assert prefix == tokenizer.encode(text[:at], add_special=False)


def test_continuations_have_no_space_in_front(known: dict[str, Tokenizer]) -> None:
    tokenizer = known["codellama-7b"]
    plain, goes_on = tokenizer.encode("left", add_special=False), tokenizer.encode_continuation("left")
    assert tokenizer.tokens(plain)[0].startswith("▁") and not tokenizer.tokens(goes_on)[0].startswith("▁")
    assert tokenizer.decode_continuation(goes_on) == "left" and tokenizer.encode_continuation("") == []
    assert tokenizer.decode_continuation(tokenizer.encode_continuation(" left")) == " left"
    for text in ("x", "☺", "é(", "\n    if"):
        for kind in ("gpt2", "codellama-7b"):
            assert known[kind].decode_continuation(known[kind].encode_continuation(text)) == text


@pytest.mark.parametrize("name", ["gpt2", "codellama-7b"])
def test_rates_and_cuts(known: dict[str, Tokenizer], name: str) -> None:
    """Nine in ten documents, half of them suffix first, cut at two places that are uniform over the characters."""
    tokenizer = known[name]
    assert families.design("codellama-7b").objective == Infill(rate=0.9, swapped=0.5)
    text = CODE[0]
    view = Texts([text] * 3000, tokenizer)
    goal = make(tokenizer, name)
    orders, cuts = [], []
    for d in range(3000):
        written = goal.rearranged(view, d, 0)
        found = None if written is None else parts(tokenizer, name, written.tolist())
        orders.append("none" if found is None else found[0])
        if found is not None and found[0] == "PSM":
            a = len(tokenizer.decode(found[1]))
            cuts += [a, a + len(tokenizer.decode_continuation(found[2]))]
    share = {kind: orders.count(kind) / 3000 for kind in ("none", "PSM", "SPM")}
    assert share == pytest.approx({"none": 0.1, "PSM": 0.45, "SPM": 0.45}, abs=0.03)
    found_share = np.histogram(cuts, 4, (0, len(text) + 1e-9))[0] / len(cuts)
    assert found_share == pytest.approx([0.25] * 4, abs=0.04)
    again = goal.rearranged(view, 5, 0), goal.rearranged(view, 5, 0), goal.rearranged(view, 5, 1)
    assert str(again[0]) == str(again[1]) != str(again[2])  # new cuts in every epoch


def test_golden_rows_at_a_fixed_seed(known: dict[str, Tokenizer]) -> None:
    digest = hashlib.sha256()
    for cut in ("characters", "tokens"):
        goal = make(known["gpt2"], "gpt2", Infill(cut=cut))  # type: ignore[arg-type]
        for example, cursor in take(goal, Texts(CODE, known["gpt2"]), 6):
            for key in sorted(example):
                digest.update(np.ascontiguousarray(example[key]).tobytes())
            digest.update(repr(cursor).encode())
    assert digest.hexdigest()[:12] == "e8af47e2ab6b"


# ---------------------------------------------------------------- rows

CASES = [(name, mixed) for name in ("gpt2", "codellama-7b", "gpt1") for mixed in (False, True)]


def of(known: dict[str, Tokenizer], name: str, mixed: bool = False, context: int = 128, seed: int = 1) -> Infilling:
    return make(known[name], name, Infill(cut="tokens" if name == "gpt1" else "characters"), context, mixed, seed)


@pytest.mark.parametrize(("name", "mixed"), CASES)
def test_a_stream_goes_on_from_any_cursor(known: dict[str, Tokenizer], name: str, mixed: bool) -> None:
    view = Texts(CODE[:9], known[name])
    found = take(of(known, name, mixed), view, 40)
    assert found[-1][1].slot >= 9
    for k in (0, 1, 7, 20, 33):
        for a, b in zip(take(of(known, name, mixed), view, 6, found[k][1]), found[k + 1 :], strict=False):
            assert same(a, b)


@pytest.mark.parametrize(("name", "mixed"), CASES)
def test_an_epoch_holds_every_document_once_and_predicts_all_of_it(
    known: dict[str, Tokenizer], name: str, mixed: bool
) -> None:
    tokenizer = known[name]
    view, goal = Texts(CODE, tokenizer), of(known, name, mixed, 150)
    examples = [e for e, _ in goal.examples(view, once=True)]
    kinds = [parts(tokenizer, name, p) for e in examples for p in pieces(e)]
    assert sum(k is not None for k in kinds) > 0.4 * len(CODE)  # documents that a row cuts stay as they are
    stream = [t for e in examples for t in e["input_ids"][e["documents"] >= 0]]
    targets = [t for e in examples for t in e["labels"][e["labels"] != IGNORED]]
    for e in examples:  # the label of a place is what stands next, or closes the document
        inside = np.flatnonzero((e["documents"][1:] == e["documents"][:-1]) & (e["documents"][1:] >= 0))
        assert (e["labels"][inside] == e["input_ids"][inside + 1]).all()
        if not mixed and not goal.shared:
            edges = np.flatnonzero((e["documents"][1:] != e["documents"][:-1]) & (e["documents"][:-1] >= 0))
            assert (e["labels"][edges] == IGNORED).all()
    count = sum(len(goal.straight(view, d)) for d in range(len(view)))
    assert len(stream) >= count  # marks come on top
    assert len(stream) - (0 if goal.shared else len(view)) <= len(targets) <= len(stream)


def test_only_documents_that_a_row_holds_whole_are_rearranged(known: dict[str, Tokenizer]) -> None:
    tokenizer = known["gpt2"]
    long = Texts([" ".join(CODE[:6])] * 3, tokenizer)
    goal = make(tokenizer, "gpt2", Infill(rate=1.0), 64)
    assert all(parts(tokenizer, "gpt2", p) is None for e in rows(goal, long, 12) for p in pieces(e))
    text = [t for e in rows(goal, long, 3) for t in e["input_ids"]]
    first = goal.straight(long, goal.order(long)[0][0]).tolist()
    assert text[: len(first)] == first[: len(text)]


def test_what_cannot_be_is_refused(known: dict[str, Tokenizer]) -> None:
    with pytest.raises(UsageError, match=r"objective[.]cut=tokens"):
        make(known["gpt1"], "gpt1")
    bare = Tokenizer.train("bpe", CODE, 300, Specials(bos="<|endoftext|>", eos="<|endoftext|>"))
    with pytest.raises(UsageError, match="<PRE>"):
        make(bare, "gpt2")
    assert "structure encoder" in (incompatible_reason(Infill(), families.design("bert").arch) or "")
    assert tokens(Infill(), families.design("codellama-7b").text) == LLAMA
    assert tokens(Infill(), families.design("codex-85m").text) == INFILL_NAMES and tokens(CLM(), bare_text()) == ()
    with pytest.raises(DataError):
        next(make(known["gpt2"], "gpt2").examples(Texts([], known["gpt2"])))


def bare_text() -> Any:
    return families.design("gpt2").text


# ---------------------------------------------------------------- losses


def wide(tokenizer: Tokenizer, name: str, context: int = 128) -> Any:
    from dataclasses import replace

    model = network("llama" if name.startswith("codellama") else name, context)
    from stemma.nn.model import Model

    return Model(model.arch, replace(model.dims, vocab=tokenizer.vocab_size)).initialise(3).eval()


@pytest.mark.parametrize(("name", "mixed"), CASES)
def test_losses_split_exactly(known: dict[str, Tokenizer], name: str, mixed: bool) -> None:
    view, goal, model = Texts(CODE, known[name]), of(known, name, mixed), wide(known[name], name)
    examples = rows(goal, view, 8)
    whole = goal.loss(model, goal.collate(examples))
    assert whole.counts == goal.counts(goal.collate(examples))
    split = [goal.loss(model, goal.collate(examples[i : i + 3])) for i in (0, 3, 6)]
    torch.testing.assert_close(sum(p.total(whole.counts) for p in split), whole.total(), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "codellama-7b"])
def test_a_document_is_deaf_to_its_neighbours(known: dict[str, Tokenizer], name: str) -> None:
    view, goal, model = Texts([t[:30] for t in CODE], known[name]), of(known, name), wide(known[name], name)
    batch = goal.collate(rows(goal, view, 2))
    assert int(batch["documents"].max()) >= 2
    wrong = {k: v.clone() for k, v in batch.items()}
    second = wrong["documents"] == 1
    wrong["input_ids"][second] = 10 + (wrong["input_ids"][second] + 1) % 100
    with torch.no_grad():
        right, moved = each(goal, model, batch), each(goal, model, wrong)
    owner = batch["documents"].flatten()
    owner = owner[batch["where"]] if "where" in batch else owner
    assert torch.equal(right[owner != 1], moved[owner != 1]) and not torch.equal(right[owner == 1], moved[owner == 1])


# ---------------------------------------------------------------- runs

SMALL = {
    "dims.d_model": 32,
    "dims.layers": 1,
    "dims.heads": 2,
    "dims.kv_heads": None,
    "dims.d_ff": 64,
    "dims.vocab": 320,
    "dims.context": 96,
    "recipe.batch": 384,
    "train.eval_tokens": 400,
    "train.threads": 1,
    "train.precision": "fp32",
}


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in CODE), "utf-8")
    return path


@pytest.mark.parametrize("name", ["codellama-7b", "gpt2", "codex-85m"])
@pytest.mark.filterwarnings("ignore:the text gives")
def test_a_run_from_text_to_a_model_that_fills(name: str, tmp_path: Path, lines: Path) -> None:
    changes = SMALL if name == "codellama-7b" else {**SMALL, "objective": "Infill()"}
    run = pretrain(name, data=str(lines), out=tmp_path / "run", budget="3 steps", overrides=changes, quiet=True)
    assert run.finished and verify_resume(run.directory, 4)["identical"]
    model = stemma.load(run.directory / "model")
    marks = infill.infill_tokens(model)
    assert marks is not None and marks.end in generation_config.eos_ids(model)
    asked = infill.prompt(model, "def add(", " + y\n")
    assert asked[-1] == marks.middle and asked.count(marks.prefix) == asked.count(marks.suffix) == 1
    filled = stemma.fill(model, "def add([MASK]) + y\n", max_new_tokens=4)
    assert filled.text == f"def add({filled.spans[0]}) + y\n"
    for wrong in ("def add", "[MASK] and [MASK]"):
        with pytest.raises(UsageError, match=r"one \[MASK\]"):
            stemma.fill(model, wrong)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the text gives")
def test_it_learns_to_fill_the_middle(tmp_path: Path) -> None:
    """Of texts that it knows by heart: what is missing, and where that ends."""
    path = tmp_path / "rows.jsonl"
    texts = ["one two three four five six seven", "red blue green black white grey pink", "a b c"] * 20
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    changes = {**SMALL, "dims.d_model": 64, "dims.layers": 2, "recipe.lr": 5e-3, "arch.dropout": "Dropout()"}
    run = pretrain("codellama-7b", data=str(path), out=tmp_path / "run", budget="250 steps", overrides=changes)
    words = texts[0].split()  # which this seed does not hold out
    holes = [" ".join([*words[:i], "[MASK]", *words[i + 1 :]]) for i in range(1, 6)]
    assert sum(stemma.fill(run.model, hole, max_new_tokens=12).text == texts[0] for hole in holes) >= 2


def test_its_text_is_predicted_below_the_unigram_model(lines: Path, tmp_path: Path) -> None:
    changes = {**SMALL, "recipe.lr": 1e-2, "train.eval_tokens": 2000}
    run = pretrain("codellama-7b", data=str(lines), out=tmp_path / "run", budget="60 steps", overrides=changes)
    assert run.summary["val"]["bits_per_byte"] < 0.8 * run.summary["baselines"]["unigram_bits_per_byte"]
