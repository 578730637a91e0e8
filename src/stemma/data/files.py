"""The documents of files: text files, rows of JSON, CSV, Parquet and Arrow files, and folders of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stemma.data import compression, folders, rows, snapshots
from stemma.data.compression import BinaryError, lines
from stemma.data.documents import Document, Source
from stemma.errors import DataError

LARGE = 1_000_000  # bytes above which a text file is divided


def of_file(path: Path, split: str | None, column: str) -> Iterator[Document]:
    """The documents of one file, read by the kind that its name's ending says. The walk's end closes the file."""
    kind = compression.kind(path)
    if kind in ("jsonl", "ndjson"):
        return _rows(rows.json_lines(path), path, column)
    if kind in rows.READERS:
        return _rows(rows.READERS[kind](path), path, column)
    if kind in ("parquet", "arrow"):
        return _table(path, column)
    return _text(path, split)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _text(path: Path, split: str | None) -> Iterator[Document]:
    """The documents of a text file, divided by the rule in `stemma.data.sources`. Raises DataError for an empty one."""
    if (size := _size(path)) == 0:
        raise DataError(f"{path} is empty")
    return _divided(path, split, size)


def _divided(path: Path, split: str | None, size: int) -> Iterator[Document]:
    if split is None and compression.ending(path):  # measure the unpacked text
        size = 0
        for line in lines(path):
            size += len(line)
            if size > LARGE:
                break
    rule = split or ("section" if size > LARGE else "file")
    held: list[str] = []
    begin = number = 0
    blank = 0  # blank lines before this one

    def take() -> Iterator[Document]:
        text = "".join(held)
        held.clear()
        if text.strip():
            yield Document(text if rule == "file" else text.rstrip(), f"{path}:{begin or 1}")

    for number, line in enumerate(lines(path), 1):
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


def _rows(found: Iterator[tuple[int, Any]], path: Path, column: str) -> Iterator[Document]:
    """The documents of (line, row)."""
    for number, row in found:
        where = f"{path}:{number}"
        yield Document(value_of(row, column, where), where, label_of(row, "lang"), label_of(row, "group"))


def label_of(row: Any, key: str) -> str:
    """The language or the group of a row, where it has one."""
    found = row.get(key)
    if found is None or isinstance(found, dict | list | bool | float):
        return ""  # the field means something else
    return str(found)


def value_of(row: Any, column: str, where: str) -> str:
    """The text of a row. Raises DataError if the row has none in `column`."""
    if not isinstance(row, dict):
        raise DataError(f"{where} holds a {type(row).__name__}; an object with a field {column!r} was expected")
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
            if column not in names:
                keys = ", ".join(map(repr, names))
                raise DataError(f"{path} has no column {column!r}, but {keys}; name the column with #field=NAME")
            number = 0
            for batch in batches([column, *(c for c in ("lang", "group") if c in names and c != column)]):
                batch.validate(full=True)  # offsets out of range would end the process
                for row in batch.to_pylist():
                    number += 1
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
    raw = held.enter_context(arrow.memory_map(str(path)))
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


def of_folder(root: Path, spec: str, split: str | None, column: str) -> Source:
    """The text files in a folder and below, sorted by path, without hidden ones. Validation and test files beside those
    for training, and files about a data set, are passed over."""
    found = []
    skipped: list[str] = []
    held: list[str] = []
    for where, inside, names in folders.walk(root):
        names = _saved(where, inside, names, skipped)
        held += (out := snapshots.held_out([*inside, *names]))
        inside[:] = [name for name in inside if name not in out]
        found += [p for name in names if name not in out and (p := where / name).is_file()]
    if not found:
        raise DataError(f"{root} is an empty folder")
    described = snapshots.about(root, found)
    found = [path for path in found if path not in described]
    skipped += snapshots.note(root, held, described)
    found.sort(key=lambda path: path.relative_to(root).parts)
    compression.check_packages(found)

    def walk(notes: list[str]) -> Iterator[Document]:
        notes += skipped
        return of_files(found, split, column, notes)

    return Source(spec, walk, paths=tuple(found), facts=f"{split} {column}")


def of_files(
    paths: list[Path], split: str | None, column: str, notes: list[str], alone: bool | None = None
) -> Iterator[Document]:
    """The documents of those files that are text. Notes say how many are not, and which files of JSON or CSV hold no
    rows with `column` and are read as plain text. Raises DataError if no file is text. `alone`: one file was asked for,
    so what is wrong with it is an error (default: if `paths` has one)."""
    alone = len(paths) == 1 if alone is None else alone
    binary: dict[Path, BinaryError] = {}
    plain: list[Path] = []
    for path in paths:
        try:
            if _size(path) == 0:
                continue
            if compression.kind(path) not in ("parquet", "arrow"):
                _sniff(path)
        except BinaryError as error:
            if alone:
                raise
            binary[path] = error
            continue
        if not alone and compression.kind(path) in rows.READERS and not rows.has(path, column):
            plain.append(path)
            yield from _text(path, split)
        else:
            yield from of_file(path, split, column)
    if plain:
        notes.append(
            f"{_counted(plain, '')} read as plain text, without rows that have a field {column!r}: {_shown(plain)}; "
            "name the field with #field=NAME, or leave them out with a glob"
        )
    if binary:
        if len(binary) == len(paths):
            raise next(iter(binary.values()))
        notes.append(f"{_counted(list(binary), 'binary ')} passed over: {_shown(list(binary))}")


def _counted(paths: list[Path], what: str) -> str:
    return f"{len(paths)} {what}{'file was' if len(paths) == 1 else 'files were'}"


def _shown(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")


def _sniff(path: Path) -> None:
    """Raises BinaryError if the file's first 64 KB are not text. Bytes after these are checked when they are read."""
    taken = 0
    for line in lines(path):
        taken += len(line)
        if taken > 65536:
            return
