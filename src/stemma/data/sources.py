"""Where text comes from: `read` turns a spec into a source whose documents can be walked as often as needed.

| spec | documents |
|---|---|
| `builtin:docs`, `builtin:code`, `builtin:bible` | see `stemma.data.builtin` |
| `builtin:parallel`, `builtin:parallel:de-en` | verses in seven languages, or in those named: `stemma.data.parallel` |
| `builtin:captain` | conversations, to try tuning with: rows for `stemma tune chat` |
| `notes.txt`, `notes.md`, any text file | by the rule below |
| `folder/` | every text file in it and below, links too, sorted by path; hidden files skipped |
| `texts/*.txt` | a glob, sorted |
| `rows.jsonl`, `rows.ndjson` | one a line, field `text` |
| `rows.json` | one an object of JSON lines or of an array, field `text` |
| `rows.csv`, `rows.tsv` | one a row, column `text` of the first row's names |
| `rows.parquet`, `rows.arrow` | one a row, column `text` |
| `saved/` | a folder that `datasets` wrote with `save_to_disk`: one a row, column `text`; of several splits `train` |
| `hf://org/name/config:split` | streamed by `datasets`, column `text`; the only config and split `train` by default |
| `texts/{lang}/*.txt`, `{lang}/{group}.md` | a glob; `{lang}` matches the language, `{group}` the group |
| `talks.en|talks.de` | files with as many lines each, translated line by line; the ending is the language |
| `a,b` or `a+b` | a's documents, then b's |
| `a@0.7,b@0.3` | both, drawn with these weights in training (of documents; see `Sampling.weights`) |

Options follow a `#` and are joined by `&`:

- `field=body`: the field or column with the text; `field=*`: all of them, a row as one line of JSON
- `split=file|section|paragraph|line`: how a text file or a built-in text is divided
- `encoding=latin-1`: of text that is not UTF-8 and has no byte order mark (those of UTF-16 and UTF-32 are known)
- `strict=yes`: a bad line, or a file that is no text, is an error among several files too; `strict=no`: not in one file
- `lang=de`: the language of all documents; `lang=none`: none, where a field `lang` means something else
- `group=none`: no groups, where a field `group` means something else than translations
- `epochs=4`: how often the documents may be read in training: `a.txt@0.7#epochs=4,b.txt@0.3`
- `files=*.py:*.pyi`: which files of a folder are read
- `clean=exact:gopher`: steps of `stemma.data.steps` for this source alone

A row gives its document's language and group in the fields `lang` and `group`. Documents of a group are translations of
each other; they are all in the training text or all in the held-out text.

A folder of a published data set is read without its validation and test files where they stand beside those for
training, and without the README of rows; a note says so.

In a folder or a glob, files that are not text, empty files, links that lead nowhere, and lines of JSON lines that are
no rows with text are passed over; notes count them, and `stemma data stats SPEC --passed-over` lists them.

Text and rows may be compressed: `.gz`, `.bz2`, `.xz`, `.zst` (with pyarrow), in letters of any case. In a folder or a
glob, a JSON or CSV file without rows that have the field is read as a text file, and a note says so.

A text file of at most 1 MB is one document. A larger one is divided at form feeds and at two or more blank lines in a
row. `split=file`, `split=section` (as larger ones), `split=paragraph` (at blank lines) or `split=line` overrules this
rule. Text is UTF-8 unless a byte order mark or `encoding=` says otherwise; the mark is dropped and `\\r\\n` read as
`\\n`. Documents of white space alone are left out.
"""

from __future__ import annotations

import codecs
import glob
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stemma import samples
from stemma.data import builtin, cleaning, compression, files, folders, parallel, snapshots
from stemma.data.documents import Document, MixtureSource, Notes, Source, of, together
from stemma.data.files import Reading
from stemma.errors import DataError, ResourceError, UsageError, did_you_mean, require

__all__ = ["Document", "MixtureSource", "Source", "of", "read"]

SPLITS = ("file", "section", "paragraph", "line")
OPTIONS = ("field", "split", "encoding", "strict", "lang", "group", "epochs", "clean", "files")


