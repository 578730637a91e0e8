"""Metrics of labels, by scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from stemma.errors import require

WHAT = "measuring labels"


def single(truth: Sequence[int], found: Sequence[int]) -> dict[str, float]:
    """Accuracy, F1 (mean of the classes, and weighted by their share) and Matthews' correlation of labels."""
    require("sklearn", WHAT, "'stemma-lm[tune]'")
    from sklearn import metrics

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class that is never predicted
        return {
            "accuracy": float(metrics.accuracy_score(truth, found)),
            "f1_macro": float(metrics.f1_score(truth, found, average="macro", zero_division=0)),
            "f1_weighted": float(metrics.f1_score(truth, found, average="weighted", zero_division=0)),
            "mcc": float(metrics.matthews_corrcoef(truth, found)),
        }


def several(truth: npt.NDArray[Any], found: npt.NDArray[Any]) -> dict[str, float]:
    """The share of rows with exactly the right labels, and F1 over all decisions and as the mean of the labels. N L."""
    require("sklearn", WHAT, "'stemma-lm[tune]'")
    from sklearn import metrics

    return {
        "accuracy": float(metrics.accuracy_score(truth, found)),
        "f1_micro": float(metrics.f1_score(truth, found, average="micro", zero_division=0)),
        "f1_macro": float(metrics.f1_score(truth, found, average="macro", zero_division=0)),
    }


def right(truth: Sequence[int], found: Sequence[int]) -> dict[str, float]:
    """The share of right choices."""
    require("sklearn", WHAT, "'stemma-lm[tune]'")
    from sklearn import metrics

    return {"accuracy": float(metrics.accuracy_score(truth, found))}
