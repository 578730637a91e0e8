"""Where text comes from. A spec names it; `read` gives a source whose documents can be walked as often as needed.

| spec | documents |
|---|---|
| `builtin:docs`, `builtin:code`, `builtin:bible` | see `stemma.data.builtin` |
| `notes.txt`, `notes.md.gz`, any text file | by the rule below |
| `folder/` | every text file in it and below, sorted by path; hidden files are passed over, binary ones counted |
| `texts/*.txt` | a glob, sorted |
| `rows.jsonl`, `rows.jsonl.gz` | one a line, field `text` |
| `rows.parquet` | one a row, column `text` |
| `hf://org/name/config:split` | streamed by `datasets`, column `text`; without config, the only one; split `train` |
| `a,b` or `a+b` | a's documents, then b's |

Options follow a `#`: `rows.jsonl#field=body`, `poems.txt#split=paragraph`, `rows.parquet#field=body`, and
`crawl/#clean=exact:gopher`, steps of `stemma.data.cleaning` by name, applied to this source alone.

Rule for a text file: one document a file, if it is at most 1 MB. A larger file is divided at form feeds and at two or
more blank lines in a row. `split=file`, `split=paragraph` (at blank lines) or `split=line` overrules this.
Text is UTF-8; a byte order mark is dropped and `\\r\\n` read as `\\n`. Documents of white space alone are left out.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from stemma.data import builtin
from stemma.errors import DataError, ResourceError, UsageError, did_you_mean

LARGE = 1_000_000  # bytes above which a text file is divided
SPLITS = ("file", "paragraph", "line")
OPTIONS = ("field", "split", "clean")


class Document(NamedTuple):
    """A text and a name that a person can find it by: `file:line`, `docs:module.function`."""

    text: str
    name: str


@dataclass
class Source:
    """Text to be walked, again and again, always in the same order. `licence` is None where nobody said.

    `notes` holds, after a walk, sentences on what was passed over (binary files in a folder). `paths` are the files
    that the text is read from, None where only reading can tell whether it changed; `facts` what else it depends on."""

    name: str
    walk: Callable[[list[str]], Iterator[Document]]
    licence: str | None = None
    notes: list[str] = field(default_factory=list)
    paths: tuple[Path, ...] | None = None
    facts: str = ""

    def documents(self) -> Iterator[Document]:
        """The documents in order, none of them blank. Raises DataError if there is none, or a file is not text."""
        self.notes.clear()
        empty = True
        for document in self.walk(self.notes):
            if document.text and not document.text.isspace():
                empty = False
                yield document
        if empty:
            raise DataError(f"{self.name} holds no text")


def of(texts: Iterable[str | Document], name: str = "texts", licence: str | None = None) -> Source:
    """A source of texts already in memory."""
    held = [t if isinstance(t, Document) else Document(t, f"{name}:{i}") for i, t in enumerate(texts, 1)]
    return Source(name, lambda notes: iter(held), licence)


def read(spec: str, *, split: str | None = None, field: str | None = None) -> Source:
    """The source that `spec` names (see the module); `split` and `field` are defaults for the options of that name.
    Raises UsageError (unknown builtin or option), DataError (nothing there), ResourceError (missing package)."""
    if not spec.strip():
        raise UsageError("the data is an empty name; give a file, a folder or builtin:docs")
    parts = _parts(spec)
    if len(parts) > 1:
        inner = [read(part, split=split, field=field) for part in parts]

        def walk(notes: list[str]) -> Iterator[Document]:
            for source in inner:
                yield from source.documents()
                notes.extend(source.notes)

        known = list(dict.fromkeys(s.licence for s in inner if s.licence))
        whole = len([s for s in inner if s.licence]) == len(inner)
        licence = "; ".join(known) if whole and known else None
        return Source(spec, walk, licence, **together(inner))
    name, options = _options(spec)
    if "clean" in options:
        from stemma.data import cleaning

        rest = "&".join(f"{key}={value}" for key, value in options.items() if key != "clean")
        inner_spec = f"{name}#{rest}" if rest else name
        steps = cleaning.parse(options["clean"].replace(":", ","))
        return cleaning.cleaned(read(inner_spec, split=split, field=field), steps)
    split, field = options.get("split", split), options.get("field", field)
    if split is not None and split not in SPLITS:
        raise UsageError(f"split is {split!r}; one of {', '.join(SPLITS)} was expected{did_you_mean(split, SPLITS)}")
    column = field or "text"
    if name.startswith("builtin:"):
        return _builtin(name)
    if name.startswith("hf://"):
        return _hub(name, column)
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return _folder(path, spec, split, column)
    told = f"{split} {column}"
    if path.exists():
        return Source(spec, lambda notes: _file(path, split, column), paths=(path,), facts=told)
    if glob.has_magic(name):
        found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
        if not found:
            raise DataError(f"no file matches {name}")
        return Source(spec, lambda notes: _several(found, split, column, notes), paths=tuple(found), facts=told)
    near = did_you_mean(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
    if not near and name.lower().startswith("builtin"):
        near = f"; built-in text is {', '.join('builtin:' + n for n in builtin.NAMES)}"
    raise DataError(f"there is no file or folder {name}{near}")


def together(inner: Iterable[Source]) -> dict[str, Any]:
    """`paths` and `facts` of sources read one after another."""
    inner = list(inner)
    known = [s.paths for s in inner]
    paths = None if None in known else tuple(path for own in known for path in own or ())
    return {"paths": paths, "facts": repr([(len(s.paths or ()), s.facts) for s in inner])}


def _parts(spec: str) -> list[str]:
    """The specs that `,` and `+` join; a name with these characters in it that exists as it stands is one spec."""
    if os.path.exists(os.path.expanduser(_options(spec)[0])):
        return [spec]
    for mark in (",", "+"):
        if mark in spec and not (mark == "+" and spec.startswith("hf://") and spec.count("hf://") == 1):
            pieces = [piece.strip() for piece in spec.split(mark)]
            if any(not piece for piece in pieces):
                raise UsageError(f"{spec!r} has nothing before or after a {mark!r}")
            return [inner for piece in pieces for inner in _parts(piece)]
    return [spec]


def _options(spec: str) -> tuple[str, dict[str, str]]:
    name, mark, tail = spec.rpartition("#")
    if not mark or "=" not in tail or os.path.exists(spec):
        return spec, {}
    options = {}
    for item in tail.split("&"):
        key, _, value = item.partition("=")
        if key not in OPTIONS:
            raise UsageError(
                f"unknown option {key!r} in {spec!r} (known: {', '.join(OPTIONS)}){did_you_mean(key, OPTIONS)}"
            )
        options[key] = value
    return name, options


def _builtin(spec: str) -> Source:
    name = spec.partition(":")[2]
    if name not in builtin.NAMES:
        known = [f"builtin:{n}" for n in builtin.NAMES]
        raise UsageError(f"unknown {spec}{did_you_mean(spec, known)} (known: {', '.join(known)})")
    if name == "bible":
        builtin._bible_file()

    def walk(notes: list[str]) -> Iterator[Document]:
        return (Document(text, label) for label, text in builtin.rows(name))

    return Source(spec, walk, builtin.licence(name), paths=(), facts=builtin.stamp(name))


# ---------------------------------------------------------------- files


class _Binary(DataError):
    """A file that is not text."""


def _open(path: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, ends kept as `\\n`. Raises DataError naming the byte that is not text."""
    at = 0
    with _open(path) as file:
        rows = iter(file)
        while True:
            try:
                raw = next(rows)
            except StopIteration:
                return
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"cannot read {path}: {error}") from error
            if at == 0 and raw.startswith(b"\xef\xbb\xbf"):
                at, raw = 3, raw[3:]
            if (null := raw.find(b"\x00")) >= 0:
                raise _Binary(f"{path} is not text: it has a zero byte at offset {at + null}")
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = raw[error.start]
                raise _Binary(f"{path} is not UTF-8 text: byte 0x{byte:02x} at offset {at + error.start}") from error
            at += len(raw)
            yield line[:-2] + "\n" if line.endswith("\r\n") else line


