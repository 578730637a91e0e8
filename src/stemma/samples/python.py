"""Python's source files, found and parsed without importing a module or running code."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

SKIPPED = {
    "test",
    "tests",
    "idle_test",
    "testing",
    "__pycache__",
    "site-packages",
    "dist-packages",
    "lib2to3",
    "encodings",
}
SKIPPED |= {"pydoc_data", "config", "turtledemo", "_vendor", "_bundled"}


def modules(root: Path, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of the Python files under `root`, sorted, without tests and vendored packages."""
    if not root.is_dir():
        return
    for path in sorted(root.iterdir(), key=lambda p: p.name):
        if path.is_dir():
            if path.name not in SKIPPED and path.name.isidentifier():
                yield from modules(path, f"{prefix}{path.name}.")
        elif path.suffix == ".py" and not path.name.startswith("test_"):
            stem = path.stem
            yield (prefix[:-1] if stem == "__init__" else prefix + stem) or stem, path


def source(path: Path) -> str | None:
    """The text of a file; None for one that is no UTF-8 text."""
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return None if "\x00" in text else text.replace("\r\n", "\n")


def tree(text: str) -> ast.Module | None:
    """A parsed file; None for one that is no Python of this version."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old sources
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None
