"""The documents of files: text files, rows of JSON, CSV, Parquet and Arrow files, and folders of them."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.data import compression, folders, rows, snapshots
from stemma.data.compression import BinaryError, EncodingError, lines
from stemma.data.documents import Document, Notes, Source
from stemma.errors import DataError

LARGE = 1_000_000  # bytes above which a text file is divided
ROWS = "*"  # in place of a column: a document is a whole row, as JSON


@dataclass(frozen=True)
class Reading:
    """How files are read. `split`: how text is divided; `column`: the field or column with the text; `encoding`: of
    text without a byte order mark ("": UTF-8); `strict`: whether what cannot be read is an error (None: if one file
    was asked for); `files`: patterns of the names of files that are read of a folder (none: all)."""

    split: str | None = None
    column: str = "text"
    encoding: str = ""
    strict: bool | None = None
    files: tuple[str, ...] = ()

    @property
    def facts(self) -> str:
        """For `Source.facts`."""
        more = f" {self.encoding} {self.strict}" if self.encoding or self.strict is not None else ""
        return f"{self.split} {self.column}{more}" + (f" {':'.join(self.files)}" if self.files else "")


def of_file(path: Path, how: Reading, bad: rows.Bad | None = None) -> Iterator[Document]:
    """The documents of one file, read by the kind that its name's ending says. The walk's end closes the file. Lines
    that are no rows go to `bad`, or raise DataError."""
    kind = compression.kind(path)
    if kind in ("jsonl", "ndjson"):
        return _rows(rows.json_lines(path, how.encoding, bad), path, how.column, bad)
    if kind in rows.READERS:
        return _rows(rows.READERS[kind](path, how.encoding), path, how.column, bad)
    if kind in ("parquet", "arrow"):
        return _table(path, how.column)
    found = _text(path, how.split, how.encoding)
    return as_rows(found) if how.column == ROWS else found


def as_rows(documents: Iterator[Document]) -> Iterator[Document]:
    """Documents of text as rows with one field, `text`."""
    return (document._replace(text=row_text({"text": document.text})) for document in documents)


def row_text(row: Any) -> str:
    """A row as one line of JSON. What JSON cannot hold (dates, numbers of Decimal) is written as text."""
    return json.dumps(row, ensure_ascii=False, default=str)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _text(path: Path, split: str | None, encoding: str = "") -> Iterator[Document]:
    """The documents of a text file, divided by the rule in `stemma.data.sources`. Raises DataError for an empty one."""
    if (size := _size(path)) == 0:
        raise DataError(f"{path} is empty")
    return _divided(path, split, size, encoding)


def _divided(path: Path, split: str | None, size: int, encoding: str) -> Iterator[Document]:
    if split is None and compression.ending(path):  # measure the unpacked text
        size = 0
        for line in lines(path, encoding):
            size += len(line)
            if size > LARGE:
                break
    return divide(lines(path, encoding), split or ("section" if size > LARGE else "file"), str(path))


def divide(lines: Iterable[str], rule: str, name: str) -> Iterator[Document]:
    """The documents of a text with these lines, by one of `sources.SPLITS`. Their names have the line they begin at."""
    held: list[str] = []
    begin = number = 0
    blank = 0  # blank lines before this one

    def take() -> Iterator[Document]:
        text = "".join(held)
        held.clear()
        if text.strip():
            yield Document(text if rule == "file" else text.rstrip(), f"{name}:{begin or 1}")

    for number, line in enumerate(lines, 1):
        if rule == "file":
            held.append(line)
        elif rule == "line":
            begin = number
            held.append(line)
            yield from take()
        else:
            pieces = line.split("\f") if rule == "section" else [line]
            for i, piece in enumerate(pieces):
                if i:
                    yield from take()
                    blank = 0
                if not piece:
                    continue
                if piece.isspace():
                    blank += 1
                    if held and blank <= 2:  # more are no part of the document
                        held.append(piece)
                else:
                    if held and blank >= (2 if rule == "section" else 1):
                        yield from take()
                    blank = 0
                    if not held:
                        begin = number
                    held.append(piece)
    yield from take()


def _rows(found: Iterator[tuple[int, Any]], path: Path, column: str, bad: rows.Bad | None = None) -> Iterator[Document]:
    """The documents of (line, row)."""
    for number, row in found:
        where = f"{path}:{number}"
        try:
            text = value_of(row, column, where)
        except DataError as error:
            if bad is None:
                raise
            bad(error, where)
        else:
            yield Document(text, where, label_of(row, "lang", column), label_of(row, "group", column))


def label_of(row: Any, key: str, column: str = "text") -> str:
    """The language or the group of a row, where it has one. In whole rows these are fields like others."""
    found = None if column == ROWS else row.get(key)
    if found is None or isinstance(found, dict | list | bool | float):
        return ""  # the field means something else
    return str(found)


def value_of(row: Any, column: str, where: str) -> str:
    """The text of a row. Raises DataError if the row has none in `column`."""
    if not isinstance(row, dict):
        if column == ROWS:
            raise DataError(f"{where} holds a {type(row).__name__}; an object with fields was expected")
        raise DataError(f"{where} holds a {type(row).__name__}; an object with a field {column!r} was expected")
    if column == ROWS:
        return row_text(row)
    if column not in row:
        keys = ", ".join(repr(key) for key in row) or "no field at all"
        raise DataError(f"{where} has no field {column!r}, but {keys}; name the field with #field=NAME")
    if not isinstance(row[column], str):
        raise DataError(f"{where} has a {type(row[column]).__name__} in field {column!r}; text was expected")
    return str(row[column])


def _table(path: Path, column: str) -> Iterator[Document]:
    """The rows of a Parquet file, or of an Arrow file as `datasets` saves it."""
    compression.check_packages([path])
    import pyarrow as arrow

    kind = "a Parquet" if path.suffix.lower() == ".parquet" else "an Arrow"
    try:
        with contextlib.ExitStack() as held:
            names, batches = _batches(path, arrow, held)
            if column != ROWS and column not in names:
                keys = ", ".join(map(repr, names))
                raise DataError(f"{path} has no column {column!r}, but {keys}; name the column with #field=NAME")
            number = 0
            more = [c for c in ("lang", "group") if c in names and c != column]
            for batch in batches(names if column == ROWS else [column, *more]):
                batch.validate(full=True)  # offsets out of range would end the process
                for row in batch.to_pylist():
                    number += 1
                    if column == ROWS:
                        yield Document(row_text(row), f"{path}:{number}")
                        continue
                    value = row[column]
                    if value is None:
                        continue
                    if not isinstance(value, str):
                        raise DataError(
                            f"{path} row {number} has a {type(value).__name__} in column {column!r}, not text"
                        )
                    yield Document(value, f"{path}:{number}", label_of(row, "lang"), label_of(row, "group"))
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is not {kind} file, or it is damaged: {why}") from error


def _batches(path: Path, arrow: Any, held: contextlib.ExitStack) -> tuple[list[str], Callable[[list[str]], Any]]:
    """(column names of a table, function from some of them to batches of rows). `held` closes the file."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as parquet

        file = held.enter_context(parquet.ParquetFile(path, page_checksum_verification=True))
        return file.schema_arrow.names, lambda columns: file.iter_batches(batch_size=1024, columns=columns)
    # not mapped: a file that is cut while it is read would end the process
    raw = held.enter_context(arrow.OSFile(str(path), "rb"))
    if raw.read(6) == b"ARROW1":  # the format with random access
        table = held.enter_context(arrow.ipc.open_file(raw))
        every = (table.get_batch(i) for i in range(table.num_record_batches))
    else:
        raw.seek(0)
        table = every = held.enter_context(arrow.ipc.open_stream(raw))
    return table.schema.names, lambda columns: (batch.select(columns) for batch in every)


