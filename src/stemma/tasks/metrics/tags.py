"""Metrics of tagged spans, by seqeval."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from stemma.errors import require


def measured(truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole spans, and the accuracy of tags (CoNLL's measure; Ramshaw & Marcus 1995)."""
    require("seqeval", "measuring tags", "'stemma-lm[tune]'")
    from seqeval import metrics

    a, b = [list(row) for row in truth], [list(row) for row in found]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of spans that nobody finds, and tags without a prefix
        return {
            "precision": float(metrics.precision_score(a, b, zero_division=0)),
            "recall": float(metrics.recall_score(a, b, zero_division=0)),
            "f1": float(metrics.f1_score(a, b, zero_division=0)),
            "accuracy": float(metrics.accuracy_score(a, b)),
        }
