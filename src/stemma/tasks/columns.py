"""Which columns of rows hold what a task reads, where nobody names them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from stemma.declare.tasks import HeadTask, RowTask, WriteTask
from stemma.errors import UsageError, did_you_mean
from stemma.tasks import head_columns

# names of columns by field of a task, those that come first preferred
KNOWN: dict[type[RowTask], dict[str, tuple[str, ...]]] = {
    WriteTask: {
        "text": (
            "text", "source", "src", "document", "article", "input", "inputs", "prompt", "question", "instruction",
            "sentence", "dialogue", "context",
        ),
        "target": (
            "target", "targets", "tgt", "summary", "highlights", "translation", "output", "outputs", "answer",
            "response", "completion", "reference", "label",
        ),
    },
}  # fmt: skip
LOOKED_AT = 200  # rows whose columns are looked at


def named(task: RowTask, rows: Sequence[Mapping[str, Any]], without: Collection[str] = ()) -> RowTask:
    """`task` with the columns that nobody named, found by their names in `rows`. `without`: fields that need none.
    Raises UsageError for a column that no row has, and where no name is known."""
    if isinstance(task, HeadTask):
        return head_columns.named(task, rows[:LOOKED_AT], without)
    known = KNOWN.get(type(task), {})
    there = list(dict.fromkeys(name for row in rows[:LOOKED_AT] for name in row))
    found: dict[str, str] = {}
    for field in fields(task):
        if field.name not in known:
            continue
        given = getattr(task, field.name)
        if given and given not in there:
            hint = _columns(there) + did_you_mean(given, there)
            raise UsageError(f"no row has a column {given!r} for --{field.name}{hint}")
        found[field.name] = given or next((name for name in known[field.name] if name in there), "")
    found = {name: column for name, column in found.items() if column or name not in without}
    if missing := [name for name, column in found.items() if not column]:
        left = [column for column in there if column not in found.values()]
        if len(missing) == 1 and len(left) == 1:
            found[missing[0]] = left[0]
        elif len(missing) == len(found) == len(there):
            found = dict(zip(found, there, strict=True))
        else:
            options = " and ".join(f"--{name}" for name in missing)
            raise UsageError(f"none of the columns is known by its name; give {options} a COLUMN{_columns(there)}")
    if len(set(found.values())) < len(found):
        options = " and ".join(f"--{name}" for name in found)
        raise UsageError(f"{options} name one column, {next(iter(found.values()))!r}, and each needs its own")
    return replace(task, **found)


def _columns(there: Sequence[str]) -> str:
    return f" (there are: {', '.join(there) or 'none'})"
