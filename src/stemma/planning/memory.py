"""Bytes of a step for any number of rows, from traces of a few."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stemma.objectives.vocabulary import LOGITS
from stemma.planning.batch import Example
from stemma.planning.live import Bytestream
from stemma.planning.trace import CHUNKS, Step

NEAR = 0.002  # by which an interpolation may miss a trace


class Memory:
    """The bytes that a step of `step` holds at its worst moment beyond weights and optimiser, by rows.

    Every tensor's size is affine in the number of rows. So where two traces make the same tensors in the same order,
    each moment is interpolated, which is exact; they do while their losses have as many chunks. Where they do not, a
    trace between says whether the peaks between layer boundaries can be interpolated."""

    def __init__(self, step: Step, example: Example, vocab: int) -> None:
        self.step, self.example, self.vocab = step, example, vocab
        self.chunks = example.targets / max(1, LOGITS // vocab)  # of a loss, a row
        self.traces: dict[int, Bytestream] = {}

    def trace(self, rows: int) -> Bytestream:
        if rows not in self.traces:
            self.traces[rows] = self.step.trace(self.example.batch(rows))
        return self.traces[rows]

    def peak(self, rows: int, shards: int = 1, accumulated: bool = False) -> float:
        """Bytes with micro-batches of `rows`, where a gradient is shared by `shards` devices; `accumulated`: of several
        micro-batches."""
        rows = max(rows, self.example.objective.rows)
        low, high = self.range(rows)
        while rows not in (low, high) and not self.alike(low, high):
            middle = self.grid(math.isqrt(low * high))
            if middle == low:
                break
            guess = self.between(low, high, middle, shards, accumulated)
            if abs(guess / peak(self.trace(middle), shards, accumulated) - 1) < NEAR:
                break
            low, high = (low, middle) if rows <= middle else (middle, high)
        if rows in (low, high):
            return peak(self.trace(rows), shards, accumulated)
        return self.between(low, high, rows, shards, accumulated)

    def range(self, rows: int) -> tuple[int, int]:
        """Two numbers of rows to trace for the bytes of `rows`, whose losses have as many chunks where there are such;
        else those next to it."""
        if rows <= (one := self.grid(1)):
            return one, one
        chunks = min(CHUNKS + 1, math.ceil(self.chunks * rows))
        if chunks > 1:
            low = self.grid(math.floor((chunks - 1) / self.chunks) + 1, up=True)
            high = self.grid(2 * low)
        else:
            low, high = 2 * one, self.grid(32 * one)  # one row is no sum over rows
        if 0 < chunks <= CHUNKS:
            high = min(high, self.grid(math.floor(chunks / self.chunks)))
        return (low, high) if low < high else (self.grid(rows), self.grid(rows, up=True))

    def grid(self, rows: int, up: bool = False) -> int:
        """The next number of rows below (or `up`), or this one, that there are batches of."""
        size = self.example.objective.rows if rows <= self.example.rows else self.example.rows
        return max(size, (rows + (size - 1 if up else 0)) // size * size)

    def alike(self, low: int, high: int) -> bool:
        return len(self.trace(low).held) == len(self.trace(high).held)

    def between(self, low: int, high: int, rows: int, shards: int, accumulated: bool) -> float:
        """The line through two traces, at `rows`."""
        a, b = moments(self.trace(low), self.trace(high), shards, accumulated)
        return float((a + (rows - low) / (high - low) * (b - a)).max())


def peak(found: Bytestream, shards: int, accumulated: bool) -> float:
    return float(found.total(shards, accumulated).max())


def moments(
    one: Bytestream, two: Bytestream, shards: int, accumulated: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The bytes of two traces at moments that correspond: every one if both make as many tensors, else the worst
    between layer boundaries, else the worst of all."""
    a, b = (found.total(shards, accumulated) for found in (one, two))
    if len(a) == len(b):
        return a, b
    if len(one.starts) == len(two.starts):
        return np.maximum.reduceat(a, one.starts), np.maximum.reduceat(b, two.starts)
    return a.max(keepdims=True), b.max(keepdims=True)
