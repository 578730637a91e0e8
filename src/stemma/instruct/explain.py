"""Explanations that a teacher writes for queries (Orca, Mukherjee et al. 2023, arXiv:2306.02707): what a smaller model
learns in the place of bare answers.

OUT/rows.jsonl     system, question, answer (the teacher's), and where the query is from
OUT/state.json     the plan, how far it is, and what was left out, by reason
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stemma import disk
from stemma.conversations import Turn
from stemma.data import random as draw
from stemma.instruct.ledger import Ledger
from stemma.instruct.queries import PURPOSE, Query, chosen
from stemma.instruct.writers import Answerer, Sampling

ANSWER = 3  # of the draws
STATE = {"asked": int, "kept": int, "counts": {str: int}}


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


@dataclass
class Progress:
    """How far it is: queries asked, answers kept, and how many others there were, by reason."""

    asked: int = 0
    kept: int = 0
    counts: Counter[str] = field(default_factory=Counter)


def digest(found: Sequence[Query]) -> str:
    """What tells these queries from others."""
    held = json.dumps([asdict(one) for one in found], ensure_ascii=False)
    return hashlib.blake2b(held.encode(), digest_size=8).hexdigest()


def counted(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How many rows there are of each sub-collection, and of each system message."""
    for name, column in (("sub-collections", "collection"), ("system messages", "message")):
        amounts = sorted(Counter(row[column] for row in rows).items())
        yield f"{name}: {', '.join(f'{key} {n:,}' for key, n in amounts) or 'none'}"


class Explanations:
    """The answers of a teacher in the folder `out`. Raises UsageError if it holds those of another plan."""

    def __init__(self, plan: Plan, teacher: Answerer, found: Sequence[Query], out: str | Path) -> None:
        self.plan, self.teacher = plan, teacher
        self.queries = chosen(found, plan.count, plan.seed)
        self.ledger = Ledger(out, "rows.jsonl", asdict(plan))
        self.progress, self.made = Progress(), list[dict[str, Any]]()
        if (held := self.ledger.restored(STATE)) is not None:
            state, self.made = held
            self.progress = Progress(state["asked"], state["kept"], Counter(state["counts"]))

    @property
    def rows(self) -> Path:
        """Where the rows are."""
        return self.ledger.rows

    def run(self, said: Callable[[Progress], None] = lambda _: None) -> Progress:
        """Ask for what is left. An answer that is empty or was cut is left out and counted, and so is a query that is
        too long for the teacher."""
        with disk.lock(self.ledger.out):
            while self.progress.asked < len(self.queries):
                self._round()
                said(self.progress)
        return self.progress

    def _round(self) -> None:
        plan, done = self.plan, self.progress
        those = self.queries[done.asked : done.asked + plan.round]
        talks = [[*([Turn("system", one.system)] if one.system else []), Turn("user", one.text)] for one in those]
        seeds = draw.integers((plan.seed, PURPOSE, ANSWER), len(those), 2**31, start=done.asked).tolist()
        answers = self.teacher.answer(talks, Sampling(plan.tokens, plan.temperature), seeds)
        new = []
        for one, answer in zip(those, answers, strict=True):
            if not answer.fits:
                done.counts["too long for the teacher"] += 1
            elif not answer.text.strip():
                done.counts["empty"] += 1
            elif not answer.whole:
                done.counts["cut"] += 1
            else:
                new.append(self._row(one, answer.text.strip()))
        done.asked, done.kept = done.asked + len(those), done.kept + len(new)
        self.ledger.commit(new, {"asked": done.asked, "kept": done.kept, "counts": dict(done.counts)})
        self.made += new

    def _row(self, one: Query, answer: str) -> dict[str, Any]:
        return {
            "system": one.system or "", "question": one.text, "answer": answer, "right": one.right,
            "collection": one.collection, "task": one.task, "message": one.number, "teacher": self.plan.teacher,
        }  # fmt: skip
