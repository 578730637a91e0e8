"""Where text comes from. A spec names it; `read` gives a source whose documents can be walked as often as needed.

| spec | documents |
|---|---|
| `builtin:docs`, `builtin:code`, `builtin:bible` | see `stemma.data.builtin` |
| `builtin:parallel`, `builtin:parallel:de-en` | verses in seven languages, or in these: `stemma.data.parallel` |
| `notes.txt`, `notes.md.gz`, any text file | by the rule below |
| `folder/` | every text file in it and below, sorted by path; hidden files are passed over, binary ones counted |
| `texts/*.txt` | a glob, sorted |
| `rows.jsonl`, `rows.jsonl.gz` | one a line, field `text` |
| `rows.parquet`, `rows.arrow` | one a row, column `text` |
| `saved/` | a folder that `datasets` wrote with `save_to_disk`: its rows, column `text`; of splits, `train` |
| `hf://org/name/config:split` | streamed by `datasets`, column `text`; without config, the only one; split `train` |
| `texts/{lang}/*.txt`, `{lang}/{group}.md` | a glob; the language stands for `{lang}`, the group for `{group}` |
| `talks.en|talks.de` | files of as many lines, line by line translations of each other, each named for its language |
| `a,b` or `a+b` | a's documents, then b's |
| `a@0.7,b@0.3` | both, drawn with these weights in training |

Options follow a `#`: `rows.jsonl#field=body`, `poems.txt#split=paragraph`, `rows.parquet#field=body`; `lang=de` says
the language of all documents, `epochs=4` how often they may be read in training: `a.txt@0.7#epochs=4,b.txt@0.3`;
`crawl/#clean=exact:gopher` applies steps of `stemma.data.cleaning` by name to this source alone.

Documents have a language and a group where the source says so (a row by its fields `lang` and `group`).
Those of a group are translations of each other, and never divided between training and held-out text.

Rule for a text file: one document a file, if it is at most 1 MB. A larger file is divided at form feeds and at two or
more blank lines in a row. `split=file`, `split=paragraph` (at blank lines) or `split=line` overrules this.
Text is UTF-8; a byte order mark is dropped and `\\r\\n` read as `\\n`. Documents of white space alone are left out.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from stemma.data import builtin, parallel
from stemma.errors import DataError, ResourceError, UsageError, did_you_mean

LARGE = 1_000_000  # bytes above which a text file is divided
SPLITS = ("file", "paragraph", "line")
OPTIONS = ("field", "split", "lang", "epochs", "clean")


class Document(NamedTuple):
    """A text and a name that a person can find it by: `file:line`, `docs:module.function`. `language`: its code, as far
    as the source says; `group`: what it shares with its translations; `part`: which of the sources of a mixture it is
    from."""

    text: str
    name: str
    language: str = ""
    group: str = ""
    part: int = 0


class Part(NamedTuple):
    """A source of a mixture: how often it is drawn (None: as its documents are many), and how often it may be read."""

    name: str
    weight: float | None = None
    epochs: float | None = None


@dataclass
class Source:
    """Text to be walked, again and again, always in the same order. `licence` is None where nobody said.

    `notes` holds, after a walk, sentences on what was passed over (binary files in a folder); `parts` are the sources
    of a mixture with weights or limits. `paths` are the files that the text is read from, None where only reading can
    tell whether it changed; `facts` what else it depends on."""

    name: str
    walk: Callable[[list[str]], Iterator[Document]]
    licence: str | None = None
    notes: list[str] = field(default_factory=list)
    paths: tuple[Path, ...] | None = None
    facts: str = ""
    parts: tuple[Part, ...] = ()

    def documents(self) -> Iterator[Document]:
        """The documents in order, none of them blank. Raises DataError if there is none, or a file is not text."""
        self.notes.clear()
        empty = True
        for document in self.walk(self.notes):
            if document.text and not document.text.isspace():
                empty = False
                _speakable(document)
                yield document
        if empty:
            raise DataError(f"{self.name} holds no text")


def _speakable(document: Document) -> None:
    """Raises DataError for a text that cannot be written down: half of a surrogate pair, as JSON can spell it."""
    try:
        document.text.encode("utf-8")
    except UnicodeEncodeError as error:
        wrong = ord(document.text[error.start])
        raise DataError(
            f"{document.name} has a character that is not text (U+{wrong:04X} at {error.start}); correct it"
        ) from None


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
    mixed = [_weighed(part) for part in parts]
    if len(parts) > 1 or any(part.weight is not None or part.epochs is not None for part in mixed):
        inner = [read(part.name, split=split, field=field) for part in mixed]
        weighed = [part.weight is not None for part in mixed]
        if any(weighed) and not all(weighed):
            raise UsageError(f"{spec!r} gives a weight to some of its sources only; give one to each, or to none")

        declared = any(weighed) or any(part.epochs is not None for part in mixed)

        def walk(notes: list[str]) -> Iterator[Document]:
            for i, source in enumerate(inner):
                for document in source.documents():
                    yield document._replace(part=i) if declared else document
                notes.extend(source.notes)

        known = list(dict.fromkeys(s.licence for s in inner if s.licence))
        whole = len([s for s in inner if s.licence]) == len(inner)
        licence = "; ".join(known) if whole and known else None
        return Source(spec, walk, licence, parts=tuple(mixed) if declared else (), **together(inner))
    name, options = _options(spec)
    if "clean" in options:
        from stemma.data import cleaning

        steps = cleaning.parse(options["clean"].replace(":", ","))
        return cleaning.cleaned(read(_without(spec, "clean"), split=split, field=field), steps)
    if "lang" in options:
        return _of_language(read(_without(spec, "lang"), split=split, field=field), spec, options["lang"])
    split, field = options.get("split", split), options.get("field", field)
    if split is not None and split not in SPLITS:
        raise UsageError(f"split is {split!r}; one of {', '.join(SPLITS)} was expected{did_you_mean(split, SPLITS)}")
    column = field or "text"
    if name.startswith("builtin:"):
        return _builtin(name)
    if name.startswith("hf://"):
        return _hub(name, column)
    if "|" in name and not os.path.exists(os.path.expanduser(name)):
        return _aligned(name, spec)
    if "{lang}" in name and not os.path.exists(os.path.expanduser(name)):
        return _by_language(name, spec, split, column)
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return _folder(path, spec, split, column)
    told = f"{split} {column}"
    if path.exists() and not path.is_file():
        raise DataError(f"{name} is a pipe or a device; text is read more than once, so write it to a file first")
    if path.exists():
        return Source(spec, lambda notes: _file(path, split, column), paths=(path,), facts=told)
    if glob.has_magic(name):
        found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
        if not found:
            raise DataError(f"no file matches {name}")
        return Source(spec, lambda notes: _several(found, split, column, notes), paths=tuple(found), facts=told)
    if path.is_symlink():
        raise DataError(f"{name} is a link to {os.readlink(path)}, which is not there")
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


def _without(spec: str, *dropped: str) -> str:
    """A spec less some of its options."""
    name, options = _options(spec)
    rest = "&".join(f"{key}={value}" for key, value in options.items() if key not in dropped)
    return f"{name}#{rest}" if rest else name


def _number(text: str, what: str, spec: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UsageError(f"{what} in {spec!r} is {text!r}; a positive number was expected")
    return number


def _weighed(spec: str) -> Part:
    """A source of a mixture: its spec, and its weight and limit where they are given."""
    name, options = _options(spec)
    weight = None
    stem, mark, tail = name.rpartition("@")
    if mark and stem and re.fullmatch(r"[-+0-9.eE]+", tail) and not os.path.exists(os.path.expanduser(name)):
        weight = _number(tail, "the weight", spec)
        rest = "&".join(f"{key}={value}" for key, value in options.items())
        spec = f"{stem}#{rest}" if rest else stem
    epochs = _number(options["epochs"], "epochs", spec) if "epochs" in options else None
    return Part(_without(spec, "epochs") if epochs is not None else spec, weight, epochs)


# ---------------------------------------------------------------- languages


def _of_language(inner: Source, spec: str, language: str) -> Source:
    """A source all of whose documents are in one language."""
    if not language:
        raise UsageError(f"{spec!r} names no language after lang=")

    def walk(notes: list[str]) -> Iterator[Document]:
        for document in inner.documents():
            yield document._replace(language=language)
        notes.extend(inner.notes)

    return Source(spec, walk, inner.licence, paths=inner.paths, facts=inner.facts)


def _by_language(name: str, spec: str, split: str | None, column: str) -> Source:
    """The files of a glob in which `{lang}`, and `{group}` where it stands, are parts of their names."""
    name = os.path.expanduser(name)
    pattern = ""
    known: set[str] = set()
    for piece in re.split(r"(\{lang\}|\{group\}|\*\*/?|\*|\?)", name):
        if piece in ("{lang}", "{group}"):
            pattern += f"(?P={piece[1:-1]})" if piece in known else f"(?P<{piece[1:-1]}>[^/]+)"
            known.add(piece)
        else:
            pattern += {"*": "[^/]*", "?": "[^/]", "**": ".*", "**/": "(?:.*/)?"}.get(piece, re.escape(piece))
    wild = name.replace("{lang}", "*").replace("{group}", "*")
    found = []
    for path in sorted(glob.glob(wild, recursive=True)):
        if Path(path).is_file() and (fits := re.fullmatch(pattern, Path(path).as_posix())):
            found.append((Path(path), fits["lang"], fits["group"] if "{group}" in known else ""))
    if not found:
        raise DataError(f"no file matches {name}")

    def walk(notes: list[str]) -> Iterator[Document]:
        for path, language, group in found:
            for number, document in enumerate(_several([path], split, column, notes)):
                mine = f"{group}:{number}" if group else document.group
                yield document._replace(language=document.language or language, group=mine)

    paths = tuple(path for path, _, _ in found)
    return Source(spec, walk, paths=paths, facts=f"{split} {column}")


def _aligned(name: str, spec: str) -> Source:
    """Files line by line translations of each other; a blank line has none."""
    paths = [Path(os.path.expanduser(piece.strip())) for piece in name.split("|")]
    languages = [path.name.lower().removesuffix(".gz").rpartition(".")[2] for path in paths]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"there is no file {missing[0]}, which {spec} names")
    if any("." not in path.name for path in paths) or len(set(languages)) < len(paths):
        raise UsageError(f"the files of {spec} must end with different languages, as in talks.en|talks.de")

    def walk(notes: list[str]) -> Iterator[Document]:
        rows = itertools.zip_longest(*(_lines(path) for path in paths))
        for number, row in enumerate(rows, 1):
            if None in row:
                short = paths[row.index(None)]
                raise DataError(f"{spec}: {short} ends before line {number}, and another file goes on")
            for path, language, line in zip(paths, languages, row, strict=True):
                if not line.isspace():
                    yield Document(line.strip(), f"{path}:{number}", language, f"{paths[0]}:{number}")

    return Source(spec, walk, paths=tuple(paths))


def _builtin(spec: str) -> Source:
    name = spec.partition(":")[2]
    if name.partition(":")[0] == "parallel":
        languages = parallel.chosen(spec)

        def verses(notes: list[str]) -> Iterator[Document]:
            for verse, language, text in parallel.rows(languages):
                yield Document(text, f"parallel:{language} {verse}", language, verse)

        return Source(spec, verses, parallel.LICENCE, paths=(), facts=builtin.stamp("parallel"))
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
            if at == 0 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise _Binary(f"{path} is not UTF-8 text but UTF-16, by its first bytes; convert it to UTF-8")
            if (null := raw.find(b"\x00")) >= 0:
                raise _Binary(f"{path} is not text: it has a zero byte at offset {at + null}")
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = raw[error.start]
                where = f"byte 0x{byte:02x} at offset {at + error.start}"
                raise _Binary(f"{path} is not UTF-8 text: {where}; convert it to UTF-8") from error
            at += len(raw)
            yield line[:-2] + "\n" if line.endswith("\r\n") else line


def _file(path: Path, split: str | None, column: str) -> Iterator[Document]:
    """The documents of one file, by its name's ending. The files that it reads are closed when the walk ends."""
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind in ("jsonl", "ndjson"):
        return _jsonl(path, column)
    if kind in ("parquet", "arrow"):
        return _table(path, column)
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
            raise DataError(
                f"{path}:{number} is not JSON: {error.msg} at column {error.colno}; correct the line or delete it"
            ) from error
        except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
            raise DataError(
                f"{path}:{number} cannot be read as JSON: a number is too long, or brackets too deep; delete the line"
            ) from None
        where = f"{path}:{number}"
        yield Document(_value(row, column, where), where, _label(row, "lang"), _label(row, "group"))