def read(spec: str, *, split: str | None = None, field: str | None = None, strict: bool | None = None) -> Source:
    """The source that `spec` names (see the module); the others are defaults for the options of their names.
    Raises UsageError (unknown builtin or option), DataError (nothing there), ResourceError (missing package)."""
    if not spec.strip():
        raise UsageError("the data is an empty name; give a file, a folder or builtin:docs")
    parts = [_component(piece) for piece in pieces(spec)]
    defaults: dict[str, Any] = {"split": split, "field": field, "strict": strict}
    if len(parts) > 1 or parts[0].weight is not None or parts[0].epochs is not None:
        return _joined(spec, parts, defaults)
    name, given = options(spec)
    if "clean" in given:
        steps = cleaning.parse(given["clean"].replace(":", ","))
        return cleaning.cleaned(read(_without(spec, "clean"), **defaults), steps)
    if "lang" in given:
        if not given["lang"]:
            raise UsageError(f"{spec!r} names no language after lang=")
        code = "" if given["lang"] == "none" else given["lang"]
        return _relabelled(read(_without(spec, "lang"), **defaults), spec, language=code)
    if "group" in given:
        if given["group"] != "none":
            raise UsageError(
                f"group is {given['group']!r} in {spec!r}; none was expected, for documents without groups"
            )
        return _relabelled(read(_without(spec, "group"), **defaults), spec, group="")
    split, field = given.get("split", split), given.get("field", field)
    if split is not None and split not in SPLITS:
        raise UsageError(f"split is {split!r}; one of {', '.join(SPLITS)} was expected{did_you_mean(split, SPLITS)}")
    asked = {"yes": True, "no": False, None: strict}.get(given.get("strict"), ...)
    if asked is ...:
        raise UsageError(f"strict is {given['strict']!r} in {spec!r}; yes or no was expected")
    names = tuple(given["files"].split(":")) if "files" in given else ()
    if "files" in given and (not all(names) or not os.path.isdir(os.path.expanduser(name))):
        raise UsageError(f"files={given['files']} in {spec!r} is of a folder: FOLDER#files=*.py, or *.py:*.pyi")
    how = Reading(split, field or "text", _encoding(given, spec), None if asked is None else bool(asked), names)
    return _single(name, spec, how)


def _encoding(given: dict[str, str], spec: str) -> str:
    """The value of the option `encoding`; "" without one. Raises UsageError if it is unknown."""
    name = given.get("encoding", "")
    try:
        if "encoding" in given and not codecs.lookup(name)._is_text_encoding:
            raise LookupError(name)
    except (LookupError, ValueError):
        known = ("utf-8", "latin-1", "cp1252", "utf-16", "utf-16-le", "gb18030", "shift_jis", "koi8-r")
        raise UsageError(
            f"the encoding {name!r} in {spec!r} is unknown{did_you_mean(name, known)} (known: {', '.join(known)}, and "
            "others of Python)"
        ) from None
    return name


def _joined(spec: str, parts: list[MixtureSource], defaults: dict[str, Any]) -> Source:
    """Several sources one after another: a mixture if any has a weight or a limit."""
    inner = [read(part.name, **defaults) for part in parts]
    weighed = [part.weight is not None for part in parts]
    if any(weighed) and not all(weighed):
        raise UsageError(f"{spec!r} gives a weight to some of its sources only; give one to each, or to none")
    mixed = any(weighed) or any(part.epochs is not None for part in parts)

    def walk(notes: Notes) -> Iterator[Document]:
        for i, source in enumerate(inner):
            for document in source.documents():
                yield document._replace(part=i) if mixed else document
            notes.include(source.notes)

    licences = [s.licence for s in inner if s.licence]
    licence = "; ".join(dict.fromkeys(licences)) if licences and len(licences) == len(inner) else None
    return Source(spec, walk, licence, parts=tuple(parts) if mixed else (), **together(inner))


def _single(name: str, spec: str, how: Reading) -> Source:
    """One source: `name` is `spec` without its options."""
    path = Path(os.path.expanduser(name))
    if name.startswith(("builtin:", "hf://")) and options(spec)[1].keys() & {"encoding", "strict"}:
        raise UsageError(f"{spec!r} has an option for files, and it names none; leave encoding= and strict= out")
    if name.startswith("builtin:"):
        plain = how.column == files.ROWS and name.partition(":")[2] not in builtin.ROWS
        return _rows_of(_builtin(name, how.split)) if plain else _builtin(name, how.split, how.column)
    if name.startswith("hf://"):
        return _hub(name, how.column)
    if "|" in name and not path.exists():
        return _aligned(name, spec, how.encoding)
    if "{lang}" in name and not path.exists():
        return _by_language(name, spec, how)
    if path.is_dir():
        return files.of_folder(path, spec, how)
    if path.exists() and not path.is_file():
        raise DataError(f"{name} is a pipe or a device; text is read more than once, so write it to a file first")
    if path.exists():
        compression.check_packages([path])
        if how.strict is False:
            return Source(spec, lambda notes: files.of_files([path], how, notes), paths=(path,), facts=how.facts)
        return Source(spec, lambda notes: files.of_file(path, how), paths=(path,), facts=how.facts)
    if glob.has_magic(name):
        found = folders.expand(str(path))
        if not found:
            raise DataError(f"no file matches {name}")
        compression.check_packages(found)
        told = snapshots.glob_note(name, found)

        def walk(notes: Notes) -> Iterator[Document]:
            notes += told
            return files.of_files(found, how, notes)

        return Source(spec, walk, paths=tuple(found), facts=how.facts)
    raise _missing(name, path)


