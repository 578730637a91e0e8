"""Mixtures: which component each slot of a stream is drawn from, as a pure function of the slot.

The stream is cut into blocks of about B slots. With weights w_j that sum to 1, block b has

    floor((b + 1) B w_j + o_j) - floor(b B w_j + o_j)

draws of component j, where 0 <= o_j < 1 is drawn once from the seed. So after any number of blocks each component is
within one draw of its share. A keyed permutation shuffles the draws of a block. Draw n of a component with m members is
of epoch n // m; a keyed permutation of the members gives the member.

A component leaves the mixture when it reaches its limit; the weights of the others then grow in proportion. Weights are
integer multiples of 2^-40, so no rounding error accumulates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stemma.data import random
from stemma.errors import DataError, UsageError

BLOCK = 256  # slots of a block, nominally
_ONE = 1 << 40  # the sum of all weights
BEGIN, SHUFFLE, MEMBER = 101, 102, 103  # keys of draws; objectives use smaller numbers


def tempered(sizes: Sequence[float], alpha: float) -> list[float]:
    """Shares proportional to `size ** alpha` (Lample & Conneau 2019, section 3.1): 1 samples by size, 0 uniformly. T5's
    temperature is 1 / alpha."""
    if not sizes or min(sizes) <= 0:
        raise DataError(f"every component of a mixture needs some text, and the sizes are {list(sizes)}")
    raised = [(size / max(sizes)) ** alpha for size in sizes]
    return [share / sum(raised) for share in raised]


class UsedUp(DataError):
    """The stream has ended: every component has reached its limit."""


class Draw(NamedTuple):
    """A slot of the stream: its `component`, and the index of this draw among those of the component (`number`)."""

    component: int
    number: int


class _Phase(NamedTuple):
    """A part of the stream with constant weights: first slot, draws of each component before it, weights in units of
    2^-40 (0: not in it), offsets, number of blocks and of slots (None: it does not end)."""

    first: int
    before: tuple[int, ...]
    weights: tuple[int, ...]
    offsets: tuple[int, ...]
    blocks: int | None
    slots: int | None


class Mixture:
    """The stream of a mixture. `weights`: of any scale; `limits`: the largest number of draws of each component, None
    for no limit."""

    def __init__(
        self, seed: int, weights: Sequence[float], limits: Sequence[int | None] | None = None, block: int = BLOCK
    ) -> None:
        if not weights or min(weights) < 0 or sum(weights) <= 0:
            raise UsageError(f"the weights of a mixture must be positive, not {list(weights)}")
        self.seed, self.block = seed, block
        self.weights = [w / sum(weights) for w in weights]
        self.limits = list(limits) if limits is not None else [None] * len(weights)
        self._phases = [self._phase(0, (0,) * len(weights))]
        while (last := self._phases[-1]).slots is not None:
            before = tuple(self._given(last, j, last.blocks or 0) for j in range(len(weights)))
            if all(self._spent(j, n) for j, n in enumerate(before)):
                break
            self._phases.append(self._phase(last.first + last.slots, before))

    def _spent(self, j: int, given: int) -> bool:
        limit = self.limits[j]
        return self.weights[j] == 0 or (limit is not None and given >= limit)

    def _phase(self, first: int, before: tuple[int, ...]) -> _Phase:
        open_ = [0.0 if self._spent(j, n) else w for j, (n, w) in enumerate(zip(before, self.weights, strict=True))]
        if not sum(open_):
            raise DataError("no component of the mixture may be read at all; raise its epochs")
        units = [int(w / sum(open_) * _ONE) for w in open_]
        units[max(range(len(units)), key=units.__getitem__)] += _ONE - sum(units)
        starts = (random.uniform((self.seed, BEGIN, first), len(units)) * _ONE).astype(np.int64)
        phase = _Phase(first, before, tuple(units), tuple(int(o) for o in starts), None, None)
        ends = []
        for j, limit in enumerate(self.limits):
            if limit is not None and units[j]:
                # the smallest number of blocks that would use up the component
                left = limit - before[j]
                ends.append(-((phase.offsets[j] - (left << 40)) // (self.block * units[j])))
        if not ends:
            return phase
        blocks = max(1, min(ends))
        return phase._replace(blocks=blocks, slots=self._before(phase, blocks))

    def _given(self, phase: _Phase, j: int, blocks: int) -> int:
        """Draws of component j from the beginning of the stream up to block `blocks` of a phase."""
        new = (blocks * self.block * phase.weights[j] + phase.offsets[j]) >> 40
        limit = self.limits[j]
        total = phase.before[j] + new
        return total if limit is None else max(phase.before[j], min(total, limit))

    def _before(self, phase: _Phase, blocks: int) -> int:
        """Slots of the first `blocks` blocks of a phase."""
        return sum(self._given(phase, j, blocks) - n for j, n in enumerate(phase.before))

    @property
    def slots(self) -> int | None:
        """The length of the stream; None if it is endless."""
        last = self._phases[-1]
        return None if last.slots is None else last.first + last.slots

    def __getitem__(self, slot: int) -> Draw:
        """The draw at a slot. Raises UsedUp past the end of the stream."""
        if self.slots is not None and slot >= self.slots:
            raise UsedUp(
                f"the mixture is used up after {self.slots:,} draws: train for fewer steps, or raise the limits "
                "of epochs (recipe.sampling.epochs, or #epochs=N in the data)"
            )
        low, high = 0, len(self._phases) - 1
        while low < high:  # the last phase that begins at or before the slot
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._phases[middle].first <= slot else (low, middle - 1)
        phase = self._phases[low]
        rest = slot - phase.first
        b = rest // self.block
        while self._before(phase, b) > rest:  # off by a block or two at most
            b -= 1
        while self._before(phase, b + 1) <= rest:
            b += 1
        starts = [self._given(phase, j, b) for j in range(len(phase.before))]
        ends = [self._given(phase, j, b + 1) for j in range(len(phase.before))]
        counts = [end - start for start, end in zip(starts, ends, strict=True)]
        at = random.shuffled((self.seed, SHUFFLE, phase.first, b), sum(counts), rest - self._before(phase, b))
        for j, count in enumerate(counts):
            if at < count:
                return Draw(j, starts[j] + at)
            at -= count
        raise AssertionError("a block holds all of its draws")


def member(seed: int, component: int, number: int, size: int) -> tuple[int, int]:
    """(member, epoch) of draw `number` of a component with `size` members. Each epoch is a permutation."""
    epoch, place = divmod(number, size)
    return random.shuffled((seed, MEMBER, component, epoch), size, place), epoch


class Mixed:
    """The order of documents drawn from several components: `[slot]` is (document, epoch of its component).
    `documents`: the number of documents in all."""

    def __init__(
        self,
        seed: int,
        members: Sequence[npt.NDArray[np.int64]],
        weights: Sequence[float],
        epochs: Sequence[float | None] | None = None,
    ) -> None:
        self.seed, self.members = seed, members
        self.documents = sum(len(m) for m in members)
        limits = None
        if epochs is not None:
            limits = [None if e is None else max(1, round(e * len(m))) for e, m in zip(epochs, members, strict=True)]
        self.mixture = Mixture(seed, weights, limits)

    def __getitem__(self, slot: int) -> tuple[int, int]:
        component, number = self.mixture[slot]
        own = self.members[component]
        place, epoch = member(self.seed, component, number, len(own))
        return int(own[place]), epoch
