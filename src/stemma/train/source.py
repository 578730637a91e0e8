"""Where the batches of a run come from, beside the objective that turns them into a loss."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from stemma.data.mixture import Mixed
from stemma.declare import ramps
from stemma.objectives import Batch, Cursor, Objective, Setting, View
from stemma.objectives import objective as runnable
from stemma.objectives.base import Example, MakeExample
from stemma.runs.length import Length
from stemma.train.config import Plan
from stemma.train.device import pick_device

MICRO = {"cpu": 4096, "cuda": 65_536}  # tokens that go through the network at once, where the plan leaves it open


def objective_of(plan: Plan, tokenizer: Any) -> Objective:
    """The objective of the plan."""
    recipe = plan.recipe
    more = (recipe.mixed, recipe.z_loss, recipe.sampling, plan.rows, plan.arch.structure)
    setting = Setting(tokenizer, plan.text, plan.context, plan.seed, *more)
    return runnable(plan.objective, setting)


def source_of(plan: Plan, objective: Objective, view: Any, folder: Path | None = None) -> Source:
    """The source of a plan's batches: the objective's own, or rows of text."""
    found: Source | None = objective.source(plan, view, folder)
    return found if found is not None else TextSource(plan, objective, view)


class DummyBatch(dict[str, Tensor]):
    """A batch of another rank, computed along to keep collectives in step. It counts no targets and gives no
    gradient."""


class Draw(NamedTuple):
    """The batches of one step: of each optimiser update this rank's micro-batches, the cursor of the next step, the
    tokens of the step over all ranks, and numbers for the record of the step (of what was sampled)."""

    updates: list[list[Batch]]
    cursor: Any
    tokens: int
    metrics: Mapping[str, float] = MappingProxyType({})


class Source(ABC):
    """Batches, step after step.

    A cursor is a small frozen dataclass (`cursor_type`) that names a place in the source. A checkpoint keeps its
    fields: from the same cursor, with the same weights, `draws` must give the same batches again. A step may hold
    several optimiser updates (epochs and minibatches of one rollout); a checkpoint never falls between them.

    `online`: the batches depend on the current weights, so they are made when their step begins and never ahead of it.
    `full`: examples of a full step; `micro`: examples that go through the network at once. `reader` of `readers`: the
    rank that takes its share of a step's examples. `length`: of the run, set by its loop.
    """

    length: Length
    cursor_type: type = Cursor
    online: bool = False

    def __init__(self, full: int, micro: int) -> None:
        self.full, self.micro = full, min(max(1, micro), full)
        self.reader, self.readers = 0, 1

    @abstractmethod
    def draws(self, cursor: Any, step: int) -> Iterator[Draw]:
        """The draws of the steps after `step` steps, from `cursor` on, without end."""

    def attach(self, loop: Any) -> None:
        """Take what the batches are made with from the loop that was built on this source: its model, its nets."""
        return

    def skip(self, cursor: Any, step: int, steps: int) -> Any:
        """The cursor behind the next `steps` draws."""
        for draw in itertools.islice(self.draws(cursor, step), steps):
            cursor = draw.cursor
        return cursor

    @property
    def limited(self) -> bool:
        """Whether it has batches for so many steps only."""
        return False

    def total(self, steps: int) -> int | None:
        """Tokens of a run of `steps` steps; None where only the run itself tells."""
        return None

    def sample(self) -> Batch | None:
        """A batch like those of the first step, from which the work of a step is estimated; None if there is none."""
        return None

    def save(self, cursor: Any) -> dict[str, Any]:
        """A cursor as JSON, for a checkpoint."""
        return asdict(cursor)

    def load(self, saved: dict[str, Any]) -> Any:
        """The cursor that `save` made JSON of."""
        return self.cursor_type(**saved)

    def share(self, reader: int, readers: int) -> None:
        """Make this rank `reader` of `readers`."""
        self.reader, self.readers = reader, readers
        self.micro = min(self.micro, -(-self.full // readers))

    def split(self, examples: Sequence[MakeExample], collate: Callable[[Sequence[Example]], Batch]) -> list[Batch]:
        """This rank's micro-batches of a step's `examples`. Every rank gets equally many: a DummyBatch fills up."""
        begin, end = (len(examples) * reader // self.readers for reader in (self.reader, self.reader + 1))
        own = [make() for make in examples[begin:end]]
        batches = [collate(own[i : i + self.micro]) for i in range(0, len(own), self.micro)]
        most = -(-len(examples) // self.readers)  # examples of the rank that has most
        for _ in range(-(-most // self.micro) - len(batches)):
            batches.append(DummyBatch(collate([examples[0]()])))
        return batches


class TextSource(Source):
    """Rows of text: the examples that `objective.lazy_examples` makes of the documents of `view`."""

    def __init__(self, plan: Plan, objective: Objective, view: View) -> None:
        self.size = objective.size(view)  # tokens of an example
        long = min(plan.context, -(-self.size // objective.rows))  # tokens of a row
        rows = plan.train.micro or max(1, MICRO[pick_device(plan).type] // long)
        super().__init__(objective.examples_of_step(plan), rows // objective.rows)
        self.objective, self.view, self.ramp = objective, view, plan.recipe.ramp
        self.length = Length(plan.recipe.steps or 1)

    def examples(self, step: int) -> int:
        """Examples of the step after `step` steps."""
        return ramps.examples(self.ramp, self.full, self.length.place(step), self.length.planned)

    @property
    def limited(self) -> bool:
        """Whether it is a mixture whose parts may be read so many times."""
        order = self.objective.order(self.view)
        return isinstance(order, Mixed) and order.mixture.slots is not None

    def draws(self, cursor: Any, step: int) -> Iterator[Draw]:
        rows = self.objective.lazy_examples(self.view, cursor)
        for number in itertools.count(step):
            taken = list(itertools.islice(rows, self.examples(number)))
            batches = self.split([make for make, _ in taken], self.objective.collate)
            yield Draw([batches], taken[-1][1], len(taken) * self.size)

    def skip(self, cursor: Any, step: int, steps: int) -> Any:
        """Without making the examples."""
        examples = sum(self.examples(step + i) for i in range(steps))
        skipped = [follow for _, follow in itertools.islice(self.objective.lazy_examples(self.view, cursor), examples)]
        return skipped[-1] if skipped else cursor

    def total(self, steps: int) -> int | None:
        if self.ramp is not None and self.length.changes:
            return self.size * sum(self.examples(step) for step in range(steps))
        return self.size * int(ramps.total(self.ramp, self.full, steps))

    def sample(self) -> Batch | None:
        """From the beginning of the text, wherever the run stands."""
        return self.objective.example_batch(self.view, min(8, self.examples(0)))
