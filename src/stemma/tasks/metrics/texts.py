"""Metrics of texts that were written, by sacrebleu and rouge-score."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from stemma.errors import require

WHAT, WHERE = "measuring texts", "'stemma-lm[tune]'"
ROUGE = ("rouge1", "rouge2", "rougeL")


@functools.cache
def _tools() -> tuple[Any, Any, Any]:
    require("sacrebleu", WHAT, WHERE)
    require("rouge_score", WHAT, WHERE)
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    return BLEU(), CHRF(), RougeScorer(list(ROUGE))


@functools.lru_cache(maxsize=20_000)
def _counts(wanted: str, found: str) -> tuple[list[int], list[int], tuple[float, ...]]:
    """What a pair of texts adds to BLEU and chrF, and its F of each ROUGE: samples of the same pairs are measured many
    times."""
    bleu, chrf, rouge = _tools()
    sums = [metric._extract_corpus_statistics([found], [[wanted]])[0] for metric in (bleu, chrf)]
    scores = rouge.score(wanted, found)
    return sums[0], sums[1], tuple(scores[name].fmeasure for name in ROUGE)


def measured(wanted: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    """Share of texts that are exactly right, BLEU and chrF of the corpus (Papineni et al. 2002, Popovic 2015, as
    sacrebleu counts them, 0 to 100), and the mean F of ROUGE-1, -2 and -L (Lin 2004, 0 to 1)."""
    bleu, chrf, _ = _tools()
    pairs = [_counts(a, b) for a, b in zip(wanted, found, strict=True)]
    exact = [a.strip() == b.strip() for a, b in zip(wanted, found, strict=True)]
    count = max(1, len(pairs))
    return {
        "exact_match": sum(exact) / count,
        "bleu": float(bleu._aggregate_and_compute([p[0] for p in pairs]).score),
        "chrf": float(chrf._aggregate_and_compute([p[1] for p in pairs]).score),
        **{name: sum(p[2][i] for p in pairs) / count for i, name in enumerate(ROUGE)},
    }
