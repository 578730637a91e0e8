"""Mixtures: shares, epochs and limits, at any place without going there."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.data.documents import MixtureSource
from stemma.data.mixture import Mixed, Mixture, member, tempered
from stemma.declare.recipes import Sampling
from stemma.errors import DataError, UsageError
from stemma.objectives.languages import mixed, token_shares
from stemma.train import prepare, pretrain
from stemma.train.evaluation import amounts, sample

weights = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6)


def test_temperatures() -> None:
    assert tempered([100, 100], 0.3) == pytest.approx([0.5, 0.5])
    assert tempered([900, 100], 1.0) == pytest.approx([0.9, 0.1])
    assert tempered([900, 100], 0.0) == pytest.approx([0.5, 0.5])
    # XLM-R, section 3.1: q = p^alpha / sum p^alpha
    p = np.array([0.7, 0.2, 0.1])
    assert tempered(list(p * 1e6), 0.3) == pytest.approx(list(p**0.3 / (p**0.3).sum()))
    with pytest.raises(DataError, match="needs some text"):
        tempered([10, 0], 0.5)


@settings(max_examples=60, deadline=None)
@given(weights, st.integers(0, 2**40), st.sampled_from([16, 64, 256]))
def test_shares_hold_to_within_rounding_after_every_block(w: list[float], seed: int, block: int) -> None:
    mixture = Mixture(seed, w, block=block)
    phase = mixture._phases[0]
    seen: Counter[int] = Counter()
    slot = 0
    for b in range(1, 5):
        end = mixture._before(phase, b)
        for place in range(slot, end):
            component, number = mixture[place]
            assert number < b * block * mixture.weights[component] + 1
            seen[component] += 1
        slot = end
        for j, share in enumerate(mixture.weights):
            assert abs(seen[j] - b * block * share) < 1 + 1e-6


@settings(max_examples=40, deadline=None)
@given(weights, st.integers(0, 2**40), st.integers(0, 10**15))
def test_any_place_is_found_without_the_others(w: list[float], seed: int, start: int) -> None:
    """Around any place, however far, each component's draws are consecutive and none comes twice."""
    mixture = Mixture(seed, w, block=16)
    found = [mixture[slot] for slot in range(start, start + 200)]
    assert found == [Mixture(seed, w, block=16)[slot] for slot in range(start, start + 200)]
    assert len(set(found)) == 200
    for j in range(len(w)):
        numbers = sorted(n for component, n in found if component == j)
        if numbers:  # those of whole blocks between the ends are all there
            missing = set(range(numbers[0], numbers[-1] + 1)) - set(numbers)
            assert len(missing) <= 2 * 17


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 1.0), st.integers(1, 3)), min_size=1, max_size=5),
       st.integers(0, 10**6))  # fmt: skip
def test_limits_are_kept_to_the_draw(parts: list[tuple[int, float, int]], seed: int) -> None:
    sizes, w, epochs = zip(*parts, strict=True)
    limits = [n * e for n, e in zip(sizes, epochs, strict=True)]
    mixture = Mixture(seed, w, limits, block=16)
    assert mixture.slots == sum(limits)
    found = [mixture[slot] for slot in range(sum(limits))]
    for j, limit in enumerate(limits):
        assert sorted(n for component, n in found if component == j) == list(range(limit))
        each = [member(seed, j, n, sizes[j]) for n in range(limit)]
        for epoch in range(epochs[j]):
            assert sorted(m for m, e in each if e == epoch) == list(range(sizes[j]))
    with pytest.raises(DataError, match="used up"):
        mixture[sum(limits)]


def test_weights_grow_in_proportion_when_a_component_ends() -> None:
    mixture = Mixture(3, [0.5, 0.4, 0.1], [1024, None, None])
    assert mixture.slots is None
    late = Counter(mixture[slot].component for slot in range(10_000, 20_000))
    assert late[0] == 0 and late[1] / 10_000 == pytest.approx(0.8, abs=0.005)
    early = Counter(mixture[slot].component for slot in range(1792))
    assert early[0] == pytest.approx(896, abs=1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 10**6))
def test_each_epoch_of_a_component_holds_each_document_once(sizes: list[int], seed: int) -> None:
    edges = [0, *itertools.accumulate(sizes)]
    members = [np.arange(a, b) for a, b in itertools.pairwise(edges)]
    order = Mixed(seed, members, [1.0] * len(sizes))
    seen: dict[tuple[int, int], list[int]] = {}
    for slot in range(6 * max(sizes) * len(sizes) + 600):
        document, epoch = order[slot]
        component = next(j for j, m in enumerate(members) if document in m)
        seen.setdefault((component, epoch), []).append(document)
    for j, m in enumerate(members):
        assert sorted(seen[j, 0]) == m.tolist() and sorted(seen[j, 1]) == m.tolist()
        if len(m) > 8:
            assert seen[j, 0] != seen[j, 1]


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="positive"):
        Mixture(1, [])
    with pytest.raises(UsageError, match="positive"):
        Mixture(1, [0.5, -0.1])


