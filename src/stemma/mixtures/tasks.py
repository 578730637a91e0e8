"""A task as a value: its cluster, its templates, and where its examples come from."""

from __future__ import annotations

import heapq
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stemma.data import random as draw
from stemma.errors import DataError, UsageError, brief

KEPT = 201  # key of the draw of the examples that a cap leaves
MOST_TURNED = 3  # templates of a task whose input and output are exchanged, at most (Wei et al. 2021, section 2.1)
OPTIONS = "options"
FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    """A way to ask: `prompt` and `completion` with names of fields in braces. What there is to choose from stands in
    the place of `{options}`, with the end of a line behind it, or at the end of a prompt without that. `turned`: input
    and output are exchanged, so there is nothing to choose from."""

    prompt: str
    completion: str = "{answer}"
    turned: bool = False

    def fields(self) -> set[str]:
        """The names of fields in it."""
        return {*FIELD.findall(self.prompt + self.completion)} - {OPTIONS}

    def written(self, fields: Mapping[str, str]) -> tuple[str, str]:
        """(prompt, completion) of an example."""
        prompt, completion = (FIELD.sub(lambda m: fields[m[1]], text) for text in (self.prompt, self.completion))
        return prompt, completion


@dataclass(frozen=True)
class Example:
    """The `fields` of an example, the answer among them, and the `options` that the answer is one of, if any."""

    fields: Mapping[str, str]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """`rows`: reads the task's rows anew; `columns`: of the fields, where they have other names; `constants`: fields
    that are the same for all rows (the languages of a translation); `answers`: how values of the answer's column are
    called (`{"0": "yes"}`); `options`: the texts to choose from, or the name of a column with a list of them.
    `inverted`: templates of the sub-mixture that asks for the input."""

    name: str
    cluster: str
    collection: str
    templates: tuple[Template, ...]
    rows: Callable[[], Iterable[Mapping[str, Any]]]
    inverted: tuple[Template, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] | str = ()

    def __post_init__(self) -> None:
        if not self.templates:
            raise UsageError(f"task {self.name} has no template")
        if (turned := sum(t.turned for t in self.templates)) > MOST_TURNED:
            raise UsageError(
                f"task {self.name} has {turned} templates that are turned around; at most {MOST_TURNED} may be"
            )

    def fields(self) -> set[str]:
        """The names that its templates read."""
        return {name for template in (*self.templates, *self.inverted) for name in template.fields()}

    def example(self, row: Mapping[str, Any]) -> Example:
        """The example of a row. Raises DataError for a row that lacks a field, and for an answer that is no option."""
        found = dict(self.constants)
        for name in sorted(self.fields() - found.keys()):
            column = self.columns.get(name, name)
            if column not in row:
                there = ", ".join(map(brief, row)) or "none"
                raise DataError(f"it has no column {column!r} for {name!r} (its columns: {there})")
            value = row[column]
            if isinstance(value, bool):
                value = str(value).lower()
            if not isinstance(value, str | int | float) or not str(value).strip():
                raise DataError(f"its column {column!r} holds {brief(value)}, and a text was expected")
            found[name] = str(value)
        if "answer" in found:
            found["answer"] = self.answers.get(found["answer"], found["answer"])
        return Example(found, self._options(row, found.get("answer", "")))

    def _options(self, row: Mapping[str, Any], answer: str) -> tuple[str, ...]:
        options = self.options
        if isinstance(options, str):
            listed = row.get(options)
            if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
                raise DataError(f"its column {options!r} holds {brief(listed)}, and a list of texts was expected")
            options = tuple(listed)
        if options and answer not in options:
            raise DataError(f"its answer is {brief(answer)}, and none of the options ({', '.join(options)})")
        return options


@dataclass(frozen=True)
class Held:
    """The examples of a task that are drawn from: at most its cap. `rows`: how many there are in all; `wrong`: how many
    could not be read; `first_wrong`: what is wrong with the first of them."""

    task: Task
    examples: tuple[Example, ...]
    rows: int
    wrong: int = 0
    first_wrong: str = ""


def held(task: Task, cap: int, seed: int) -> Held:
    """At most `cap` examples of a task, each as likely as any other, in the order of its rows. No more than that are in
    memory at a time. Raises DataError if no row can be read."""
    number = wrong = 0
    first = ""
    kept: list[tuple[float, int, Example]] = []
    keys = (seed, KEPT, number_of(task.name))
    for place, row in enumerate(task.rows()):
        try:
            example = task.example(row)
        except DataError as error:
            wrong, first = wrong + 1, first or f"row {place + 1}: {error}"
            continue
        number += 1
        luck = -float(draw.hashed(keys, np.array([place], np.uint64))[0])
        if len(kept) < cap:
            heapq.heappush(kept, (luck, -place, example))
        elif luck > kept[0][0]:
            heapq.heapreplace(kept, (luck, -place, example))
    if not kept:
        raise DataError(f"task {task.name} has no row that can be read" + (f" ({first})" if first else ""))
    kept.sort(key=lambda one: -one[1])
    return Held(task, tuple(example for _, _, example in kept), number, wrong, first)


def number_of(name: str) -> int:
    """A number for a name, the same in every process."""
    return zlib.crc32(name.encode("utf-8", "replace"))
