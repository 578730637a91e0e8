"""Rewards by name, as what best-of-n, rejection sampling and reports score answers with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stemma.alignment import rewards
from stemma.alignment.best import Prompt


class Scoring:
    """The sum of rewards. `fingerprints`: what tells each from another one by its name; "" of what cannot change."""

    def __init__(self, sources: Sequence[str]) -> None:
        declared = [rewards.declared(source) for source in sources]
        self.fingerprints = tuple(one.fingerprint for one in declared)
        self.held = rewards.of(declared, rewards.SECONDS)

    def __call__(
        self, asked: Sequence[Prompt], answers: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> Sequence[float]:
        given = [rewards.RewardInput(one.text, text, row) for one, text, row in zip(asked, answers, rows, strict=True)]
        return self.held.scores(given).totals


@contextlib.contextmanager
def scoring(sources: Sequence[str]) -> Iterator[Scoring]:
    """The sum of rewards, each as `stemma align --reward` names it. Raises UsageError for one that is none, and where
    none is given."""
    made = Scoring(sources)
    try:
        yield made
    finally:
        made.held.close()
