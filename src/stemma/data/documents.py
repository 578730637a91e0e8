"""Documents, and sources that give them in a fixed order as often as needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from stemma.errors import DataError


class Document(NamedTuple):
    """A text and where to find it.

    `name`: such as `file:line` or `docs:module.function`; `language`: a code, "" if unknown; `group`: shared by a text
    and its translations; `part`: the index of its component in a mixture.
    """

    text: str
    name: str
    language: str = ""
    group: str = ""
    part: int = 0


class MixtureSource(NamedTuple):
    """One source of a mixture: its spec, its weight (None: by the number of documents) and its limit of epochs."""

    name: str
    weight: float | None = None
    epochs: float | None = None


class Notes(list[str]):
    """Sentences on what a walk passed over. `passed`: (why, where) of each file, link and line of it."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: list[tuple[str, str]] = []

    def clear(self) -> None:
        super().clear()
        self.passed.clear()

    def include(self, other: Notes) -> None:
        """Add what the walk of a source inside this one passed over."""
        self.extend(other)
        self.passed += other.passed


@dataclass
class Source:
    """Text that can be walked again and again, always in the same order.

    `licence`: None if unknown. `notes`: after a walk, sentences on what was skipped. `paths`: the files that are read,
    None if only reading can tell whether the text changed. `facts`: what else the text depends on. `parts`: the
    components of a mixture with weights or limits.
    """

    name: str
    walk: Callable[[Notes], Iterator[Document]]
    licence: str | None = None
    notes: Notes = field(default_factory=Notes)
    paths: tuple[Path, ...] | None = None
    facts: str = ""
    parts: tuple[MixtureSource, ...] = ()

    def documents(self) -> Iterator[Document]:
        """The documents in order, without blank ones. Raises DataError if there is none, or a file is not text."""
        self.notes.clear()
        empty = True
        for document in self.walk(self.notes):
            if document.text and not document.text.isspace():
                empty = False
                _check_unicode(document)
                yield document
        if empty:
            raise DataError(f"{self.name} holds no text")


def _check_unicode(document: Document) -> None:
    """Raises DataError for half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        document.text.encode("utf-8")
    except UnicodeEncodeError as error:
        wrong = ord(document.text[error.start])
        raise DataError(
            f"{document.name} has a character that is not text (U+{wrong:04X} at {error.start}); correct it"
        ) from None


def of(texts: Iterable[str | Document], name: str = "texts", licence: str | None = None) -> Source:
    """A source of texts in memory."""
    held = [t if isinstance(t, Document) else Document(t, f"{name}:{i}") for i, t in enumerate(texts, 1)]
    return Source(name, lambda notes: iter(held), licence)


def together(inner: Iterable[Source]) -> dict[str, Any]:
    """`paths` and `facts` of sources that are read one after another."""
    inner = list(inner)
    known = [s.paths for s in inner]
    paths = None if None in known else tuple(path for own in known for path in own or ())
    return {"paths": paths, "facts": repr([(len(s.paths or ()), s.facts) for s in inner])}
