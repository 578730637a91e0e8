"""Counter-based randomness: pure functions of keys and a position, so that any part of a run can be recomputed.

There is no state. Element j of a stream depends on its keys and j only, not on the order or the process of the draws.
Streams of different keys are independent for all practical purposes: keys are absorbed one by one, and every element
passes two rounds of a 64-bit finaliser (Stafford's variant 13, as in splitmix64).

    uniform((seed, epoch, row), 512)          # the row's 512 numbers
    uniform((seed, epoch, row), 12, start=500)  # the last 12 of them
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _absorb(keys: Sequence[int]) -> tuple[int, int]:
    """Two 64-bit words from the number, values and order of the keys, which may be negative."""
    a, b = _mix(len(keys) + 1), _mix((len(keys) + 1) ^ _MASK)
    for key in keys:
        word = int(key) & _MASK
        a = _mix((a + _GAMMA) & _MASK ^ word)
        b = _mix(((b ^ word) * 0xD1342543DE82EF95 + _GAMMA) & _MASK)
    return a, b


def words(keys: Sequence[int], n: int, start: int = 0) -> npt.NDArray[np.uint64]:
    """uint64[n]: elements start .. start+n-1 of the stream of `keys`."""
    a, b = _absorb(keys)
    at = np.arange(n, dtype=np.uint64) + np.uint64(start & _MASK)
    return _mixed(_mixed(at * np.uint64(_GAMMA) + np.uint64(a)) ^ np.uint64(b))


def uniform(keys: Sequence[int], n: int, start: int = 0) -> npt.NDArray[np.float64]:
    """float64[n] in [0, 1), multiples of 2^-53: elements start .. start+n-1 of the stream of `keys`."""
    return (words(keys, n, start) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(keys: Sequence[int], n: int, high: int, start: int = 0) -> npt.NDArray[np.int64]:
    """int64[n], uniform in [0, high), high at most 2^53; probabilities are off by less than high / 2^53 (relative)."""
    if high < 1:
        raise ValueError(f"high is {high}; at least 1 was expected")
    return (uniform(keys, n, start) * high).astype(np.int64)


def hashed(keys: Sequence[int], values: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """float64[n], uniform in [0, 1): element i depends on `keys` and values[i] only."""
    a, b = _absorb(keys)
    return (_mixed(_mixed(values ^ np.uint64(a)) ^ np.uint64(b)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(keys: Sequence[int], n: int) -> npt.NDArray[np.int64]:
    """int64[n]: a permutation of 0 .. n-1."""
    return np.argsort(words(keys, n), kind="stable").astype(np.int64)


def shuffled(keys: Sequence[int], n: int, i: int) -> int:
    """Element i of a permutation of 0 .. n-1, computed without the others: a Feistel network of six rounds over the
    next power of four, iterated until the result is below n (cycle walking; Black & Rogaway 2002, section 4)."""
    if not 0 <= i < n:
        raise ValueError(f"there is no element {i} in a permutation of {n}")
    a, b = _absorb(keys)
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = i >> half, i & low
        for turn in range(6):
            left, right = right, left ^ (_mix((right + turn * _GAMMA & _MASK) ^ a) + b >> 7 & low)
        i = left << half | right
        if i < n:
            return i


def generator(*keys: int) -> np.random.Generator:
    """A numpy generator (Philox) keyed by `keys`, for an unknown number of draws."""
    return np.random.Generator(np.random.Philox(key=np.array(_absorb(keys), dtype=np.uint64)))
