"""What readers of tasks with a head share: inputs, targets, predictions, metrics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stemma.errors import DataError, brief
from stemma.tasks.base import Marked, Reader, text_of
from stemma.text.inputs import joined

Row = Mapping[str, Any]
Answer = dict[str, Any]  # a prediction, as JSON
WORST = 20  # examples that a report shows
WHOLE = "_row"  # of a piece of a row: which row it is of


class HeadReader(Reader):
    """Reads the rows of a task that a head answers. A row without a target can be read too, to predict it."""

    @abstractmethod
    def asked(self, row: Row) -> Any:
        """What the model reads of a row. Raises DataError saying what is wrong with it."""

    @abstractmethod
    def target(self, row: Row) -> Any:
        """What is learnt of a row. Raises DataError saying what is wrong with it."""

    @abstractmethod
    def answer(self, row: Row, ids: Sequence[int], marks: Sequence[int], scores: npt.NDArray[Any]) -> Answer:
        """The prediction that a head's scores of a row are."""

    @abstractmethod
    def measure(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, float]:
        """How good predictions are, by the metrics of the task."""

    def whole(self, row: Row, answers: Sequence[Answer]) -> Answer:
        """The prediction of a row, of those of its pieces."""
        return answers[0]

    def read(self, row: Row) -> Any:
        self.target(row)
        return self.asked(row)

    def check(self, row: Row) -> None:
        self.read(row)

    def labels(self, row: Row, ids: Sequence[int], marks: Sequence[int]) -> npt.NDArray[Any]:
        """The labels of the head for a row."""
        return np.asarray(self.target(row))

    def named(self, row: Row) -> str:
        """The target of a row in words."""
        return str(self.target(row))

    def expected(self, row: Row) -> list[str]:
        """The labels of a row, to be counted."""
        return []

    def report(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, Any]:
        """What a report shows of predictions beside the metrics, as JSON."""
        return {}

    def shown(self, row: Row) -> str:
        ids, _ = self.marked(self.asked(row))
        return f"{self.tokenizer.decode(ids, skip_special=False)} -> {self.named(row)}"


class TextReader(HeadReader):
    """A text, or two, with what the tokenizer puts around them, or with the task's own delimiters."""

    def asked(self, row: Row) -> tuple[str, ...]:
        task = self.task
        first = text_of(row, task.text, "text")
        return (first, text_of(row, task.pair, "second text")) if task.pair else (first,)

    def marked(self, found: tuple[str, ...]) -> Marked:
        if getattr(self.task, "delimiters", ()):
            return self._delimited(found)
        first, second = found if len(found) == 2 else (found[0], None)
        if self.structure == "decoder" and second is not None:  # nothing else may stand between them
            second = f"\n{second}"
        made = joined(self.tokenizer, first, second, self.context)
        return Marked(made.ids, segments_of(made.kinds) or [0, *made.begins[1:]])

    def _delimited(self, found: tuple[str, ...]) -> Marked:
        start, between, end = (self.tokenizer.id(name) for name in self.task.delimiters)
        parts = [self.tokenizer.encode(text, add_special=False) for text in found]
        room = self.context - 1 - len(parts)
        while sum(map(len, parts)) > room:
            longest = max(parts, key=len)
            del longest[-1]
        ids = [start, *parts[0]]
        for part in parts[1:]:
            ids += [between, *part]
        return Marked([*ids, end], [0, *([len(parts[0]) + 1] if parts[1:] else [])])


def segments_of(kinds: Sequence[int]) -> list[int]:
    """Marks where segments begin; none if there is one segment."""
    if not kinds or max(kinds) == 0:
        return []
    return [0, *(next(i for i, kind in enumerate(kinds) if kind >= k) for k in range(1, max(kinds) + 1))]


def label_of(value: Any) -> str:
    """A label as text. Raises DataError for what is none."""
    match value:
        case bool():
            return str(value).lower()
        case str() if value.strip():
            return value.strip()
        case int():
            return str(value)
        case float() if value == value:
            return str(int(value)) if value.is_integer() else str(value)
    raise DataError(f"its label is {brief(value)}, and a label is a name or a number")


def value_in(row: Row, column: str, what: str) -> Any:
    """What a column holds. Raises DataError where it is missing or empty."""
    if column not in row:
        raise DataError(f"it has no column {column!r} for the {what}, but {', '.join(map(repr, row)) or 'none'}")
    if row[column] is None or (isinstance(row[column], str) and not row[column].strip()):
        raise DataError(f"its {what} (column {column!r}) is empty")
    return row[column]


def shares(scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Softmax over the last axis, in fp64."""
    scores = scores.astype(np.float64)
    each = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(each / each.sum(-1, keepdims=True))


def rounded(value: float) -> float:
    """A number as predictions show it."""
    return round(float(value), 6)
