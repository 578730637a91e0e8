"""Metrics of numbers, by scipy and scikit-learn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from stemma.errors import require


def measured(truth: Sequence[float], found: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's correlation (0 where all numbers are equal) and the root of the mean squared error."""
    require("sklearn", "measuring numbers", "'stemma-lm[tune]'")
    from scipy import stats
    from sklearn import metrics

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant numbers
        pearson = float(stats.pearsonr(truth, found).statistic) if len(truth) > 1 else 0.0
        spearman = float(stats.spearmanr(truth, found).statistic) if len(truth) > 1 else 0.0
    return {
        "pearson": pearson if math.isfinite(pearson) else 0.0,
        "spearman": spearman if math.isfinite(spearman) else 0.0,
        "rmse": float(metrics.root_mean_squared_error(truth, found)),
    }