class Two:
    """Forty short documents and ten long ones, as two sources with equal weights."""

    parts = tuple(MixtureSource(name, 0.5, None) for name in ("short", "long"))
    part_ids = np.repeat([0, 1], [40, 10])
    lengths = np.repeat([20, 300], [40, 10])

    groups = np.full(50, -1)

    def __len__(self) -> int:
        return 50

    def pick(self, documents: np.ndarray) -> np.ndarray:
        return documents


@pytest.mark.parametrize(("what", "documents", "tokens"), [("documents", 0.5, 1 / 16), ("tokens", 15 / 16, 0.5)])
def test_weights_are_shares_of_documents_or_of_tokens(what: str, documents: float, tokens: float) -> None:
    order = mixed(Two(), 1, Sampling(weights=what))  # type: ignore[arg-type]
    assert order is not None
    drawn = np.asarray([order[slot][0] for slot in range(5120)])
    short = Two.part_ids[drawn] == 0
    assert short.mean() == pytest.approx(documents, abs=0.002)
    lengths = Two.lengths[drawn]
    assert lengths[short].sum() / lengths.sum() == pytest.approx(tokens, abs=0.01)
    assert token_shares(Two(), Sampling(weights=what)) == pytest.approx([tokens, 1 - tokens])  # type: ignore[arg-type]


def test_what_is_judged_has_the_shares_of_training() -> None:
    """Not those of what is held out, of which the long documents are four fifths; always the same documents."""
    drawn: np.ndarray = sample(Two(), 1000, [0.75, 0.25])  # type: ignore[arg-type,assignment]
    short = Two.part_ids[drawn] == 0
    assert Two.lengths[drawn][short].sum() == 760 and Two.lengths[drawn][~short].sum() == 300  # whole documents
    assert (sample(Two(), 1000, [0.75, 0.25]) == drawn).all()  # type: ignore[arg-type]
    whole: np.ndarray = sample(Two(), 10**6)  # type: ignore[arg-type,assignment]
    assert len(whole) == 50


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0.01, 1.0)), min_size=1, max_size=5), st.integers(1, 2000))
def test_parts_that_end_lack_little(parts: list[tuple[int, float]], tokens: int) -> None:
    have, asked = np.asarray([float(n) for n, _ in parts]), np.asarray([w for _, w in parts])
    if not have.sum():
        return
    found, shares = amounts(have, asked, tokens), np.where(have > 0, asked, 0)
    shares = shares / shares.sum()
    assert (found <= have).all() and found.sum() <= tokens + 1e-6
    ended = found >= have - 1e-6
    total = found[~ended].sum() / shares[~ended].sum() if (~ended).any() else found.sum()
    assert found.sum() >= 0.89 * min(total, tokens)
    assert np.allclose(found[~ended], total * shares[~ended])


def test_amounts() -> None:
    have = np.asarray([1000.0, 20_000.0, 30_000.0])
    assert amounts(have, np.asarray([0.5, 0.3, 0.2]), 2000).round().tolist() == [1000, 600, 400]
    assert amounts(have, np.asarray([0.92, 0.06, 0.02]), 50_000).round().tolist() == [1000, 73, 24]
    assert amounts(have, np.asarray([0.05, 0.45, 0.5]), 40_000).round().tolist() == [1000, 18_000, 20_000]


def test_a_run_is_judged_by_the_weights_of_its_mixture(tmp_path: Path) -> None:
    """One that began before there was a choice goes by the size of what is held out, as it did."""
    for name, words, rows in (("short", 6, 300), ("long", 60, 300)):
        texts = [" ".join(f"{name} {i * j % 97}" for j in range(words)) for i in range(rows)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = f"{tmp_path}/short.jsonl@0.95,{tmp_path}/long.jsonl@0.05"
    small = {"dims.vocab": 300, "dims.layers": 1, "train.budget": "1 steps", "train.val_fraction": 0.2}
    pretrain("gpt2", data=data, out=tmp_path / "run", overrides=small, quiet=True)

    def long() -> tuple[float, int]:
        plan, _, store = prepare.reopen(tmp_path / "run")
        train, held = prepare.split(plan, store)
        judged = prepare.judged_by(plan, train, held)
        lengths, parts = judged.lengths, judged.part_ids
        (share,) = token_shares(train, plan.recipe.sampling)[1:]
        return float(lengths[parts == 1].sum() / lengths.sum()) / share, len(held) - len(judged)

    near, left = long()
    assert near == pytest.approx(1, abs=0.2) and left > 20
    about = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert about["plan"]["train"].pop("judged") == "weights"
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    far, left = long()
    assert far > 2 and left == 0
