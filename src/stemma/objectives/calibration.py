"""How good scores of compared answers are: whether the better one has the higher score, and how sure that is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stemma.conversations.comparisons import Pair

WORST = 20  # pairs that a report shows
BINS = 10  # of probabilities
FOURTHS = (0.25, 0.5, 0.75)


class Judged(NamedTuple):
    """A pair that is no tie, and by how much the better answer's score is above the other's."""

    pair: Pair
    gap: float


def right(gaps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 where the better answer has the higher score, one half where both have the same."""
    return np.asarray(np.where(gaps == 0, 0.5, gaps > 0), dtype=np.float64)


def measured(pairs: Sequence[Judged]) -> dict[str, float]:
    """`accuracy`: the share of pairs in order; `margin`: the mean gap of their scores; `ece`: the expected calibration
    error (Guo et al. 2017, arXiv:1706.04599) of the probability sigmoid(gap) that a model gives to its choice;
    `accuracy_grade1` to 4: of the pairs of a grade, the clearest first."""
    if not pairs:
        return {}
    gaps = _gaps(pairs)
    found = {"accuracy": float(right(gaps).mean()), "margin": float(gaps.mean())}
    bins = reliability(gaps)
    found["ece"] = float(sum(b["pairs"] * abs(b["right"] - b["sure"]) for b in bins) / len(gaps))
    for grade in sorted({p.pair.grade for p in pairs if p.pair.grade is not None}):
        found[f"accuracy_grade{grade + 1}"] = float(right(_gaps([p for p in pairs if p.pair.grade == grade])).mean())
    return found


def reliability(gaps: npt.NDArray[np.float64]) -> list[dict[str, float]]:
    """Pairs by the probability that the model gives to its choice, from 0.5 to 1, in equal bins: in each the number of
    `pairs`, the mean probability (`sure`) and the share where the choice is `right`."""
    sure = 1 / (1 + np.exp(-np.abs(gaps)))
    places = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    return [
        {
            "pairs": int((places == k).sum()),
            "sure": float(sure[places == k].mean()),
            "right": float(right(gaps[places == k]).mean()),
        }
        for k in range(BINS)
        if bool((places == k).any())
    ]


def tables(pairs: Sequence[Judged], grades: Sequence[str]) -> dict[str, Any]:
    """What a report shows of pairs: `calibration`, and the accuracy by `grade` and by fourths of the `gaps` between the
    numbers that answers were judged by, where rows have such."""
    found: dict[str, Any] = {"calibration": reliability(_gaps(pairs))} if pairs else {}
    graded = {g: [p for p in pairs if p.pair.grade == k] for k, g in enumerate(grades)}
    if rows := [_row(name, some) for name, some in graded.items() if some]:
        found["grades"] = rows
    gapped = [p for p in pairs if p.pair.gap is not None]
    if gapped:
        ends = sorted({float(q) for q in np.quantile([p.pair.gap or 0.0 for p in gapped], FOURTHS)})
        ranges = list(itertools.pairwise([0.0, *ends, math.inf]))
        names = [f"over {a:.3g}" + (f" to {b:.3g}" if b < math.inf else "") for a, b in ranges]
        parts = [[p for p in gapped if a < (p.pair.gap or 0.0) <= b] for a, b in ranges]
        found["gaps"] = [_row(name, some) for name, some in zip(names, parts, strict=True) if some]
    return found


def _row(name: str, some: Sequence[Judged]) -> dict[str, Any]:
    return {"name": name, "pairs": len(some), "accuracy": float(right(_gaps(some)).mean())}


def _gaps(pairs: Sequence[Judged]) -> npt.NDArray[np.float64]:
    return np.asarray([p.gap for p in pairs], dtype=np.float64)
