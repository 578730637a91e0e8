"""The loop of self-instruct: rounds of prompts, each committed whole, so that a stopped one goes on where it was.

OUT/tasks.jsonl    rows of instruction, input and output, as `stemma tune alpaca` reads them
OUT/state.json     the plan, how far it is, and what was left out, by reason
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stemma import disk
from stemma.data import random as draw
from stemma.data import read
from stemma.data.files import ROWS
from stemma.errors import DataError
from stemma.instruct import tasks
from stemma.instruct.ledger import Ledger
from stemma.instruct.novel import LIMIT, Novel
from stemma.instruct.tasks import Task
from stemma.instruct.writers import Sampling, TextWriter

PURPOSE = 0x5E1F  # of the draws
IDLE = 20  # rounds without a new task, after which there will be none
SHOWN = 3  # seeds in front of a list
HUMAN, MACHINE = 6, 2  # tasks in front of new instructions: seeds, and tasks that were made
STATE = {"round": int, "kept": int, "counts": {str: int}}
LISTS = Sampling(3072, 1.0, 1.0)  # Alpaca's
STEPS = Sampling(1024, 0.7, 0.5)  # self-instruct's


@dataclass(frozen=True)
class Plan:
    """What is made: `count` tasks by `writer`, with `prompts` a round; `at_once`: whole tasks in lists, as Alpaca's, or
    instructions first, then their examples; `limit`: of ROUGE-L."""

    writer: str
    seeds: str
    count: int
    at_once: bool = True
    seed: int = 1
    prompts: int = 5
    limit: float = LIMIT


@dataclass
class Progress:
    """How far it is: rounds, tasks kept, and how many others there were, by reason."""

    round: int = 0
    kept: int = 0
    counts: Counter[str] = field(default_factory=Counter)


def seeds(spec: str) -> list[Task]:
    """The seed tasks that a name of rows stands for. Raises DataError for a row that is none, and for fewer than 3."""
    found = [tasks.seed(json.loads(d.text), d.name) for d in read(spec, field=ROWS).documents()]
    if len(found) < SHOWN:
        raise DataError(f"{spec} holds {len(found)} seed tasks; at least {SHOWN} are needed")
    return found


class Bootstrap:
    """Tasks made from seeds in the folder `out`. Raises UsageError if it holds those of another plan."""

    def __init__(self, plan: Plan, writer: TextWriter, out: str | Path) -> None:
        self.plan, self.writer, self.out = plan, writer, Path(out)
        self.ledger = Ledger(out, "tasks.jsonl", {k: v for k, v in asdict(plan).items() if k != "count"})
        self.seeds = seeds(plan.seeds)
        self.progress, self.made = Progress(), list[Task]()
        self._restore()
        self.novel = self._known()

    @property
    def rows(self) -> Path:
        """Where the tasks are."""
        return self.ledger.rows

    def _known(self) -> Novel:
        found = Novel(self.plan.limit)
        for task in (*self.seeds, *self.made):
            found.add(task.instruction)
        return found

    def _restore(self) -> None:
        if (held := self.ledger.restored(STATE)) is None:
            return
        state, rows = held
        self.made += [tasks.seed(row, f"{self.rows}:{number}") for number, row in enumerate(rows, 1)]
        self.progress = Progress(state["round"], state["kept"], Counter(state["counts"]))

    def run(self, said: Callable[[Progress], None] = lambda _: None) -> Progress:
        """Take rounds until there are as many tasks as were asked for. Raises DataError after many rounds without a
        new one; what there is is kept."""
        idle = 0
        with disk.lock(self.out):
            while self.progress.kept < self.plan.count:
                found = self._lists() if self.plan.at_once else self._steps()
                found = found[: self.plan.count - self.progress.kept]
                self._commit(found)
                if len(self.novel.texts) != len(self.seeds) + len(self.made):  # of some instructions nothing came
                    self.novel = self._known()
                said(self.progress)
                idle = 0 if found else idle + 1
                if idle == IDLE:
                    why = ", ".join(f"{n} {reason}" for reason, n in self.progress.counts.most_common(3))
                    raise DataError(f"{IDLE} rounds in a row gave no new task ({why}); {self.progress.kept} are kept")
        return self.progress

    def _commit(self, found: Sequence[Task]) -> None:
        self.made += found
        progress = self.progress
        progress.round, progress.kept = progress.round + 1, progress.kept + len(found)
        state = {"round": progress.round, "kept": progress.kept, "counts": dict(progress.counts)}
        self.ledger.commit([task.row for task in found], state, asdict(self.plan))

    # ------------------------------------------------------------ one round

    def _chosen(self, those: Sequence[Task], number: int, prompt: int, kind: int) -> list[Task]:
        keys = (self.plan.seed, PURPOSE, self.progress.round, prompt, kind)
        return [those[i] for i in draw.permutation(keys, len(those))[:number]]

    def _written(self, prompts: Sequence[str], how: Sampling, kind: int) -> list[tuple[str, bool]]:
        keys = (self.plan.seed, PURPOSE, self.progress.round, kind)
        numbers = draw.integers(keys, len(prompts), 2**31).tolist()
        return [(c.text, c.whole) for c in self.writer.write(prompts, how, numbers)]

    def _is_new(self, instruction: str) -> bool:
        """Whether an instruction is kept; if not, it is counted, and if so, no later one may be like it."""
        counts = self.progress.counts
        if (why := tasks.why_not(instruction)) is not None:
            counts[why] += 1
            return False
        if self.novel.alike(instruction)[0] > self.plan.limit:
            counts["like another"] += 1
            return False
        self.novel.add(instruction)
        return True

    def _lists(self) -> list[Task]:
        shown = [self._chosen(self.seeds, SHOWN, i, 0) for i in range(self.plan.prompts)]
        how = Sampling(LISTS.tokens, LISTS.temperature, LISTS.top_p, tasks.list_stops())
        found: list[Task] = []
        for text, whole in self._written([tasks.list_prompt(some) for some in shown], how, 0):
            listed = tasks.listed(text, SHOWN + 1, whole)
            self.progress.counts["answers without a task"] += not listed
            for task in listed:
                if not task.output:
                    self.progress.counts["no output"] += 1
                elif self._is_new(task.instruction):
                    found.append(task)
        return found

    def _steps(self) -> list[Task]:
        asked = []
        for i in range(self.plan.prompts):
            made = self._chosen(self.made, MACHINE, i, 1)
            asked.append([*self._chosen(self.seeds, HUMAN + MACHINE - len(made), i, 0), *made])
        new: list[str] = []
        how = Sampling(STEPS.tokens, STEPS.temperature, STEPS.top_p, ("\n\n",))
        prompts = [tasks.instructions_prompt(some) for some in asked]
        for some, (text, whole) in zip(asked, self._written(prompts, how, 0), strict=True):
            new += [one for one in tasks.instructions(text, len(some) + 1, whole) if self._is_new(one)]
        by_kind = {kind: [t for t in self.seeds if bool(t.labels) is kind] for kind in (True, False)}
        mixed = [*by_kind[True][:HUMAN], *by_kind[False][:HUMAN]]
        answers = self._written([tasks.kind_prompt(mixed, one) for one in new], Sampling(3, 0.0, 1.0, ("\n",)), 1)
        kinds = [tasks.is_labels(text) for text, _ in answers]
        prompts = [
            tasks.example_prompt((by_kind[kind] or self.seeds)[:HUMAN], one, kind)
            for one, kind in zip(new, kinds, strict=True)
        ]
        answered = self._written(prompts, Sampling(300, 0.0, 1.0, ("\n\nTask:",)), 2)
        found = [
            tasks.example(one, text, kind, whole) for one, kind, (text, whole) in zip(new, kinds, answered, strict=True)
        ]
        self.progress.counts["no example"] += found.count(None)
        return [task for task in found if task is not None]
