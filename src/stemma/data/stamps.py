"""Stamps: is a source still the text that a store was made of? Answered without reading it.

A stamp is a hash of everything that the text depends on: the files with their size, inode and times of change, the
options, the tokenizer, and the code that reads (the modules of this package). The system sets the time of change
(ctime) whenever a file's content or times change, so resetting the modification time does not hide an edit. A file that
changed less than GRACE seconds ago gets no stamp: a second edit within the clock's resolution would not show. A stream
from the hub and texts in memory have none either. Without an equal stamp a source is read and compared by content.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from stemma import disk
from stemma.data.documents import Source
from stemma.errors import CheckpointError, DataError, ResourceError

if TYPE_CHECKING:
    from stemma.data.encoding import Encoder

FILE = "source.json"
GRACE = 2.0  # seconds: the coarsest clock of a file system in use (FAT)


@functools.cache
def rules() -> str:
    """A hash of the code of this package and of the version of the tokenizers library."""
    try:
        library = metadata.version("tokenizers")
    except metadata.PackageNotFoundError:
        library = ""
    digest = hashlib.sha256(library.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def of(source: Source, tokenizer: Encoder) -> str | None:
    """The stamp of `source` now; None if it has none."""
    if source.paths is None:
        return None
    seen = []
    for path in source.paths:
        try:
            now = path.stat()
        except OSError:
            return None
        if time.time() - max(now.st_ctime, now.st_mtime) < GRACE:
            return None
        seen.append([str(path.absolute()), now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino])
    facts = [rules(), tokenizer.fingerprint, source.name, source.facts, seen]
    return hashlib.sha256(json.dumps(facts).encode("utf-8", "replace")).hexdigest()


State = dict[Path, tuple[int, int, int]]  # of files: size, time of change, inode


def state(source: Source) -> State:
    """The state of a source's files."""
    found = {}
    for path in source.paths or ():
        with contextlib.suppress(OSError):
            now = path.stat()
            found[path] = (now.st_size, now.st_mtime_ns, now.st_ino)
    return found


def check_state(source: Source, before: State) -> None:
    """Raises DataError if a file of the source is not as it was `before`."""
    if (now := state(source)) != before:
        path = next(path for path in source.paths or () if now.get(path) != before.get(path))
        raise DataError(f"{path} changed while it was read; run the command again when nothing writes to it")


def unchanged(directory: Path, stamp: str | None) -> str | None:
    """The fingerprint of the store made of a source with this stamp, as recorded in `directory`; else None."""
    path = directory / FILE
    if stamp is None or not path.is_file():
        return None
    try:
        held = disk.read_object(path)
    except CheckpointError:
        return None
    return str(held.get("fingerprint")) if held.get("stamp") == stamp else None


def keep(directory: Path, stamp: str | None, source: Source, tokenizer: Encoder, fingerprint: str) -> None:
    """Record the fingerprint of a source that had `stamp` before it was read, if its stamp is still the same."""
    if stamp is None or of(source, tokenizer) != stamp:
        return
    try:
        disk.write_json(directory / FILE, {"stamp": stamp, "fingerprint": fingerprint}, indent=None)
    except ResourceError:
        return  # then the source is read again next time