def _label(row: Any, key: str) -> str:
    """The language or the group of a row, where it has one."""
    found = row.get(key)
    if found is None or isinstance(found, dict | list | bool | float):
        return ""  # a field of that name that means something else
    return str(found)


def _value(row: Any, column: str, where: str) -> str:
    if not isinstance(row, dict):
        raise DataError(f"{where} holds a {type(row).__name__}; an object with a field {column!r} was expected")
    if column not in row:
        keys = ", ".join(repr(key) for key in row) or "no field at all"
        raise DataError(f"{where} has no field {column!r}, but {keys}; name the field with #field=NAME")
    if not isinstance(row[column], str):
        raise DataError(f"{where} has a {type(row[column]).__name__} in field {column!r}; text was expected")
    return str(row[column])


def _arrow(path: Path) -> Any:
    """The library that reads tables. Raises ResourceError without it."""
    try:
        import pyarrow

        return pyarrow
    except ImportError as error:
        raise ResourceError(f"reading {path} needs pyarrow: pip install 'stemma-lm[data]'") from error


def _table(path: Path, column: str) -> Iterator[Document]:
    """The rows of a Parquet file, or of an Arrow file as `datasets` saves it."""
    arrow = _arrow(path)
    kind = "a Parquet" if path.suffix.lower() == ".parquet" else "an Arrow"
    try:
        with contextlib.ExitStack() as held:
            names, batches = _batches(path, arrow, held)
            if column not in names:
                keys = ", ".join(map(repr, names))
                raise DataError(f"{path} has no column {column!r}, but {keys}; name the column with #field=NAME")
            number = 0
            for batch in batches([column, *(c for c in ("lang", "group") if c in names and c != column)]):
                for row in batch.to_pylist():
                    number += 1
                    value = row[column]
                    if value is None:
                        continue
                    if not isinstance(value, str):
                        raise DataError(
                            f"{path} row {number} has a {type(value).__name__} in column {column!r}, not text"
                        )
                    yield Document(value, f"{path}:{number}", _label(row, "lang"), _label(row, "group"))
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is not {kind} file, or it is damaged: {why}") from error


