"""Whether a source is still the text that a store was made of, without reading it.

A stamp is a hash of everything that the text depends on: the files with their size, inode and times of change, the
options they are read with, the tokenizer, and the code that reads (the modules of this package), so that a new rule
never passes for an old text. The time of change (ctime) is set by the system whenever a file's content or times are
set, so putting back the modification time does not hide an edit. A file that changed within GRACE of being read is not
vouched for, since a second edit in the same tick of the clock would not show. Sources that only reading can tell apart
(a stream from the hub, texts in memory) have no stamp: they are read and compared by content, as is every source whose
stamp does not agree.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from stemma import disk
from stemma.data.documents import Source
from stemma.errors import CheckpointError, ResourceError

if TYPE_CHECKING:
    from stemma.data.encoding import Encoder

FILE = "source.json"
GRACE = 2.0  # seconds: the coarsest clock of a file system in use (FAT)


@functools.cache
def rules() -> str:
    """A hash of the code that makes documents and their tokens of files, and of the tokenizers' version."""
    try:
        library = metadata.version("tokenizers")
    except metadata.PackageNotFoundError:
        library = ""
    digest = hashlib.sha256(library.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def of(source: Source, tokenizer: Encoder) -> str | None:
    """The stamp of what `source` is at this moment; None where it cannot be known or vouched for."""
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
    told = [rules(), tokenizer.fingerprint, source.name, source.facts, seen]
    return hashlib.sha256(json.dumps(told).encode("utf-8", "replace")).hexdigest()


def unchanged(directory: Path, stamp: str | None) -> str | None:
    """The fingerprint of the store that was made of a source with this stamp, as `directory` notes it."""
    path = directory / FILE
    if stamp is None or not path.is_file():
        return None
    try:
        held = disk.read_object(path)
    except CheckpointError:
        return None
    return str(held.get("fingerprint")) if held.get("stamp") == stamp else None


def keep(directory: Path, stamp: str | None, source: Source, tokenizer: Encoder, fingerprint: str) -> None:
    """Note that a source whose stamp before it was read was `stamp` gives this fingerprint, if it is still the same."""
    if stamp is None or of(source, tokenizer) != stamp:
        return
    try:
        disk.write_json(directory / FILE, {"stamp": stamp, "fingerprint": fingerprint}, indent=None)
    except ResourceError:
        return  # the source is read once more, no harm