def _file(path: Path, split: str | None, column: str) -> Iterator[Document]:
    """The documents of one file, by its name's ending. The files that it reads are closed when the walk ends."""
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind in ("jsonl", "ndjson"):
        return _jsonl(path, column)
    if kind == "parquet":
        return _parquet(path, column)
    if (size := _size(path)) == 0:
        raise DataError(f"{path} is empty")
    return _text(path, split, size)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _text(path: Path, split: str | None, size: int) -> Iterator[Document]:
    if split is None and path.suffix == ".gz":  # the size that counts is the unpacked one
        size = 0
        for line in _lines(path):
            size += len(line)
            if size > LARGE:
                break
    rule = split or ("section" if size > LARGE else "file")
    held: list[str] = []
    begin = number = 0
    blank = 0  # blank lines just before this one

    def take() -> Iterator[Document]:
        text = "".join(held)
        held.clear()
        if text.strip():
            yield Document(text if rule == "file" else text.rstrip(), f"{path}:{begin or 1}")

    for number, line in enumerate(_lines(path), 1):
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
                    if held:
                        held.append(piece)
                else:
                    if held and blank >= (2 if rule == "section" else 1):
                        yield from take()
                    blank = 0
                    if not held:
                        begin = number
                    held.append(piece)
    yield from take()


