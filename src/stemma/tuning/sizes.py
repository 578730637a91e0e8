"""Lengths and batches that suit the rows of a task."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stemma.errors import DataError
from stemma.tasks.base import Reader

LOOKED_AT = 2000  # rows that are measured before a run
EXAMPLES = (4, 16)  # of a step, at least and at most
STEPS = 16  # of an epoch at least, where there are rows enough
FEW = 1000  # rows below which a tenth is held out
SHORTEST = 64  # tokens of a step of texts
UNIT = 8  # lengths are multiples of it


@dataclass(frozen=True)
class Measured:
    """Rows that can be learnt from (`rows`), their tokens on average, and those of the longest (of its longer side, for
    an encoder-decoder). `whole`: these are all rows there are."""

    rows: int
    mean: float
    longest: int
    whole: bool


def measure(rows: Sequence[Mapping[str, Any]], read: Reader, whole: bool) -> Measured:
    """The lengths of rows. Those that cannot be learnt from are left out, and are reported when they are read."""
    total, longest, number = 0, 0, 0
    for row in rows:
        try:
            ids, marks = read.marked(read.read(row))
        except DataError:
            continue
        cut = marks[1] if read.structure == "encoder-decoder" and len(marks) > 1 else 0
        total, longest, number = total + len(ids), max(longest, cut, len(ids) - cut), number + 1
    return Measured(number, total / max(1, number), longest, whole)


def fitting(found: Measured, most: int, apart: bool) -> dict[str, Any]:
    """The settings of a plan that suit rows so long: no row of the batch is longer than the data need, a step has 16
    examples, or fewer where there are few rows, and of few rows more are held out. `most`: tokens of a row; `apart`: a
    row of the batch is one example."""
    if not found.rows:
        return {}
    low, high = EXAMPLES
    examples = min(high, max(low, found.rows // STEPS)) if found.whole else high
    tokens = examples * found.mean
    longest = _up(found.longest) if found.whole else most
    row = min(most, max(UNIT, longest, 0 if apart else _up(tokens)))
    batch = row * (examples if apart else max(1, round(tokens / row)))
    settings: dict[str, Any] = {"train.context": row, "recipe.batch": batch}
    if found.whole and found.rows < FEW:
        settings["train.val_fraction"] = 0.1
    return settings


def of_texts(documents: Iterable[Any], tokenizer: Any, most: int) -> dict[str, Any]:
    """The settings of a plan for texts that are learnt as they are: of few, an epoch has 16 steps all the same."""
    tokens = number = 0
    for document in itertools.islice(documents, LOOKED_AT):
        number += 1
        tokens += len(tokenizer.encode(document.text, add_special=False))
        if tokens >= STEPS * 4 * most or number == LOOKED_AT:
            return {}
    step = max(SHORTEST, _up(tokens // STEPS))
    row = min(most, step)
    few = {"train.val_fraction": 0.1} if number < FEW else {}
    return {"train.context": row, "recipe.batch": row * max(1, round(step / row)), **few}


def _up(tokens: float) -> int:
    return UNIT * -(-int(tokens) // UNIT)
