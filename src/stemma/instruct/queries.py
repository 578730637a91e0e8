"""Queries for a teacher: read from rows, drawn from sub-collections, each with a system message (Orca, section 3)."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stemma.data import random as draw
from stemma.data import read
from stemma.data.files import ROWS
from stemma.errors import DataError, UsageError, brief
from stemma.instruct.messages import FOR, MESSAGES, OF_A_TASK, PUBLISHED, fitting

PURPOSE = 0x0C4A  # of the draws
TEXTS = ("question", "query", "inputs", "prompt", "instruction", "text")  # columns that hold a query
RIGHT = ("answer", "targets", "target", "completion", "response", "output")  # and what is right
OPTIONS = re.compile(r"\boptions?\s*:|(?:^|\s)\(?a[).:]\s.*\s\(?b[).:]\s", re.IGNORECASE | re.DOTALL)
ALIKE = ("cot", "niv2")  # sub-collections whose queries are all as likely
TASK, MESSAGE = 1, 2  # of the draws: a task or a query of it, a message


@dataclass(frozen=True)
class Query:
    """`text`, of a `task` of a sub-collection (`collection`). `system`: its message; None: none was drawn yet; `number`
    is that of MESSAGES, 0 for a message of the row's own. `right`: the answer that came with it."""

    text: str
    collection: str = ""
    task: str = ""
    choices: bool = False
    right: str = ""
    system: str | None = None
    number: int = 0


def query(row: Mapping[str, Any], column: str = "", collection: str = "") -> Query:
    """The query of a row; `column` holds its text, and `collection` is that of rows that name none. Raises DataError
    for a row without a text, UsageError for an unknown sub-collection."""
    name = column or next((name for name in TEXTS if isinstance(row.get(name), str)), "")
    text = row.get(name)
    if not isinstance(text, str) or not text.strip():
        named = f"in {column!r}" if column else f"in any of {', '.join(TEXTS)}"
        raise DataError(f"it has no text {named} (its fields: {', '.join(map(brief, row)) or 'none'})")
    if isinstance(more := row.get("input"), str) and name == "instruction" and more.strip():
        text = f"{text}\n\n{more}"
    listed = next((row[name] for name in ("choices", "options") if isinstance(row.get(name), Sequence)), ())
    right = next((row[name] for name in RIGHT if isinstance(row.get(name), str | int | float) and name != column), "")
    found = Query(
        text.strip(),
        str(row.get("collection") or collection),
        str(row.get("task") or ""),
        bool(listed) or OPTIONS.search(text) is not None,
        str(row.get("right", right)),
    )
    if isinstance(system := row.get("system"), str):
        number = row.get("message")
        return replace(found, system=system, number=number if isinstance(number, int) else 0)
    if not found.collection:
        raise DataError(f"it names no sub-collection (a field 'collection', or --collection): {', '.join(FOR)}")
    fitting(found.collection, found.choices)
    return found


def queries(source: str, column: str = "", collection: str = "") -> list[Query]:
    """The queries of rows. Raises DataError for one that is none, naming its place, and where there are none."""
    found = []
    for document in read(source, field=ROWS).documents():
        try:
            found.append(query(json.loads(document.text), column, collection))
        except (DataError, UsageError) as error:
            raise type(error)(f"{document.name}: {error}") from None
    if not found:
        raise DataError(f"{source} has no rows")
    return found


# ---------------------------------------------------------------- which of them are asked


def chosen(found: Sequence[Query], count: int | None, seed: int) -> list[Query]:
    """`count` of the queries, or all that may be asked, each with a message, in an order of the seed.

    Queries that have messages already were drawn before: of these any are taken, all alike (FLAN-1M of FLAN-5M). Of
    others each sub-collection has its published share, as far as it goes: chains of thought are all alike, a task of
    Natural Instructions has at most 300, and of the rest a task is drawn first and then a query of it, until there are
    enough (algorithm 1 of the paper). Raises UsageError for more than there are."""
    if any(one.system is not None for one in found):
        if count is not None and count > len(found):
            raise UsageError(f"there are {len(found)} queries, fewer than {count}")
        picked = draw.permutation((seed, PURPOSE), len(found)).tolist()[:count]
    else:
        picked = _of_collections(found, count, seed)
    return [_with_message(found[i], i, seed) for i in picked]


def _with_message(one: Query, place: int, seed: int) -> Query:
    if one.system is not None:
        return one
    numbers = fitting(one.collection, one.choices)
    number = numbers[int(draw.integers((seed, PURPOSE, MESSAGE, place), 1, len(numbers))[0])]
    return replace(one, system=MESSAGES[number], number=number)


def _of_collections(found: Sequence[Query], count: int | None, seed: int) -> list[int]:
    by_name: dict[str, dict[str, list[int]]] = {}
    order = draw.permutation((seed, PURPOSE), len(found)).tolist()
    for i in order:
        by_name.setdefault(found[i].collection, defaultdict(list))[found[i].task].append(i)
    by_name = {name: by_name[name] for name in PUBLISHED if name in by_name}
    if "niv2" in by_name:
        by_name["niv2"] = {task: those[:OF_A_TASK] for task, those in by_name["niv2"].items()}
    there = {name: sum(map(len, tasks.values())) for name, tasks in by_name.items()}
    amounts = there if count is None else shared(count, there)
    rank = {i: k for k, i in enumerate(order)}
    picked: list[int] = []
    for name, tasks in by_name.items():
        keys = (seed, PURPOSE, TASK, list(PUBLISHED).index(name))
        if name in ALIKE:
            picked += sorted((i for those in tasks.values() for i in those), key=rank.__getitem__)[: amounts[name]]
        else:
            picked += _by_task(tasks, amounts[name], keys)
    return [picked[i] for i in draw.permutation((seed, PURPOSE, TASK), len(picked))]


def shared(count: int, there: Mapping[str, int]) -> dict[str, int]:
    """How many of `count` queries each sub-collection gives, by its published share; what one lacks, the others give.
    Raises UsageError where all together have fewer."""
    if count > (most := sum(there.values())):
        raise UsageError(f"{most} queries may be asked, fewer than {count}")
    amounts = dict.fromkeys(there, 0)
    while left := count - sum(amounts.values()):
        open_ = [name for name in there if amounts[name] < there[name]]
        whole = sum(PUBLISHED[name] for name in open_)
        exact = {name: left * PUBLISHED[name] / whole for name in open_}
        gains = {name: int(share) for name, share in exact.items()}
        for name in sorted(open_, key=lambda name: gains[name] - exact[name])[: left - sum(gains.values())]:
            gains[name] += 1
        for name, gain in gains.items():
            amounts[name] = min(there[name], amounts[name] + gain)
    return amounts


def _by_task(tasks: Mapping[str, list[int]], amount: int, keys: tuple[int, ...]) -> list[int]:
    """A task at random, then a query of it that was not taken; a task without one leaves."""
    left = {task: list(reversed(those)) for task, those in sorted(tasks.items())}
    names, picked = list(left), list[int]()
    for turn in range(amount):
        at = int(draw.integers((*keys, 0), 1, len(names), start=turn)[0])
        picked.append(left[names[at]].pop())
        if not left[names[at]]:
            names.pop(at)
    return picked
