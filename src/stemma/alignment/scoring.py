"""Rewards by name, as what best-of-n, rejection sampling and reports score answers with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stemma.alignment import rewards
from stemma.alignment.best import Prompt, Score


@contextlib.contextmanager
def scoring(sources: Sequence[str]) -> Iterator[Score]:
    """The sum of rewards, each as `stemma align --reward` names it. Raises UsageError for one that is none, and where
    none is given."""
    held = rewards.of([rewards.declared(source) for source in sources], rewards.SECONDS)

    def score(asked: Sequence[Prompt], answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Sequence[float]:
        given = [rewards.Asked(one.text, text, row) for one, text, row in zip(asked, answers, rows, strict=True)]
        return held.scores(given).totals

    try:
        yield score
    finally:
        held.close()
