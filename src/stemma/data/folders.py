"""Folders and globs: the files in them, through links to other folders, without going round in loops of links."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from stemma.errors import DataError

Place = tuple[int, int]  # of a folder on its file system: device and inode


def walk(root: Path, hidden: bool = False) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, names of its folders, names of its files), as `os.walk` from the top down, through links. A link to a
    folder that holds it is passed over. Raises DataError for a folder that cannot be read."""

    def closed(error: OSError) -> None:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from None

    above: dict[str, frozenset[Place]] = {}
    for where, folders, names in os.walk(root, onerror=closed, followlinks=True):
        mine = above.pop(where, frozenset()) | {_place(where)}
        folders[:] = sorted(n for n in folders if hidden or not n.startswith("."))
        folders[:] = [n for n in folders if _place(os.path.join(where, n)) not in mine]
        names = [n for n in names if hidden or not n.startswith(".")]
        yield Path(where), folders, names
        above.update((os.path.join(where, n), mine) for n in folders)


def _place(folder: str) -> Place:
    try:
        now = os.stat(folder)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
    return now.st_dev, now.st_ino


def expand(pattern: str) -> list[Path]:
    """The files that match a glob, sorted; `**` stands for any folders, through links but not round in loops."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return [Path(p) for p in sorted(glob.glob(pattern)) if Path(p).is_file()]
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:first])
    if not root.is_dir():
        return []
    wanted = parts[first:]
    hidden = any(part.startswith(".") for part in wanted)
    found = [
        str(path)
        for where, _, names in walk(root, hidden)
        for name in names
        if _matches((path := where / name).relative_to(root).parts, wanted) and path.is_file()
    ]
    return [Path(p) for p in sorted(found)]


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern or not parts:
        return not parts and all(piece == "**" for piece in pattern)
    head, *rest = pattern
    shown = head.startswith(".") or not parts[0].startswith(".")
    if head == "**":
        return _matches(parts, tuple(rest)) or (shown and _matches(parts[1:], pattern))
    return shown and fnmatch.fnmatchcase(parts[0], head) and _matches(parts[1:], tuple(rest))