def _saved(where: Path, inside: list[str], names: list[str], notes: list[str]) -> list[str]:
    """The files to read in a folder. In one that `datasets` wrote with `save_to_disk` these are the Arrow files, and of
    several splits only `train`. Raises DataError if there are splits and none is `train`."""
    if "dataset_dict.json" in names:
        if "train" not in inside:
            raise DataError(
                f"{where} holds the splits {', '.join(inside)} and none called train; name the folder of one of them"
            )
        if len(inside) > 1:
            notes.append(f"of {where} the split train is read; name the folder of another to read that")
        inside[:] = ["train"]
        return []
    return [n for n in names if n.endswith(".arrow")] if {"dataset_info.json", "state.json"} <= {*names} else names


def of_folder(root: Path, spec: str, how: Reading) -> Source:
    """The text files in a folder and below, sorted by path, without hidden ones. Validation and test files beside those
    for training, files about a data set, and those whose names `how.files` leaves out, are passed over."""
    found = []
    other = 0
    skipped: list[str] = []
    held: list[str] = []
    dangling: list[Path] = []
    for where, inside, names in folders.walk(root):
        named = [n for n in names if not how.files or any(fnmatch.fnmatchcase(n, p) for p in how.files)]
        other += len(names) - len(named)
        names = _saved(where, inside, named, skipped)
        held += (out := snapshots.held_out([*inside, *names]))
        inside[:] = [name for name in inside if name not in out]
        paths = [where / name for name in names if name not in out]
        found += [path for path in paths if path.is_file()]
        dangling += [path for path in paths if path.is_symlink() and not path.exists()]
    if not found and other:
        raise DataError(f"{root} holds {other:,} files, and none of them is called {' or '.join(how.files)}")
    if not found:
        raise DataError(f"{root} is an empty folder")
    described = snapshots.about(root, found)
    found = [path for path in found if path not in described]
    skipped += snapshots.note(root, held, described)
    if other:
        many = "1 file was" if other == 1 else f"{other:,} files were"
        skipped.append(f"{many} passed over in {root}, which are not called {' or '.join(how.files)}")
    found.sort(key=lambda path: path.relative_to(root).parts)
    compression.check_packages(found)

    def walk(notes: Notes) -> Iterator[Document]:
        notes += skipped
        return of_files(found, how, notes, dangling=dangling)

    return Source(spec, walk, paths=tuple(found), facts=how.facts)