def _batches(path: Path, arrow: Any, held: contextlib.ExitStack) -> tuple[list[str], Callable[[list[str]], Any]]:
    """The names of a table's columns, and its rows with some of them, in batches; `held` closes the file."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as parquet

        file = held.enter_context(parquet.ParquetFile(path, page_checksum_verification=True))
        return file.schema_arrow.names, lambda columns: file.iter_batches(batch_size=1024, columns=columns)
    raw = held.enter_context(arrow.memory_map(str(path)))
    if raw.read(6) == b"ARROW1":  # the form that can be read anywhere in it
        table = held.enter_context(arrow.ipc.open_file(raw))
        every = (table.get_batch(i) for i in range(table.num_record_batches))
    else:
        raw.seek(0)
        table = every = held.enter_context(arrow.ipc.open_stream(raw))
    return table.schema.names, lambda columns: (batch.select(columns) for batch in every)


def _saved(where: Path, folders: list[str], names: list[str], notes: list[str]) -> list[str]:
    """Of a folder that `datasets` wrote with `save_to_disk`: the files that hold the rows; of other folders, all names.
    Of several splits only `train` is read. Raises DataError where there is no split of that name."""
    if "dataset_dict.json" in names:
        if "train" not in folders:
            raise DataError(
                f"{where} holds the splits {', '.join(folders)} and none called train; name the folder of one of them"
            )
        if len(folders) > 1:
            notes.append(f"of {where} the split train is read; name the folder of another to read that")
        folders[:] = ["train"]
        return []
    return [n for n in names if n.endswith(".arrow")] if {"dataset_info.json", "state.json"} <= {*names} else names


def _folder(root: Path, spec: str, split: str | None, column: str) -> Source:
    found = []
    told: list[str] = []

    def closed(error: OSError) -> None:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from None

    for where, folders, names in os.walk(root, onerror=closed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = _saved(Path(where), folders, names, told)
        found += [p for name in names if not name.startswith(".") and (p := Path(where) / name).is_file()]
    if not found:
        raise DataError(f"{root} is an empty folder")
    found.sort(key=lambda path: path.relative_to(root).parts)

    def walk(notes: list[str]) -> Iterator[Document]:
        notes += told
        return _several(found, split, column, notes)

    return Source(spec, walk, paths=tuple(found), facts=f"{split} {column}")


def _several(paths: list[Path], split: str | None, column: str, notes: list[str]) -> Iterator[Document]:
    """The documents of the files that are text. Raises DataError if none of them is."""
    binary: dict[Path, _Binary] = {}
    for path in paths:
        try:
            if _size(path) == 0:
                continue
            if path.suffix.lower() not in (".parquet", ".arrow"):
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
                where = f"{repo}:{number}"
                held = dict(row)
                yield Document(_value(held, column, where), where, _label(held, "lang"), _label(held, "group"))
        except (OSError, ValueError) as error:
            raise ResourceError(f"cannot stream {spec}: {str(error).splitlines()[0]}") from error

    return Source(spec, walk)
