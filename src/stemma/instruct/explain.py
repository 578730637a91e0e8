"""Explanations that a teacher writes for queries (Orca, Mukherjee et al. 2023, arXiv:2306.02707): what a smaller model
learns in the place of bare answers.

OUT/rows.jsonl     system, question, answer (the teacher's), and where the query is from
OUT/state.json     the plan, how far it is, and what was left out, by reason
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stemma.conversations import Turn
from stemma.data import random as draw
from stemma.instruct.ledger import RowMaker
from stemma.instruct.queries import PURPOSE, Query, chosen
from stemma.instruct.writers import Answerer, Sampling

ANSWER = 3  # of the draws


@dataclass(frozen=True)
class Plan:
    """Which queries `teacher` is asked, `round` at a time, and how it answers. `count`: of them; None: all that may be
    asked. `queries`: what tells them from others."""

    teacher: str
    queries: str
    count: int | None = None
    seed: int = 1
    tokens: int = 512
    temperature: float = 0.0
    round: int = 8


def digest(found: Sequence[Query]) -> str:
    """What tells these queries from others."""
    held = json.dumps([asdict(one) for one in found], ensure_ascii=False)
    return hashlib.blake2b(held.encode(), digest_size=8).hexdigest()


def counted(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How many rows there are of each sub-collection, and of each system message."""
    for name, column in (("sub-collections", "collection"), ("system messages", "message")):
        amounts = sorted(Counter(row[column] for row in rows).items())
        yield f"{name}: {', '.join(f'{key} {n:,}' for key, n in amounts) or 'none'}"


class Explanations(RowMaker):
    """The answers of a teacher in the folder `out`. An answer that is empty or was cut is left out and counted, and so
    is a query that is too long for the teacher. Raises UsageError if the folder holds those of another plan."""

    def __init__(self, plan: Plan, teacher: Answerer, found: Sequence[Query], out: str | Path) -> None:
        self.plan, self.teacher = plan, teacher
        super().__init__(out, asdict(plan), chosen(found, plan.count, plan.seed), plan.round)

    def round(self, first: int, items: Sequence[Query]) -> list[dict[str, Any]]:
        plan, counts = self.plan, self.progress.counts
        talks = [[*([Turn("system", one.system)] if one.system else []), Turn("user", one.text)] for one in items]
        seeds = draw.integers((plan.seed, PURPOSE, ANSWER), len(items), 2**31, start=first).tolist()
        answers = self.teacher.answer(talks, Sampling(plan.tokens, plan.temperature), seeds)
        new = []
        for one, answer in zip(items, answers, strict=True):
            if not answer.fits:
                counts["too long for the teacher"] += 1
            elif not answer.text.strip():
                counts["empty"] += 1
            elif not answer.whole:
                counts["cut"] += 1
            else:
                new.append(self._row(one, answer.text.strip()))
        return new

    def _row(self, one: Query, answer: str) -> dict[str, Any]:
        return {
            "system": one.system or "", "question": one.text, "answer": answer, "right": one.right,
            "collection": one.collection, "task": one.task, "message": one.number, "teacher": self.plan.teacher,
        }  # fmt: skip
