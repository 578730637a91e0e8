"""Which share of a mixture each task has: examples-proportional with caps, within proportions of collections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stemma.errors import UsageError
from stemma.mixtures.forms import Form


@dataclass(frozen=True)
class Part:
    """A collection of tasks in a mixture. `share`: of the mixture (None: by its examples, as those of other parts);
    `cap`: the most examples of a task that count; `forms`: with their shares; `inverted`: rate of rows that ask for the
    input, where those that ask for the answer have 1; `tasks`: how many were published; `without`: words in the names
    of tasks that are left out."""

    collection: str
    share: float | None
    cap: int
    forms: tuple[tuple[Form, float], ...]
    inverted: float = 0.0
    tasks: int | None = None
    without: tuple[str, ...] = ()

    def shares(self, invertible: bool) -> dict[Form, float]:
        """The share of each form; `invertible`: the task has templates that ask for the input."""
        rate = self.inverted if invertible else 0.0
        found = {form: share / (1 + rate) for form, share in self.forms}
        if rate:
            found |= {Form(form.few, False, True): share * rate / (1 + rate) for form, share in self.forms}
        return found


@dataclass(frozen=True)
class Mixture:
    """`maximum`: no task has a higher rate than one with so many examples (Raffel et al. 2019, section 3.5.2);
    `tokens`: of a few-shot prompt at most, of the published length of inputs `inputs`."""

    name: str
    about: str
    parts: tuple[Part, ...]
    maximum: int | None = None
    tokens: int = 1920
    inputs: int = 2048
    targets: int = 512

    def part(self, collection: str) -> Part:
        """The part of a collection. Raises UsageError if the mixture has none."""
        for part in self.parts:
            if part.collection == collection:
                return part
        known = ", ".join(part.collection for part in self.parts)
        raise UsageError(f"{self.name} has no tasks of the collection {collection!r}; it has {known}")


def capped(mixture: Mixture, part: Part, examples: int) -> int:
    """The examples of a task that count: caps come first, rates follow from what they leave."""
    return min(examples, part.cap, mixture.maximum or part.cap)


def rates(mixture: Mixture, sizes: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """The share of each task in the rows of a mixture; they sum to 1. `sizes`: examples of each task, by collection. In
    a collection a task has the share of its examples, as far as they count; collections that are not there leave their
    share to the others. Raises UsageError for collections that the mixture has not."""
    counts = {
        collection: {name: capped(mixture, mixture.part(collection), n) for name, n in tasks.items()}
        for collection, tasks in sizes.items()
        if tasks
    }
    every = sum(sum(tasks.values()) for tasks in counts.values())
    found: dict[str, float] = {}
    for collection, tasks in counts.items():
        own = sum(tasks.values())
        share = mixture.part(collection).share
        share = own / every if share is None else share
        found |= {name: share * n / own for name, n in tasks.items()}
    total = sum(found.values())
    return {name: share / total for name, share in found.items()}