def _jsonl(path: Path, column: str) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number} is not JSON: {error.msg} at column {error.colno}") from error
        yield Document(_value(row, column, f"{path}:{number}"), f"{path}:{number}")


def _value(row: Any, column: str, where: str) -> str:
    if not isinstance(row, dict):
        raise DataError(f"{where} holds a {type(row).__name__}; an object with a field {column!r} was expected")
    if column not in row:
        keys = ", ".join(repr(key) for key in row) or "no field at all"
        raise DataError(f"{where} has no field {column!r}, but {keys}; name the field with #field=NAME")
    if not isinstance(row[column], str):
        raise DataError(f"{where} has a {type(row[column]).__name__} in field {column!r}; text was expected")
    return str(row[column])


def _parquet(path: Path, column: str) -> Iterator[Document]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ResourceError(f"reading {path} needs pyarrow: pip install 'stemma-lm[data]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                keys = ", ".join(map(repr, names))
                raise DataError(f"{path} has no column {column!r}, but {keys}; name the column with #field=NAME")
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    if value is None:
                        continue
                    if not isinstance(value, str):
                        raise DataError(
                            f"{path} row {number} has a {type(value).__name__} in column {column!r}, not text"
                        )
                    yield Document(value, f"{path}:{number}")
    except arrow.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file, or it is damaged: {str(error).splitlines()[0]}") from error


def _folder(root: Path, spec: str, split: str | None, column: str) -> Source:
    found = []
    for where, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [p for name in names if not name.startswith(".") and (p := Path(where) / name).is_file()]
    if not found:
        raise DataError(f"{root} is an empty folder")
    found.sort(key=lambda path: path.relative_to(root).parts)
    told = f"{split} {column}"
    return Source(spec, lambda notes: _several(found, split, column, notes), paths=tuple(found), facts=told)


def _several(paths: list[Path], split: str | None, column: str, notes: list[str]) -> Iterator[Document]:
    """The documents of the files that are text. Raises DataError if none of them is."""
    binary: dict[Path, _Binary] = {}
    for path in paths:
        try:
            if _size(path) == 0:
                continue
            if path.suffix.lower() != ".parquet":
                _sniff(path)
        except _Binary as error:
            if len(paths) == 1:
                raise
            binary[path] = error
            continue
        yield from _file(path, split, column)
    if binary:
        if len(binary) == len(paths):
            raise next(iter(binary.values()))
        shown = ", ".join(path.name for path in list(binary)[:3]) + (", ..." if len(binary) > 3 else "")
        noun = "file was" if len(binary) == 1 else "files were"
        notes.append(f"{len(binary)} binary {noun} passed over: {shown}")


def _sniff(path: Path) -> None:
    """Raises _Binary if the file's first 64 KB are not text; what comes later is met when it is read."""
    taken = 0
    for line in _lines(path):
        taken += len(line)
        if taken > 65536:
            return


# ---------------------------------------------------------------- the hub


def _hub(spec: str, column: str) -> Source:
    name, _, part = spec.removeprefix("hf://").partition(":")
    pieces = [piece for piece in name.split("/") if piece]
    if not 1 <= len(pieces) <= 3:
        raise UsageError(f"{spec!r} is not hf://org/name, hf://org/name/config or hf://org/name/config:split")
    config = pieces[2] if len(pieces) == 3 else None
    repo, part = "/".join(pieces[:2]), part or "train"

    def walk(notes: list[str]) -> Iterator[Document]:
        try:
            import datasets
        except ImportError as error:
            raise ResourceError(f"{spec} needs the datasets library: pip install 'stemma-lm[data]'") from error
        try:
            rows = datasets.load_dataset(repo, config, split=part, streaming=True)
            for number, row in enumerate(rows, 1):
                yield Document(_value(dict(row), column, f"{repo}:{number}"), f"{repo}:{number}")
        except (OSError, ValueError) as error:
            raise ResourceError(f"cannot stream {spec}: {str(error).splitlines()[0]}") from error

    return Source(spec, walk)
