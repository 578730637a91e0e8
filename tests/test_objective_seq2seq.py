"""Objectives that make of a text inputs and a goal: what is lost, where it stands, who sees it, and that it is learnt."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

import stemma
from stemma import families, spec
from stemma.declare.objectives import (
    UL2,
    Corruption,
    Denoise,
    Denoiser,
    Denoisers,
    Deshuffle,
    Fragment,
    PrefixLM,
    Spans,
)
from stemma.errors import UsageError
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.objectives import Objective, Setting, incompatible_reason, objective
from stemma.objectives.denoise import spans
from stemma.objectives.rewriting import Rewriting
from test_objectives import PLAIN, VOCAB, Documents, Words, each, same, some, take
from test_train import SMALL, train

MODES = {"[NLU]": 5, "[NLG]": 6, "[S2S]": 7, "en_XX": 8}


class Named(Words):
    """With tokens that are looked for by name."""

    def __init__(self, **ids: int) -> None:
        super().__init__(**ids)
        self.special_ids |= set(MODES.values())

    def id(self, name: str) -> int | None:
        return MODES.get(name)


T5 = Named(eos=1, pad=0)
BART = Named(bos=1, cls=1, eos=2, sep=2, mask=3, pad=0)
BERT = Named(cls=1, sep=2, mask=3, pad=0, unk=4)
LLAMA = Named(bos=1, eos=2)
U_PALM = families.family("u-palm").objective
CASES: dict[str, tuple[Any, Any, str]] = {  # what is asked, of which tokenizer, of a network like which
    "spans alone": (Spans(), Named(eos=1), "u-palm-8b"),
    "prefix": (PrefixLM(), T5, "t5-lm-small"),
    "prefix alone": (PrefixLM(), LLAMA, "llama-7b"),
    "mask": (Corruption(style="mask"), T5, "t5-small"),
    "replace": (Corruption(), T5, "t5-small"),
    "replace alone": (Corruption(), Named(eos=1), "u-palm-8b"),
    "drop": (Corruption(style="drop"), T5, "t5-small"),
    "deshuffle": (Deshuffle(), T5, "t5-small"),
    "ul2": (Denoisers(), T5, "ul2-20b"),
    "u-palm": (U_PALM, Named(eos=1), "u-palm-8b"),
    "bart": (Denoise(), BART, "bart-base"),
    "noises": (Denoise(mask=0.1, delete=0.1, infill=0.2, permute=0.5, rotate=0.5, random=0.1), BART, "bart-base"),
    "mbart": (Denoise(infill=0.35, mean=3.5), BART, "mbart-large-cc25"),
    "mass": (Fragment(0.5, start=0.0, end=0.0, block=16), BERT, "mass-base"),
    "mass of sentences": (Fragment(), BERT, "mass-base"),
}


def make(case: str, mixed: bool = False, context: int = 64, seed: int = 1, goal: Any = None) -> Any:
    declared, tokenizer, name = CASES[case]
    design = families.design(name)
    start = {"t5": 0, "ul2": 0}.get(name.partition("-")[0], design.text.start_id if name[0] != "m" else 2)
    setting = Setting(
        tokenizer, replace(design.text, start_id=start), context, seed, mixed, structure=design.arch.structure
    )
    return objective(goal or declared, setting)


def network(case: str, context: int = 64) -> Model:
    design = families.design(CASES[case][2])
    dims = replace(design.dims, d_model=32, layers=2, heads=4, head_dim=None, d_ff=64, vocab=VOCAB, context=context)
    arch = spec.edit(design.arch, {"dropout": type(design.arch.dropout)()})
    return Model(arch, replace(dims, kv_heads=1 if dims.kv_heads else None)).initialise(3).eval()


def texts(goal: Rewriting, example: dict[str, Any]) -> list[tuple[list[int], list[int], list[int], list[int]]]:
    """Inputs, goal, what the decoder reads and where it stands, of each text of a row."""
    found = []
    for d in range(int(example["documents"].max()) + 1):
        mine = example["documents"] == d
        ids, labels = example["input_ids"], example["labels"]
        if goal.single:
            at = np.flatnonzero(mine)
            cut = int(example["prefix"][at[0]])
            assert (example["prefix"][at] == cut).all() and (labels[at[0] : cut - 1] == IGNORED).all()
            said = labels[max(cut - 1, at[0]) : at[-1] + 1]
            assert (ids[cut : at[-1] + 1] == said[: at[-1] + 1 - cut]).all()
            found.append((ids[at[0] : cut].tolist(), said.tolist(), [], []))
        else:
            out = (example["decoder_documents"] == d) & (labels != IGNORED)
            read, places = (example[k][out].tolist() for k in ("decoder_input_ids", "decoder_position_ids"))
            found.append((ids[mine].tolist(), labels[out].tolist(), read, places))
    return found


# ---------------------------------------------------------------- golden, and going on


def test_golden_batches_at_a_fixed_seed() -> None:
    found = {}
    for case, mixed in itertools.product(CASES, (False, True)):
        digest = hashlib.sha256()
        for example, cursor in take(make(case, mixed), some(), 6):
            for key in sorted(example):
                digest.update(np.ascontiguousarray(example[key]).tobytes())
            digest.update(repr(cursor).encode())
        found[f"{case} {mixed}"] = digest.hexdigest()[:12]
    assert found == GOLDEN


GOLDEN = {
    "spans alone False": "52ded44b4d37",
    "spans alone True": "ef408eda9b3e",
    "prefix False": "882a2b15ab34",
    "prefix True": "ac471326534e",
    "prefix alone False": "39717af84a27",
    "prefix alone True": "75eff1a0451b",
    "mask False": "95d2dcbbab8b",
    "mask True": "a5eafafb913b",
    "replace False": "b220cc5d971e",
    "replace True": "111bd9b917d5",
    "replace alone False": "50041381d001",
    "replace alone True": "01f12d01b5bd",
    "drop False": "aa0c54580f32",
    "drop True": "944f9d407c84",
    "deshuffle False": "a6a20cd13301",
    "deshuffle True": "8d9ecaf6e71c",
    "ul2 False": "19b6d6b6ce53",
    "ul2 True": "b21badbe0ff3",
    "u-palm False": "41b68c8d8991",
    "u-palm True": "49347a412d3f",
    "bart False": "bbf5dd259ef3",
    "bart True": "83fb825a0ee8",
    "noises False": "0787d5478db7",
    "noises True": "abe952b5f562",
    "mbart False": "da396ef99a4b",
    "mbart True": "b025d5edc0b1",
    "mass False": "9c4fb97485b4",
    "mass True": "d9c9550883ca",
    "mass of sentences False": "3699e450bd89",
    "mass of sentences True": "c433754fe64d",
}


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_stream_goes_on_from_any_cursor(case: str, mixed: bool) -> None:
    view, goal = some(8), make(case, mixed)
    rows = take(goal, view, 40)
    assert rows[-1][1].slot >= 8
    for k in (0, 1, 7, 20, 33):
        for a, b in zip(take(make(case, mixed), view, 6, rows[k][1]), rows[k + 1 :], strict=False):
            assert same(a, b)


# ---------------------------------------------------------------- the text can be rebuilt


def spliced(inputs: list[int], goal: list[int]) -> list[int]:
    """A text of its parts between sentinels."""
    runs: dict[int, list[int]] = {}
    key = -1
    for t in goal:
        if t >= VOCAB - 40:
            key = t
            assert key not in runs
            runs[key] = []
        else:
            runs[key].append(t)
    assert list(runs) == [VOCAB - 1 - k for k in range(len(runs))]
    return [t for token in inputs for t in (runs[token] if token >= VOCAB - 40 else [token])]


def rebuilt(case: str, inputs: list[int], goal: list[int], places: list[int]) -> list[int]:
    """The text, from what is read and what is to be said."""
    eos = CASES[case][1].eos_id
    if case.startswith("mass"):
        out = list(inputs)
        for place, token in zip(places, goal, strict=True):
            out[place + 1] = token
        return out[1:-1]
    if case == "mbart":
        assert goal[-2:] == [2, 8] and inputs[-2:] == [2, 8]
        return goal[:-2]
    assert goal[-1] == eos
    goal = goal[:-1]
    if case in ("bart", "noises"):
        assert goal[0] == 1 and inputs[0] == 1 and inputs[-1] == 2
        return goal[1:]
    if not case.endswith("alone") and case != "u-palm":
        assert inputs[-1] == eos
        inputs = inputs[:-1]
    if case in ("ul2", "u-palm"):
        assert inputs[0] in MODES.values()
        return spliced(inputs[1:], goal) if any(t >= VOCAB - 40 for t in goal) else inputs[1:] + goal
    if case == "prefix alone":
        assert inputs[0] == 1
        return inputs[1:] + goal
    if case in ("mask", "deshuffle"):
        assert len(inputs) == len(goal)
        return goal
    if case == "prefix":
        return inputs + goal
    return spliced(inputs, goal)


@pytest.mark.parametrize("case", [c for c in CASES if c != "drop"])
def test_a_text_can_be_rebuilt(case: str) -> None:
    goal = make(case)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 45), st.integers(0, 10**6))
    def check(length: int, seed: int) -> None:
        tokens = np.random.default_rng(seed).integers(10, PLAIN, size=length)
        text = np.stack([tokens, (np.arange(length) % 7 == 0).astype(np.int64), np.full(length, 8)])  # 8: en_XX
        pair, shape = goal.rewrite(text, (seed, 0, 0)), goal.shape(length, (seed, 0, 0))
        assert len(pair.inputs) <= shape.inputs and len(pair.goal) <= shape.goal
        places = [] if pair.places is None else pair.places.tolist()
        assert rebuilt(case, pair.inputs.tolist(), pair.goal.tolist(), places) == tokens.tolist()

    check()


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_an_epoch_holds_every_token_exactly_once(case: str, mixed: bool) -> None:
    view, goal = some(20), make(case, mixed)
    found: Counter[int] = Counter()
    for example, _ in goal.examples(view, once=True):
        for inputs, said, _, places in texts(goal, example):
            plain = [t for t in inputs + said if 10 <= t < PLAIN]
            found.update(plain if case == "drop" else rebuilt(case, inputs, said, places))
    assert found == Counter(t for d in view.documents for t in d.tolist())


@pytest.mark.parametrize("case", ["prefix", "ul2", "u-palm", "bart", "mass", "replace"])
def test_rows_are_full(case: str) -> None:
    """Of a long text: no row leaves more than a scrap."""
    goal = make(case)
    rows = [e for e, _ in take(goal, Documents([np.full(20_000, 11)]), 40)]
    used = [int((e["documents"] >= 0).sum()) / 64 for e in rows]
    said = [int((e["labels"] != IGNORED).sum()) / goal.room for e in rows] if not goal.single else used
    assert np.mean([max(a, b) for a, b in zip(used, said, strict=True)]) > 0.9


# ---------------------------------------------------------------- rates and shares


def pieces(goal: Rewriting, n: int, length: int, columns: int = 1) -> list[Any]:
    text = np.random.default_rng(0).integers(10, PLAIN, size=(1, length))
    flags = (np.arange(length) % 7 == 0).astype(np.int64)[None]
    return [goal.rewrite(np.concatenate([text, flags])[:columns], (k, 0, 0)) for k in range(n)]


def test_a_prefix_is_cut_anywhere() -> None:
    cuts = Counter(len(p.inputs) - 1 for p in pieces(make("prefix"), 3000, 21))
    assert sorted(cuts) == list(range(1, 21))
    chi = sum((n - 150) ** 2 / 150 for n in cuts.values())
    assert chi < 43.8  # 19 degrees of freedom, p = 0.001


def test_tokens_fall_out_one_by_one() -> None:
    goal = make("mask", context=512)
    found = pieces(goal, 300, 200)
    inputs, text = (np.stack([getattr(p, k)[:-1] for p in found]) for k in ("inputs", "goal"))
    n = inputs.size
    masked, other = inputs == goal.mask, (inputs != text) & (inputs != goal.mask)
    assert goal.mask == VOCAB - 1  # T5's is the first sentinel
    assert masked.sum() / n == pytest.approx(0.135, abs=4 * math.sqrt(0.15 * 0.85 / n))
    assert other.sum() / n == pytest.approx(0.015, abs=4 * math.sqrt(0.015 / n))
    plain = make("mask", context=512, goal=Corruption(style="mask", random=0.0))  # MASS-style
    assert all(set(p.inputs[(p.inputs != p.goal)]) <= {plain.mask} for p in pieces(plain, 50, 200))
    gone = pieces(make("drop", context=512), 300, 200)
    assert np.mean([len(p.goal) - 1 for p in gone]) == pytest.approx(30, abs=0.9)
    runs = pieces(make("replace", context=512), 300, 200)  # a run begins with a lost token after a kept one
    assert np.mean([(p.inputs >= VOCAB - 40).sum() for p in runs]) == pytest.approx(200 * 0.15 * 0.85 + 0.15, abs=0.9)


def test_sentinels_end_a_text() -> None:
    """40 of them do not suffice for what a row could lose: then it holds several texts."""
    goal = make("replace", context=1024)
    for example, _ in take(goal, Documents([np.arange(6000) % 100 + 10]), 6):
        assert int(example["documents"].max()) >= 3
        texts(goal, example)


@pytest.mark.parametrize("case", ["ul2", "u-palm"])
def test_each_denoiser_comes_by_its_share(case: str) -> None:
    goal = make(case, context=512)
    kinds = goal.kinds
    met = Counter(goal.which((k, 0, 0)) for k in range(8000))
    shares = np.asarray([k.share for k in kinds]) / sum(k.share for k in kinds)
    for number, share in enumerate(shares):
        assert met[number] / 8000 == pytest.approx(share, abs=4 * math.sqrt(share / 8000))
    if case == "u-palm":
        modes = Counter(kinds[n].mode for n in met.elements())
        assert [round(modes[m] / 8000, 1) for m in ("[S2S]", "[NLG]", "[NLU]")] == pytest.approx(
            [0.5, 0.25, 0.25], abs=0.06
        )
    else:
        assert kinds == UL2 and len(set(shares)) == 1


@pytest.mark.parametrize("kind", [*UL2, *U_PALM.kinds])
def test_a_denoiser_loses_what_it_says(kind: Denoiser) -> None:
    goal = make("ul2", context=1024, goal=Denoisers((kind,)))
    length = 76 if kind.rate == 0.5 and kind.mean == 3 else 200
    found = pieces(goal, 200, length)
    lost = np.asarray([sum(10 <= t < PLAIN for t in p.goal) for p in found])
    marks = np.asarray([(p.goal >= VOCAB - 40).sum() for p in found])
    assert all(p.inputs[0] == MODES[kind.mode] for p in found)
    if kind.rate is None:
        assert (marks == 0).all() and lost.mean() == pytest.approx(100, abs=4 * 58 / math.sqrt(200))
        return
    assert (lost == round(length * kind.rate)).all()
    assert (marks == max(1, round(lost[0] / kind.mean) if kind.mean else 1)).all()
    if kind.mean is None:
        assert all((p.inputs[-2] == VOCAB - 1) and (p.goal[0] == VOCAB - 1) for p in found)


def test_ul2_fills_both_halves() -> None:
    """Half of a text in spans of 64: 512 inputs and 512 targets come from 1,004 tokens."""
    goal = make("ul2", context=512, goal=Denoisers((Denoiser("[NLG]", 0.5, 64.0),)))
    assert goal.shape(1004, ()).inputs <= 512 and goal.shape(1006, ()).inputs > 512 and goal.room == 512


def reference_infilling(length: int, p: float, mean: float, rng: np.random.Generator) -> tuple[int, int]:
    """By the published counting, one token at a time: masks in the result, and text tokens in it."""
    budget = math.ceil(length * p)
    lengths: list[int] = []
    while sum(lengths) < budget:
        lengths.append(int(rng.poisson(mean)))
    lengths[-1] -= sum(lengths) - budget
    inserts = sum(n == 0 for n in lengths)
    real = [n for n in lengths if n]
    starts = rng.permutation(length)[: len(real)].tolist()
    state = ["text"] * length
    for start in starts:
        state[start] = "mask"
    for start, n in zip(starts, real, strict=True):
        for i in range(start + 1, min(start + n, length)):
            state[i] = "gone"
    return state.count("mask") + inserts, state.count("text")


@pytest.mark.parametrize(("p", "mean"), [(0.3, 3.0), (0.35, 3.5), (0.15, 1.0)])
def test_infilling_counts_as_the_released_code_does(p: float, mean: float) -> None:
    goal = make("bart", context=1024, goal=Denoise(infill=p, mean=mean, permute=0.0))
    found = pieces(goal, 1500, 100, columns=2)
    ours = np.asarray([[(q.inputs == 3).sum(), ((q.inputs >= 10) & (q.inputs < PLAIN)).sum()] for q in found])
    rng = np.random.default_rng(9)
    theirs = np.asarray([reference_infilling(100, p, mean, rng) for _ in range(1500)])
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 1500)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4 * error).all()
    assert (np.abs(ours.std(0) - theirs.std(0)) < 0.1 * theirs.std(0)).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.floats(0.05, 8), st.integers(0, 10**6))
def test_spans_meet_their_budget(budget: int, mean: float, seed: int) -> None:
    drawn = spans(budget, mean, np.random.default_rng(seed))
    assert drawn.sum() == budget and drawn.min() >= 0 and drawn[-1] > 0


def test_spans_without_a_token_put_masks_in() -> None:
    lengths = np.concatenate([spans(300, 3.0, np.random.default_rng(k))[:-1] for k in range(100)])
    assert (lengths == 0).mean() == pytest.approx(math.exp(-3), abs=4 * math.sqrt(0.05 / len(lengths)))
    assert lengths.mean() == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_sentences_change_places(share: float) -> None:
    goal = make("bart", goal=Denoise(infill=0.0, permute=share), context=128)
    text = np.random.default_rng(0).integers(10, PLAIN, size=70)
    sentences = [tuple(text[i : i + 7]) for i in range(0, 70, 7)]
    stayed = []
    for pair in pieces(goal, 300, 70, columns=2):
        inside = pair.inputs[1:-1]
        now = [tuple(inside[i : i + 7]) for i in range(0, 70, 7)]
        text = pair.goal[1:-1]
        sentences = [tuple(text[i : i + 7]) for i in range(0, 70, 7)]
        assert sorted(now) == sorted(sentences)
        stayed.append(sum(a == b for a, b in zip(now, sentences, strict=True)))
    moved = math.ceil(10 * share)  # of which one stays, as of any permutation
    assert np.mean(stayed) == pytest.approx(10 - moved + 1, abs=0.25)


def test_masking_deleting_and_rotating() -> None:
    none: dict[str, Any] = {"infill": 0.0, "permute": 0.0}
    masked = pieces(make("bart", goal=Denoise(mask=0.15, random=0.2, **none)), 200, 50, columns=2)
    assert all((p.inputs != p.goal).sum() in (7, 8) and len(p.inputs) == len(p.goal) for p in masked)
    assert np.mean([(p.inputs == 3).sum() for p in masked]) == pytest.approx(8 * 0.8, abs=0.4)
    deleted = pieces(make("bart", goal=Denoise(delete=0.15, **none)), 50, 50, columns=2)
    for p in deleted:
        left = iter(p.goal.tolist())
        assert len(p.inputs) == len(p.goal) - 8 and all(t in left for t in p.inputs.tolist())  # in their order
    turned = pieces(make("bart", goal=Denoise(rotate=0.5, **none)), 400, 50, columns=2)
    at = [
        int(np.flatnonzero([(np.roll(p.inputs[1:-1], k) == p.goal[1:-1]).all() for k in range(50)])[0]) for p in turned
    ]
    assert np.mean(np.asarray(at) > 0) == pytest.approx(0.49, abs=0.1)
    assert np.ptp([k for k in at if k]) > 40


def test_runs_begin_and_end_texts_as_declared() -> None:
    found = pieces(make("mass of sentences"), 3000, 40)
    at = np.asarray([p.places[0] for p in found])  # of the token before the run
    assert all(len(p.goal) == 20 and (np.diff(p.places) == 1).all() for p in found)
    assert (at == 0).mean() == pytest.approx(0.2 + 0.6 / 21, abs=0.03)
    assert (at == 20).mean() == pytest.approx(0.2 + 0.6 / 21, abs=0.03)
    kinds = np.concatenate([p.inputs[p.places + 1] for p in found])
    said = np.concatenate([p.goal for p in found])
    assert (kinds == 3).mean() == pytest.approx(0.8, abs=0.01)
    assert (kinds == said).mean() == pytest.approx(0.1 + 0.1 / 140, abs=0.01)
    for p in pieces(make("mass"), 100, 40):  # blocks of 16, 16 and 8
        assert len(p.goal) == 8 + 8 + 4 and [
            ((p.places >= a) & (p.places < a + n)).sum() for a, n in ((0, 16), (16, 16), (32, 8))
        ] == [8, 8, 4]


@pytest.mark.parametrize("case", ["mass", "mass of sentences"])
def test_a_decoder_of_runs_reads_nothing_but_the_run(case: str) -> None:
    goal = make(case, goal=replace(CASES[case][0], masked=1.0, random=0.0))
    for p in pieces(goal, 100, 40):
        whole = p.inputs.copy()
        whole[p.places + 1] = p.goal
        assert (p.inputs[p.places + 1] == 3).all() and (p.read == whole[p.places]).all()
        assert len(p.read) == len(p.goal) == len(p.places)


# ---------------------------------------------------------------- who sees whom


@pytest.mark.parametrize("case", CASES)
def test_any_split_gives_the_same_loss(case: str) -> None:
    goal, model = make(case), network(case)
    examples = [e for e, _ in take(goal, some(), 7)]
    whole = goal.loss(model, goal.collate(examples))
    assert whole.counts == goal.counts(goal.collate(examples))
    parts = [goal.loss(model, goal.collate(examples[i : i + 3])) for i in (0, 3, 6)]
    torch.testing.assert_close(sum(p.total(whole.counts) for p in parts), whole.total(), atol=1e-5, rtol=1e-6)
    last = [e for e, _ in goal.examples(some(), once=True)][-3:]
    goal.loss(model, goal.collate(last)).total().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_packed_texts_have_the_loss_that_they_have_alone(case: str, mixed: bool) -> None:
    goal, model = make(case, mixed), network(case)
    rows = [e for e, _ in take(goal, some(60, 6, 20), 12)]
    row = next((e for e in rows if int(e["documents"].max()) >= 1), rows[0])
    packed = goal.loss(model, goal.collate([row])).sums["token"]
    alone = torch.zeros(())
    for d in range(int(row["documents"].max()) + 1):
        mine = row["documents"] == d
        if goal.single:
            at = np.flatnonzero(mine)
            ids, labels = (torch.from_numpy(row[k][at])[None] for k in ("input_ids", "labels"))
            hidden = model.decode(Inputs(ids, prefix=torch.tensor([int(row["prefix"][at[0]]) - at[0]])))
        else:
            out = (row["decoder_documents"] == d) & (row["labels"] != IGNORED)
            read, labels, places = (
                torch.from_numpy(row[k][out])[None] for k in ("decoder_input_ids", "labels", "decoder_position_ids")
            )
            where = places + 1 if case.startswith("mass") else None  # the table's row 0 is that of padding
            memory = model.encode(torch.from_numpy(row["input_ids"][mine])[None])
            hidden = model.decode(Inputs(read, position_ids=where, encoder_hidden=memory))
        logits = model.logits(hidden).float()
        alone = alone + torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="sum", ignore_index=IGNORED)
    torch.testing.assert_close(packed, alone, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_target_sees_its_inputs_and_what_comes_before_it(case: str) -> None:
    """A later token of the goal changes no earlier loss; every input changes those of its own text, and no others."""
    goal, model = make(case), network(case)
    batch = goal.collate([e for e, _ in take(goal, some(60, 12, 20), 3)])
    with torch.no_grad():
        before = each(goal, model, batch)
        read = "input_ids" if goal.single else "decoder_input_ids"
        width = batch[read].shape[1]
        where = batch.get("where", torch.arange(batch[read].numel()))
        middle = int(where[len(where) // 2])
        wrong = {k: v.clone() for k, v in batch.items()}
        wrong[read].view(-1)[middle] = 12 if int(batch[read].view(-1)[middle]) != 12 else 13
        after = each(goal, model, wrong)
        same_loss = before == after
        earlier = (where < middle) | (where // width != middle // width)
        is_input = goal.single and middle % width < int(batch["prefix"].view(-1)[middle])
        if not is_input:
            assert same_loss[earlier].all()
        assert not same_loss[where == middle].any()
        if "documents" in batch:
            wrong = {k: v.clone() for k, v in batch.items()}
            first = (batch["documents"][0] == 0).nonzero()[0]
            wrong["input_ids"][0, first[0]] = 14 if int(batch["input_ids"][0, first[0]]) != 14 else 15
            after = each(goal, model, wrong)
            owner = batch["documents" if goal.single else "decoder_documents"].flatten()[where]
            mine = (where // width == 0) & (owner == 0)
            assert (before[~mine] == after[~mine]).all() and (before[mine] != after[mine]).all()


@pytest.mark.parametrize("case", ["u-palm", "spans alone"])
def test_inputs_see_each_other_under_a_prefix_mask_alone(case: str) -> None:
    goal = make(case)
    row = next(e for e, _ in take(goal, some(60, 20, 40), 20) if int(e["prefix"][0]) > 6)
    batch, cut = goal.collate([row]), int(row["prefix"][0])
    for mask, seen in ((families.family("u-palm").arch.mask, True), (families.family("palm").arch.mask, False)):
        model = network(case)
        model = Model(replace(model.arch, mask=mask), model.dims).initialise(3).eval()

        def hidden(ids: torch.Tensor, model: Model = model) -> torch.Tensor:
            return model.decode(Inputs(ids, documents=batch.get("documents"), prefix=batch["prefix"]))

        wrong = batch["input_ids"].clone()
        wrong[0, cut - 1] = 12 if int(wrong[0, cut - 1]) != 12 else 13
        with torch.no_grad():
            a, b = hidden(batch["input_ids"]), hidden(wrong)
        assert torch.equal(a[0, : cut - 1], b[0, : cut - 1]) != seen


# ---------------------------------------------------------------- the same loss elsewhere


def theirs(case: str, folder: Path) -> tuple[Any, Model]:
    small: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 32}
    body = {
        "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64, "pad_token_id": 0, "dropout": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    model: Any
    if case in ("bart", "noises"):
        model = hf.BartForConditionalGeneration(
            hf.BartConfig(**small, **body, eos_token_id=2, decoder_start_token_id=2)
        )
    elif case == "mbart":
        model = hf.MBartForConditionalGeneration(hf.MBartConfig(**small, **body, eos_token_id=2))
    else:
        config = hf.T5Config(
            **small, dropout_rate=0.0, d_ff=48, d_kv=8, num_layers=2, num_heads=4, pad_token_id=0,
            eos_token_id=1, decoder_start_token_id=0, feed_forward_proj="gated-gelu",
        )  # fmt: skip
        model = hf.T5ForConditionalGeneration(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.eval().save_pretrained(folder)
    return model, stemma.load(folder, tokenizer=False)


@pytest.mark.parametrize("case", ["prefix", "mask", "replace", "drop", "deshuffle", "ul2", "bart", "noises", "mbart"])
def test_the_loss_is_that_of_transformers(case: str, tmp_path: Path) -> None:
    """Of packed rows here, and of every text alone there."""
    model, ours = theirs(case, tmp_path)
    goal = make(case)
    rows = [e for e, _ in take(goal, some(40, 5, 60), 5)]
    with torch.no_grad():
        found = goal.loss(ours, goal.collate(rows)).sums["token"]
        wanted, count = 0.0, 0
        for row in rows:
            for inputs, said, read, _ in texts(goal, row):
                labels = torch.tensor([said])
                out = model(
                    input_ids=torch.tensor([inputs]),
                    decoder_input_ids=torch.tensor([read]) if case == "mbart" else None,
                    labels=labels,
                )
                wanted, count = wanted + float(out.loss) * len(said), count + len(said)
    assert count == sum(goal.counts(goal.collate(rows)).values())
    assert float(found) / count == pytest.approx(wanted / count, abs=1e-5)


# ---------------------------------------------------------------- what cannot be


def test_what_is_missing_is_named() -> None:
    for goal, tokenizer, words in (
        (Corruption(), Named(eos=1), "sentinels"),
        (Denoisers(), Named(eos=1), "sentinels"),
        (Denoisers((Denoiser("[XYZ]"),)), T5, r"no mode token \[XYZ\]"),
        (Denoise(), T5, "mask"),
        (Fragment(), T5, "mask"),
        (PrefixLM(), Words(), "eos"),
    ):
        if words == "sentinels":
            tokenizer.sentinels = 0
        with pytest.raises(UsageError, match=words) as caught:
            objective(goal, Setting(tokenizer, families.family("t5").text, 32, 1))
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="code"):
        objective(Denoise(), Setting(BART, replace(families.family("mbart").text, extras=("xx_XX",)), 32, 1))
    with pytest.raises(UsageError, match="at least one denoiser"):
        Denoisers(())
    with pytest.raises(UsageError, match="no mean length"):
        Denoiser(rate=None)


@pytest.mark.parametrize(("goal", "name"), [(Denoise(), "gpt2"), (Fragment(), "llama"), (PrefixLM(), "bert")])
def test_a_network_that_does_not_fit_is_refused(goal: Any, name: str) -> None:
    assert "structure" in str(incompatible_reason(goal, families.design(name).arch))
    with pytest.raises(UsageError, match="structure"):
        stemma.train.resolve(name, overrides={"objective": spec.to_dict(goal)})


# ---------------------------------------------------------------- runs

RUNS = ["t5-lm", "mt5", "umt5", "ul2", "u-palm", "bart", "mbart", "mass"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import json

    from test_train import words

    path = tmp_path_factory.mktemp("text") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in words()), "utf-8")
    return path


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_complete_and_goes_on(name: str, text: Path, tmp_path: Path) -> None:
    from stemma.train import verify_resume

    run = train(name, tmp_path / "run", text, 4, {"dims.head_dim": None})
    assert run.finished and math.isfinite(run.summary["val"]["bits_per_target_byte"])
    assert verify_resume(run.directory, 4)["identical"]
    again = stemma.load(run.directory / "model")
    kept = run.model.state_dict()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in again.state_dict().items())
    design = families.design(name)
    assert all(again.tokenizer.id(extra) is not None for extra in design.text.extras)
    assert type(again.arch.mask) is type(design.arch.mask)
    start = run.plan.text.start_id
    if name in ("bart", "mass"):
        assert start == again.tokenizer.eos_id


def test_a_run_begins_from_weights(text: Path, tmp_path: Path) -> None:
    """U-PaLM from PaLM: its weights, its tokenizer and new rows for the tokens that it lacked."""
    first = train("palm", tmp_path / "palm", text, 3)
    run = train("u-palm", tmp_path / "next", text, 1, {"train.start": str(first.directory), "recipe.lr": 1e-9})
    old, new = first.tokenizer, run.tokenizer
    assert new.vocab_size == old.vocab_size + 100 + 3 and new.sentinels == 100
    assert [old.token(i) for i in range(old.vocab_size)] == [new.token(i) for i in range(old.vocab_size)]
    assert old.encode("The cat sees [NLU] <extra_id_0>.") == new.encode("The cat sees [NLU] <extra_id_0>.")
    before, after = first.model.state_dict(), run.model.state_dict()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        torch.testing.assert_close(after[key][: len(tensor)], tensor, atol=1e-5, rtol=1e-4)
    assert run.plan.train.start == str((first.directory / "model").resolve())
    ids = [new.id(mode) for mode in ("[NLU]", "[NLG]", "[S2S]")]
    assert None not in ids and stemma.load(run.directory / "model").tokenizer.id("[S2S]") == ids[2]
    assert stemma.train.verify_resume(run.directory, 2)["identical"]


def test_weights_of_another_network_are_refused(text: Path, tmp_path: Path) -> None:
    first = train("palm", tmp_path / "palm", text, 1)
    for name, changes, words in (
        ("u-palm", {"dims.d_model": 64}, "dims.d_model=32"),
        ("gpt2", {}, "arch"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            train(name, tmp_path / "other", text, 1, {"train.start": str(first.directory), **changes})
        assert "\n" not in str(caught.value) and not (tmp_path / "other").exists()
    with pytest.raises(UsageError, match="takes its tokenizer"):
        train("u-palm", tmp_path / "t", text, 1, {"train.start": str(first.directory)}, tokenizer=first.tokenizer)
    with pytest.raises(UsageError, match="neither a folder nor a hub id"):
        train("u-palm", tmp_path / "t", text, 1, {"train.start": str(tmp_path / "nowhere")})


def test_more_training_from_nothing_says_so(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = stemma.train.resolve("u-palm")
    assert plan.recipe.lr == stemma.train.resolve("palm").recipe.lr  # its own, 1e-4, is for trained weights
    assert plan.recipe.schedule == stemma.train.resolve("palm").recipe.schedule
    assert stemma.train.resolve("u-palm", overrides={"recipe.lr": 3e-3}).recipe.lr == 3e-3
    stemma.train.pretrain("u-palm", data=str(text), out=tmp_path / "run", budget="1 steps", overrides=SMALL)
    assert "more training of palm's weights; without --from it begins from new ones" in capsys.readouterr().err


# ---------------------------------------------------------------- learning


# one of every way to rewrite; the others differ in what stands for what is gone, or are mixtures of these
LEARNT = ("spans alone", "prefix", "replace", "bart", "mass")


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in LEARNT else pytest.mark.slow) for c in CASES])
def test_the_loss_falls(case: str) -> None:
    torch.manual_seed(0)
    view = Documents([np.arange(10, 60), np.arange(40, 90)])
    goal, model = make(case), network(case)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    stream = goal.examples(view)
    losses = []
    for _ in range(50):
        batch = goal.collate([next(stream)[0] for _ in range(8)])
        loss = goal.loss(model, batch).total()
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


def unigram(goal: Objective, train: Any, held: Any) -> float:
    """Nats a target of a model that knows how often each target comes, and nothing else."""
    counts = Counter(
        int(t) for e, _ in itertools.islice(goal.examples(train), 400) for t in e["labels"] if t != IGNORED
    )
    size = goal.tokenizer.vocab_size
    total = sum(counts.values()) + size
    said = [int(t) for e, _ in goal.examples(held, once=True) for t in e["labels"] if t != IGNORED]
    return -float(np.mean([math.log((counts[t] + 1) / total) for t in said]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "t5-lm", "ul2", "u-palm", "bart", "mbart", "mass"])
def test_it_learns_more_than_how_often_tokens_come(name: str, tmp_path: Path) -> None:
    from stemma.train import assemble, prepare
    from stemma.train.evaluation import sample

    steps = 400 if name == "mass" else 150  # post-norm, with a slow beginning
    run = stemma.train.pretrain(
        name, data="builtin:bible", out=tmp_path / "run", budget=f"{steps} steps", quiet=True,
        overrides={"dims.vocab": 1000, "train.threads": 1},
    )  # fmt: skip
    plan, tokenizer, store = prepare.reopen(run.directory)
    goal = assemble.objective_of(plan, tokenizer)
    train, held = prepare.split(plan, store)
    baseline = unigram(goal, train, sample(held, 5000))
    assert run.summary["val"]["loss"] < baseline - 0.3