def _missing(name: str, path: Path) -> DataError:
    """The error for a file that is not there, with the nearest name."""
    if path.is_symlink():
        return DataError(f"{name} is a link to {os.readlink(path)}, which is not there")
    near = did_you_mean(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
    if not near and name.lower().startswith("builtin"):
        near = f"; built-in text is {', '.join('builtin:' + n for n in builtin.NAMES)}"
    return DataError(f"there is no file or folder {name}{near}")


# ---------------------------------------------------------------- the grammar of a spec


def pieces(spec: str) -> list[str]:
    """The specs that `,` and `+` join. A name with these characters that exists as a file is one spec."""
    if os.path.exists(os.path.expanduser(options(spec)[0])):
        return [spec]
    for mark in (",", "+"):
        if mark in spec and not (mark == "+" and spec.startswith("hf://") and spec.count("hf://") == 1):
            found = [piece.strip() for piece in spec.split(mark)]
            if any(not piece for piece in found):
                raise UsageError(f"{spec!r} has nothing before or after a {mark!r}")
            return [inner for piece in found for inner in pieces(piece)]
    return [spec]


def options(spec: str) -> tuple[str, dict[str, str]]:
    """(name, options) of a spec. Raises UsageError for an unknown option."""
    name, mark, tail = spec.rpartition("#")
    if not mark or "=" not in tail or os.path.exists(spec):
        return spec, {}
    found = {}
    for item in tail.split("&"):
        key, _, value = item.partition("=")
        if key not in OPTIONS:
            raise UsageError(
                f"unknown option {key!r} in {spec!r} (known: {', '.join(OPTIONS)}){did_you_mean(key, OPTIONS)}"
            )
        found[key] = value
    return name, found


def _without(spec: str, *dropped: str) -> str:
    """`spec` without some of its options."""
    name, given = options(spec)
    rest = "&".join(f"{key}={value}" for key, value in given.items() if key not in dropped)
    return f"{name}#{rest}" if rest else name


def _number(text: str, what: str, spec: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UsageError(f"{what} in {spec!r} is {text!r}; a positive number was expected")
    return number


def _component(spec: str) -> MixtureSource:
    """A spec without weight and limit, and these two. Raises UsageError if one is not a positive number."""
    name, given = options(spec)
    weight = None
    stem, mark, tail = name.rpartition("@")
    if mark and stem and re.fullmatch(r"[-+0-9.eE]+", tail) and not os.path.exists(os.path.expanduser(name)):
        weight = _number(tail, "the weight", spec)
        rest = "&".join(f"{key}={value}" for key, value in given.items())
        spec = f"{stem}#{rest}" if rest else stem
    epochs = _number(given["epochs"], "epochs", spec) if "epochs" in given else None
    return MixtureSource(_without(spec, "epochs") if epochs is not None else spec, weight, epochs)


# ---------------------------------------------------------------- languages


def _relabelled(inner: Source, spec: str, **labels: str) -> Source:
    """`inner` with the same `language` or `group` for all documents."""

    def walk(notes: Notes) -> Iterator[Document]:
        for document in inner.documents():
            yield document._replace(**labels)  # type: ignore[arg-type]
        notes.include(inner.notes)

    return Source(spec, walk, inner.licence, paths=inner.paths, facts=inner.facts)


def _by_language(name: str, spec: str, how: Reading) -> Source:
    """The files of a glob, with language and group taken from their names: `{lang}` and `{group}` match `[^/]+`."""
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
    for path in folders.expand(wild):
        if fits := re.fullmatch(pattern, path.as_posix()):
            found.append((path, fits["lang"], fits["group"] if "{group}" in known else ""))
    if not found:
        raise DataError(f"no file matches {name}")
    compression.check_packages(path for path, _, _ in found)

    def walk(notes: Notes) -> Iterator[Document]:
        for path, language, group in found:
            for number, document in enumerate(files.of_files([path], how, notes, alone=len(found) == 1)):
                mine = f"{group}:{number}" if group else document.group
                yield document._replace(language=document.language or language, group=mine)

    paths = tuple(path for path, _, _ in found)
    return Source(spec, walk, paths=paths, facts=how.facts)


def _aligned(name: str, spec: str, encoding: str) -> Source:
    """Files whose lines are translations of each other, line by line; a blank line is no document."""
    paths = [Path(os.path.expanduser(piece.strip())) for piece in name.split("|")]
    languages = [compression.kind(path) for path in paths]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"there is no file {missing[0]}, which {spec} names")
    if any("." not in path.name for path in paths) or len(set(languages)) < len(paths):
        raise UsageError(f"the files of {spec} must end with different languages, as in talks.en|talks.de")
    compression.check_packages(paths)

    def walk(notes: Notes) -> Iterator[Document]:
        rows = itertools.zip_longest(*(compression.lines(path, encoding) for path in paths))
        for number, row in enumerate(rows, 1):
            if None in row:
                short = paths[row.index(None)]
                raise DataError(f"{spec}: {short} ends before line {number}, and another file goes on")
            for path, language, line in zip(paths, languages, row, strict=True):
                if not line.isspace():
                    yield Document(line.strip(), f"{path}:{number}", language, f"{paths[0]}:{number}")

    return Source(spec, walk, paths=tuple(paths), facts=encoding)


def _rows_of(inner: Source) -> Source:
    """`inner` with its documents as rows."""

    def walk(notes: Notes) -> Iterator[Document]:
        return files.as_rows(inner.documents())

    return Source(inner.name, walk, inner.licence, paths=(), facts=inner.facts)


def _builtin(spec: str, split: str | None, column: str = files.ROWS) -> Source:
    """Built-in documents. Of rows that have the `column`, that is the text; of others the row itself, as JSON."""
    name = spec.partition(":")[2]
    if name.partition(":")[0] == "parallel":
        languages = parallel.chosen(spec)

        def verses(notes: Notes) -> Iterator[Document]:
            for verse, language, text in parallel.rows(languages):
                yield Document(text, f"parallel:{language} {verse}", language, verse)

        return Source(spec, verses, parallel.LICENCE, paths=(), facts=builtin.stamp("parallel"))
    if name not in builtin.NAMES:
        known = [f"builtin:{n}" for n in builtin.NAMES]
        raise UsageError(f"unknown {spec}{did_you_mean(spec, known)} (known: {', '.join(known)})")
    builtin.check(name)

    def walk(notes: Notes) -> Iterator[Document]:
        for label, text in builtin.rows(name, column):
            if split in (None, "file"):
                yield Document(text, label)
            else:
                yield from files.divide(text.splitlines(keepends=True), split, label)

    facts = builtin.stamp(name) + (f" {column}" if column != files.ROWS and name in samples.NAMES else "")
    facts += "" if split in (None, "file") else f" {split}"
    return Source(spec, walk, builtin.licence(name), paths=(), facts=facts)


# ---------------------------------------------------------------- the hub


def _hub(spec: str, column: str) -> Source:
    name, _, part = spec.removeprefix("hf://").partition(":")
    pieces = [piece for piece in name.split("/") if piece]
    if not 1 <= len(pieces) <= 3:
        raise UsageError(f"{spec!r} is not hf://org/name, hf://org/name/config or hf://org/name/config:split")
    require("datasets", spec, compression.DATA)
    config = pieces[2] if len(pieces) == 3 else None
    repo, part = "/".join(pieces[:2]), part or "train"

    def walk(notes: Notes) -> Iterator[Document]:
        import datasets

        try:
            rows = datasets.load_dataset(repo, config, split=part, streaming=True)
            for number, row in enumerate(rows, 1):
                where = f"{repo}:{number}"
                held = dict(row)
                language, group = (files.label_of(held, key, column) for key in ("lang", "group"))
                yield Document(files.value_of(held, column, where), where, language, group)
        except (OSError, ValueError) as error:
            raise ResourceError(f"cannot stream {spec}: {str(error).splitlines()[0]}") from error

    return Source(spec, walk)
