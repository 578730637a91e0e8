"""Accuracy, calibration and tables of scored pairs, by hand; and their picture in a report."""

from __future__ import annotations

import math

import pytest

from stemma.conversations.comparisons import Pair
from stemma.declare.alignment import GRADES
from stemma.objectives.calibration import Judged, measured, tables
from stemma.report.rewards import rewards


def judged(gap: float, grade: int | None = None, apart: float | None = None) -> Judged:
    return Judged(Pair(0, 1, False, grade, None, apart), gap)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_how_sure_and_how_right() -> None:
    """Ten choices with a probability of 0.92, of which eight are right, and ten with 0.62, of which five are."""
    pairs = [judged(logit(0.92) * (1 if i < 8 else -1)) for i in range(10)]
    pairs += [judged(logit(0.62) * (1 if i < 5 else -1)) for i in range(10)]
    found = measured(pairs)
    assert found["accuracy"] == 0.65
    assert found["ece"] == pytest.approx(0.5 * (0.92 - 0.8) + 0.5 * (0.62 - 0.5))
    assert found["margin"] == pytest.approx(logit(0.92) * 0.3)
    low, high = tables(pairs, GRADES)["calibration"]
    assert low == {"pairs": 10, "sure": pytest.approx(0.62), "right": 0.5}
    assert high == {"pairs": 10, "sure": pytest.approx(0.92), "right": 0.8}
    assert measured([judged(0.0)]) == {"accuracy": 0.5, "margin": 0.0, "ece": 0.0} and measured([]) == {}


def test_accuracy_by_grade_and_by_the_gap_of_scores() -> None:
    pairs = [judged(1, 0), judged(1, 0), judged(-1, 2), judged(1, 2)]
    found = measured(pairs)
    assert (found["accuracy_grade1"], found["accuracy_grade3"]) == (1.0, 0.5) and "accuracy_grade2" not in found
    assert tables(pairs, GRADES)["grades"] == [
        {"name": "significantly better", "pairs": 2, "accuracy": 1.0}, {"name": "slightly better", "pairs": 2, "accuracy": 0.5},
    ]  # fmt: skip
    gapped = [judged(1 if i > 3 else -1, None, float(i)) for i in range(1, 9)]
    rows = tables(gapped, GRADES)["gaps"]
    assert [row["accuracy"] for row in rows] == [0, 0.5, 1, 1] and sum(row["pairs"] for row in rows) == 8


def test_the_picture_survives_any_summary() -> None:
    pairs = [judged(2, 0, 1.0), judged(-1, 1, 2.0)]
    page = rewards(tables(pairs, GRADES))
    assert page.count("<circle") == 2 and "Accuracy by grade" in page and "significantly better" in page
    for odd in ({}, {"calibration": 3}, {"calibration": [{"pairs": "many"}, 1], "grades": [{"name": "<b>"}]}, {"calibration": [{"pairs": 0, "sure": 1, "right": 1}]}):  # fmt: skip
        assert rewards(odd) == ""
    assert "<b>" not in rewards({"grades": [{"name": "<b>", "pairs": 1, "accuracy": 1}]})
