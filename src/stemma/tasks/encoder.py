"""Rows of a source as ids in a store, and what of them is passed over."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stemma import conversations, spec
from stemma.data.documents import Document, Notes, Source
from stemma.data.files import ROWS
from stemma.data.sources import options, pieces
from stemma.data.sources import read as read_source
from stemma.declare.tasks import RowTask
from stemma.errors import DataError
from stemma.tasks.base import Reader, reader
from stemma.tasks.heads import WHOLE

VERSION = 1  # of what the ids of a row are; raise it where they change


@dataclass(frozen=True)
class TaskEncoder:
    """What a store of rows has in place of a tokenizer (`data.encoding.RowEncoder`)."""

    task: RowTask
    tokenizer: Any
    context: int
    structure: str

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer."""
        return int(self.tokenizer.vocab_size)

    @property
    def unk_id(self) -> int | None:
        """Of the tokenizer."""
        found: int | None = self.tokenizer.unk_id
        return found

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokenizer, its chat template, the task and what bounds a row."""
        facts = [VERSION, self.tokenizer.fingerprint, getattr(self.tokenizer, "chat_template", None)]
        facts += [spec.to_dict(self.task), self.context, self.structure]
        return hashlib.sha256(json.dumps(facts).encode("utf-8", "replace")).hexdigest()

    @cached_property
    def reader(self) -> Reader:
        """What reads the rows."""
        return reader(self.task, self.tokenizer, self.context, self.structure)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("task", "tokenizer", "context", "structure")}

    def encode_rows(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """The ids and marks of rows in JSON."""
        return [tuple(self.reader.marked(self.reader.read(json.loads(text)))) for text in texts]  # type: ignore[misc]


@functools.cache
def _code() -> str:
    """A hash of the code that reads rows."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(conversations.__file__).parent):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def rows(data: str, encoder: TaskEncoder) -> Source:
    """The rows that `data` names, as a source of JSON texts. A row that a task cannot learn from is passed over, noted
    with its file and line; with `#strict=yes` it is an error. Raises DataError if no row is left."""
    inner = read_source(data, field=ROWS, strict=False)
    strict = _strict(data)
    check = encoder.reader.check

    def walk(notes: Notes) -> Iterator[Document]:
        for document in checked(inner.documents(), check, notes, strict):
            yield from divided(document, encoder.reader)
        notes.include(inner.notes)

    facts = f"{inner.facts} rows {strict} {_code()} {encoder.fingerprint}"
    return Source(data, walk, inner.licence, paths=inner.paths, facts=facts, parts=inner.parts)


def first(data: str, count: int) -> tuple[list[Mapping[str, Any]], bool]:
    """The first `count` rows that `data` names, and whether there are no more. Raises DataError if there is none."""
    found: list[Mapping[str, Any]] = []
    for row in raw_rows(data):
        if len(found) == count:
            return found, False
        found.append(row)
    if not found:
        raise DataError(f"{data} holds no row with fields")
    return found, True


def raw_rows(data: str) -> Iterator[Mapping[str, Any]]:
    """The rows that `data` names, without those that are no objects with fields."""
    for document in read_source(data, field=ROWS, strict=False).documents():
        with contextlib.suppress(ValueError):
            row = json.loads(document.text)
            if isinstance(row, Mapping):
                yield row


def divided(document: Document, read: Reader) -> Iterator[Document]:
    """A row as those that it is read as, which stay together when some are held out."""
    if type(read).pieces is Reader.pieces or len(found := read.pieces(json.loads(document.text))) == 1:
        yield document
        return
    group = document.group or f"row {document.name}"
    for number, row in enumerate(found, 1):
        text = json.dumps({**row, WHOLE: document.name}, ensure_ascii=False)
        yield document._replace(text=text, name=f"{document.name} ({number})", group=group)


def good_rows(data: str, check: Callable[[Mapping[str, Any]], None]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The rows that `data` names and `check` accepts, and sentences on those that are passed over."""
    inner, notes = read_source(data, field=ROWS, strict=False), Notes()
    found = [json.loads(document.text) for document in checked(inner.documents(), check, notes, _strict(data))]
    notes.include(inner.notes)
    return found, list(notes)


def _strict(data: str) -> bool:
    return any(options(piece)[1].get("strict") == "yes" for piece in pieces(data))


def checked(
    documents: Iterator[Document], check: Callable[[Mapping[str, Any]], None], notes: Notes, strict: bool = False
) -> Iterator[Document]:
    """The rows that `check` accepts; notes say how many others there are of each kind, and where. Raises DataError with
    `strict` for the first of these, and if all rows are such."""
    wrong: dict[str, dict[str, str]] = {}  # by what is wrong but for its numbers: of each place the whole sentence
    first: DataError | None = None
    some = False
    for document in documents:
        try:
            row = json.loads(document.text)
            if not isinstance(row, Mapping):
                raise DataError(f"it is a {type(row).__name__}, and a row is an object with fields")
            check(row)
        except DataError as error:
            found = DataError(f"{document.name}: {error}")
            if strict:
                raise found from None
            first = first or found
            wrong.setdefault(re.sub(r"\d+", "0", str(error)), {})[document.name] = str(error)
        else:
            some = True
            yield document
    if not some and first is not None:
        raise DataError(f"no row can be learnt from; the first is {first}")
    for held in sorted(wrong.values(), key=lambda held: -len(held)):
        places, sentences = list(held), list(held.values())
        why = sentences[0] if len({*sentences}) == 1 else f"such as {sentences[0]}"
        what = "1 row was" if len(places) == 1 else f"{len(places):,} rows were"
        shown = ", ".join(place.rpartition("/")[2] for place in places[:3]) + (", ..." if len(places) > 3 else "")
        notes.append(f"{what} passed over: {why} ({shown}); #strict=yes makes this an error")
        notes.passed += [(sentence, place) for place, sentence in held.items()]
