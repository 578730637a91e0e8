"""What all tasks share: a row is checked, written as ids, and its targets are marked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from stemma.declare.tasks import RowTask
from stemma.errors import DataError, UsageError, brief

_readers: dict[type[RowTask], type[Reader]] = {}


class Marked(NamedTuple):
    """The `ids` of a row and places in them (`marks`), ascending from 0. Their meaning is the reader's: for texts that
    are continued, targets begin and end there in turn; for several texts, each but the first begins at one."""

    ids: list[int]
    marks: list[int]


class Reader(ABC):
    """Reads the rows of a task for a tokenizer. `context`: the most tokens of a row; `structure`: of the network.

    A subclass names the declaration that it reads for (`of=ChatTask`)."""

    def __init_subclass__(cls, *, of: type[RowTask] | None = None, **more: Any) -> None:
        super().__init_subclass__(**more)
        if of is not None:
            _readers[of] = cls

    def __init__(self, task: Any, tokenizer: Any, context: int, structure: str) -> None:
        self.task, self.tokenizer, self.context, self.structure = task, tokenizer, context, structure

    @abstractmethod
    def read(self, row: Mapping[str, Any]) -> Any:
        """What the task needs of a row. Raises DataError saying what is wrong with it."""

    @abstractmethod
    def marked(self, found: Any) -> Marked:
        """The ids of what `read` found. Raises DataError if no target is left in `context` tokens."""

    def pieces(self, row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The rows that a row is read as; they stay together when some are held out."""
        return [row]

    def check(self, row: Mapping[str, Any]) -> None:
        """Raises DataError for a row that cannot be learnt from."""
        self.marked(self.read(row))

    def shown(self, row: Mapping[str, Any]) -> str:
        """A row as the model will see it, targets between « and »."""
        ids, marks = self.marked(self.read(row))
        pieces = [ids[a:b] for a, b in zip([0, *marks[1:]], [*marks[1:], len(ids)], strict=True)]
        texts = [self.tokenizer.decode(piece, skip_special=False) for piece in pieces]
        return "".join(f"«{text}»" if i % 2 else text for i, text in enumerate(texts))


def reader(task: RowTask, tokenizer: Any, context: int, structure: str) -> Reader:
    """The reader of a task's rows. Raises UsageError where there is none."""
    from stemma.tasks import load_all

    load_all()
    if type(task) not in _readers:
        name = type(task).__name__
        raise UsageError(
            f"no class reads rows for {name}; the file that declares it should hold one: class "
            f"{name}Reader(stemma.tasks.base.Reader, of={name})"
        )
    return _readers[type(task)](task, tokenizer, context, structure)


def text_of(row: Mapping[str, Any], column: str, what: str) -> str:
    """The text in a column. Raises DataError if there is none."""
    if column not in row:
        raise DataError(f"it has no column {column!r} for the {what}, but {', '.join(map(repr, row)) or 'none'}")
    found = row[column]
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        raise DataError(f"its column {column!r} holds {brief(found)}, and the {what} is a text")
    if not str(found).strip():
        raise DataError(f"its {what} (column {column!r}) is empty")
    return str(found)
