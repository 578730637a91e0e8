"""How far a metric would move if other examples had been drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

DRAWS = 500


def intervals(
    measure: Callable[[list[int]], Mapping[str, float]], count: int, draws: int = DRAWS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Of each metric the interval that holds 95 % of its values over `draws` samples of the examples, each of `count`
    drawn with replacement (Efron & Tibshirani 1993, section 13.3: percentiles)."""
    random = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(draws):
        for name, value in measure(random.integers(count, size=count).tolist()).items():
            found.setdefault(name, []).append(value)
    ends = {name: np.percentile(values, [2.5, 97.5]) for name, values in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}
