"""Folders of data sets as they are published: which of their files are not training text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from stemma.data import compression

HELD_OUT = re.compile(r"(?<![a-z])(validation|valid|val|dev|testing|test|evaluation|eval)(?![a-z])")
ROWS = ("parquet", "arrow", "jsonl", "ndjson", "csv", "tsv")  # kinds of files whose rows are the text
ABOUT = re.compile(r"(readme|license|licence|citation|dataset_infos?|dataset_card)(\.(md|txt|rst|json|cff|bib))?")


def held_out(names: Collection[str]) -> list[str]:
    """Of the names in one folder those of validation and test splits: `test-00000-of-00001.parquet` beside
    `train-00000-of-00002.parquet`, `valid` beside `train`. A name without such a sibling is none."""
    known = {_plain(name) for name in names}
    return [name for name in names if any(_plain(other) in known for other in _training(name))]


def _training(name: str) -> Iterable[str]:
    """What a name would be in the training split."""
    low = name.lower()
    for found in HELD_OUT.finditer(low):
        for word in ("train", "training"):
            yield low[: found.start()] + word + low[found.end() :]


def _plain(name: str) -> str:
    """A name without its numbers, which count shards."""
    return re.sub(r"\d+", "0", name.lower())


def about(root: Path, paths: Collection[Path]) -> list[Path]:
    """The files at the top of a folder of rows that describe it (README.md, LICENSE)."""
    if not any(compression.kind(path) in ROWS for path in paths):
        return []
    return [path for path in paths if path.parent == root and ABOUT.fullmatch(path.name.lower())]


def note(root: Path, held: list[str], described: list[Path]) -> list[str]:
    """What was passed over, in a sentence."""
    parts = [f"{shown(held)}, of validation or test"] if held else []
    parts += [f"{shown([path.name for path in described])}, which describe it"] if described else []
    if not parts:
        return []
    return [f"passed over in {root}: {' and '.join(parts)}; name them, or write a glob, to read them"]


def glob_note(pattern: str, paths: Collection[Path]) -> list[str]:
    """A sentence where a glob, which reads all that it matches, matches validation or test files beside others."""
    held = [
        name
        for folder in dict.fromkeys(path.parent for path in paths)
        for name in held_out([path.name for path in paths if path.parent == folder])
    ]
    if not held:
        return []
    return [
        f"{pattern} matches {shown(held)} too, of validation or test; a narrower glob leaves them out of the training"
    ]


def shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