# why something was passed over: (of one, of several, what to do about it)
BINARY = ("binary file", "binary files", "")
OTHER = ("file that is not UTF-8", "files that are not UTF-8", "; name their encoding, as in #encoding=latin-1")
EMPTY = ("empty file", "empty files", "")
LINK = ("link that leads nowhere", "links that lead nowhere", "")
LINE = ("line that is no row with text", "lines that are no rows with text", "; #strict=yes makes them an error")
Why = tuple[str, str, str]


def of_files(
    paths: list[Path], how: Reading, notes: Notes, alone: bool | None = None, dangling: Sequence[Path] = ()
) -> Iterator[Document]:
    """The documents of those files that are text. Notes say what was passed over, and which files of JSON or CSV hold
    no rows with the column and are read as plain text. Raises DataError if no file is text. `alone`: one file was
    asked for, so what is wrong with it is an error (default: if `paths` has one); `dangling`: links beside them that
    lead nowhere."""
    alone = len(paths) == 1 if alone is None else alone
    strict = alone if how.strict is None else how.strict
    if how.strict and dangling:
        raise DataError(f"{dangling[0]} is a link to {os.readlink(dangling[0])}, which is not there")
    passed: dict[Why, list[str]] = {LINK: list(map(str, dangling))} if dangling else {}
    unread: list[BinaryError] = []
    plain: list[Path] = []
    for path in paths:
        try:
            if _size(path) == 0:
                passed.setdefault(EMPTY, []).append(str(path))
                continue
            if compression.kind(path) not in ("parquet", "arrow"):
                _sniff(path, how.encoding)
        except BinaryError as error:
            if strict:
                raise
            unread.append(error)
            passed.setdefault(OTHER if isinstance(error, EncodingError) else BINARY, []).append(str(path))
            continue
        if not alone and compression.kind(path) in rows.READERS and not rows.has(path, how.column, how.encoding):
            plain.append(path)
            yield from _text(path, how.split, how.encoding)
        elif strict:
            yield from of_file(path, how)
        else:
            yield from _forgiving(path, how, passed.setdefault(LINE, []))
    if plain:
        notes.append(
            f"{len(plain)} {'file was' if len(plain) == 1 else 'files were'} read as plain text, without rows that "
            f"have a field {how.column!r}: {_shown(list(map(str, plain)))}; name the field with #field=NAME, or leave "
            "them out with a glob"
        )
    if unread and len(unread) == len(paths):
        raise unread[0]
    for (one, several, hint), places in passed.items():
        if places:
            what = f"1 {one} was" if len(places) == 1 else f"{len(places):,} {several} were"
            notes.append(f"{what} passed over: {_shown(places)}{hint}")
            notes.passed += [(one, place) for place in places]


def _forgiving(path: Path, how: Reading, places: list[str]) -> Iterator[Document]:
    """The documents of a file; the places of lines that are no rows are noted. Raises DataError if all of them are."""
    wrong: list[DataError] = []

    def bad(error: DataError, where: str) -> None:
        wrong[:] = wrong or [error]
        places.append(where)

    some = False
    for document in of_file(path, how, bad):
        some = True
        yield document
    if wrong and not some:
        raise wrong[0]


def _shown(places: list[str]) -> str:
    """The first names of what is at `places`."""
    return ", ".join(place.rpartition("/")[2] for place in places[:3]) + (", ..." if len(places) > 3 else "")


def _sniff(path: Path, encoding: str = "") -> None:
    """Raises BinaryError if the file's first 64 KB are not text. Bytes after these are checked when they are read."""
    taken = 0
    for line in lines(path, encoding):
        taken += len(line)
        if taken > 65536:
            return
