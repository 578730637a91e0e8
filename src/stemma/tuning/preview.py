"""What is printed before a run of tuning: the columns that are read, and examples as the model will see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from stemma import disk
from stemma.declare.tasks import RowObjective, RowTask
from stemma.errors import DataError
from stemma.tasks.base import Reader, reader
from stemma.tasks.columns import KNOWN
from stemma.tasks.encoder import first
from stemma.train.config import Plan
from stemma.train.start import inspect

SHOWN = 3  # examples
LONGEST = 600  # characters of one
LOOKED_AT = 20  # rows that examples are looked for among


def lines(task: RowTask, rows: Sequence[Mapping[str, Any]], read: Reader) -> list[str]:
    """The columns of a task, and its first rows that can be learnt from, targets between « and »."""
    known = KNOWN.get(type(task), {})
    columns = [f"{f.name} is column {getattr(task, f.name)!r}" for f in fields(task) if f.name in known]
    examples: list[str] = []
    for row in rows:
        if len(examples) == SHOWN:
            break
        try:
            examples.append(_short(read.shown(row)))
        except DataError:
            continue
    if not examples:  # reading the data will say what is wrong with them
        return columns
    columns.append(f"{len(examples)} examples as the model sees them, «what it learns»")
    head = f"{task.word}: " + ", ".join(columns)
    return [head, *(f"  {number}  " + text.replace("\n", "\n     ") for number, text in enumerate(examples, 1))]


def _short(text: str) -> str:
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


def tell(task: RowTask, rows: Sequence[Mapping[str, Any]], read: Reader) -> None:
    """Print these lines."""
    for line in lines(task, rows, read):
        disk.tell(line)


def tell_plan(plan: Plan) -> None:
    """Print these lines of the rows that a plan begins with, if it learns from rows."""
    if isinstance(plan.objective, RowObjective):
        task, found = plan.objective.task, first(plan.data, LOOKED_AT)[0]
        tell(task, found, reader(task, inspect(plan)[0], plan.context, plan.arch.structure))
