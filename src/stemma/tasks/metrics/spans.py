"""Exact match and F1 of answers, as SQuAD's published script measures them (Rajpurkar et al. 2016, section 6.1)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
MARKS = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
    """Lower-case words without punctuation and articles."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(MARKS)).split())


def exact(truth: str, found: str) -> float:
    """1 if the answers are the same words."""
    return float(plain(truth) == plain(found))


def overlap(truth: str, found: str) -> float:
    """F1 of the words that two answers share; of an empty answer, whether both are."""
    a, b = plain(truth).split(), plain(found).split()
    if not a or not b:
        return float(a == b)
    shared = sum((Counter(a) & Counter(b)).values())
    return 2 * shared / (len(a) + len(b))


def measured(truth: Sequence[Sequence[str]], found: Sequence[str]) -> dict[str, float]:
    """Exact match and F1, of each answer with the right one that it fits best. A question without an answer has none
    in `truth`, and "" is right."""
    pairs = [(right or [""], one) for right, one in zip(truth, found, strict=True)]
    count = max(1, len(pairs))
    return {
        "exact": sum(max(exact(r, one) for r in right) for right, one in pairs) / count,
        "f1": sum(max(overlap(r, one) for r in right) for right, one in pairs) / count,
    }
