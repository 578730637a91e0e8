"""Rewards by name, as what best-of-n, rejection sampling and reports score answers with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stemma.alignment.best import Prompt, Score
from stemma.alignment.rewards import (
    BUILTIN,
    Asked,
    FunctionScorer,
    Rewards,
    Scorer,
    VerifierScorer,
    checked,
    is_function,
)
from stemma.errors import UsageError


@contextlib.contextmanager
def scoring(sources: Sequence[str]) -> Iterator[Score]:
    """The sum of rewards, each `FILE.py:name`, a folder of a reward model, or `builtin:NAME`. Raises UsageError for one
    that is none, and where none is given."""
    if not sources:
        raise UsageError("answers are scored by rewards, and none was given: --reward FILE.py:NAME or builtin:NAME")
    rewards = Rewards([_scorer(checked(source)) for source in sources], [1.0] * len(sources))

    def score(asked: Sequence[Prompt], answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Sequence[float]:
        given = [Asked(one.text, answer, row) for one, answer, row in zip(asked, answers, rows, strict=True)]
        return rewards.scores(given).totals

    try:
        yield score
    finally:
        rewards.close()


def _scorer(source: str) -> Scorer:
    if source.startswith(BUILTIN):
        return VerifierScorer(source)
    if is_function(source):
        return FunctionScorer(source)
    raise UsageError(f"the reward {source} is a folder, and only functions and verifiers judge answers so far")
