"""Mixtures: shares, epochs and limits, at any place without going there."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.data.documents import MixtureSource
from stemma.data.mixture import Mixed, Mixture, member, tempered
from stemma.declare.recipes import Sampling
from stemma.errors import DataError, UsageError
from stemma.objectives.languages import mixed

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

    def __len__(self) -> int:
        return 50


@pytest.mark.parametrize(("what", "documents", "tokens"), [("documents", 0.5, 1 / 16), ("tokens", 15 / 16, 0.5)])
def test_weights_are_shares_of_documents_or_of_tokens(what: str, documents: float, tokens: float) -> None:
    order = mixed(Two(), 1, Sampling(weights=what))  # type: ignore[arg-type]
    assert order is not None
    drawn = np.asarray([order[slot][0] for slot in range(5120)])
    short = Two.part_ids[drawn] == 0
    assert short.mean() == pytest.approx(documents, abs=0.002)
    lengths = Two.lengths[drawn]
    assert lengths[short].sum() / lengths.sum() == pytest.approx(tokens, abs=0.01)
