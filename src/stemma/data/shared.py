"""Stores shared by runs: tokenised once in the cache directory, linked into every run that uses them.

The cache has one store for each source, tokenizer and version of the code, in `stores/<hash>`: that of the text as it
was last read. A run gets hard links to the store's files, or copies if the cache is on another file system, so runs and
cache can be deleted independently. A store that no run has used for UNUSED days is deleted when a new one is made.
Files in the cache are read-only, and their checksums are verified before a run gets them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

from stemma import disk
from stemma.data import builtin, stamps
from stemma.data.documents import Source
from stemma.data.encoding import Encoder
from stemma.data.sources import read
from stemma.data.store import Store
from stemma.data.writer import Progress
from stemma.errors import CheckpointError

UNUSED = 30.0  # days after which an unused store is deleted


def root() -> Path:
    """The folder of the shared stores."""
    return builtin.cache() / "stores"


def place(source: Source, tokenizer: Encoder) -> Path | None:
    """The folder in the cache for a source and a tokenizer; None for text in memory and streams."""
    if source.paths is None:
        return None
    facts = [
        stamps.rules(),
        source.name,
        source.facts,
        tokenizer.fingerprint,
        [str(path.absolute()) for path in source.paths],
    ]
    return root() / hashlib.sha256(json.dumps(facts).encode("utf-8", "replace")).hexdigest()[:32]


def build(
    source: Source | str,
    tokenizer: Encoder,
    directory: str | Path,
    *,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Store:
    """`Store.build` through the cache: the store in `directory` is linked from the shared one of this text and
    tokenizer. It is built in place if the cache is not writable, or the text is in memory or streamed."""
    source = read(source) if isinstance(source, str) else source
    directory, slot = Path(directory), place(source, tokenizer)
    if slot is not None:
        try:
            if not slot.is_dir():
                clear(UNUSED)
                slot.mkdir(parents=True, exist_ok=True)
        except OSError:
            slot = None
    if slot is None or not os.access(slot, os.W_OK):
        return Store.build(source, tokenizer, directory, progress=progress, workers=workers)
    with disk.lock(slot) as alone:
        store = Store._build(source, tokenizer, slot, progress, workers, alone)
        try:
            store.verify()
        except CheckpointError:
            (slot / "meta.json").unlink()
            store = Store._build(source, tokenizer, slot, progress, workers, alone)
        os.utime(slot)
        return _give(store, directory)


def _give(store: Store, directory: Path) -> Store:
    """Link the files of `store` into `directory`, and open it there."""
    for left in directory.glob(".meta.json.*.tmp"):  # of a process that was killed while writing
        left.unlink(missing_ok=True)
    if (held := Store._same(directory, store.fingerprint)) is not None:
        return held
    version = store.meta["version"]
    target = directory / version
    with disk.writing(directory):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in store.meta["files"]:
            _link(store.directory / version / f"{name}.bin", target / f"{name}.bin")
    disk.write(directory / "meta.json", (store.directory / "meta.json").read_bytes())
    for other in directory.iterdir():
        if other.is_dir() and other.name != version and (other / "tokens.bin").exists():
            shutil.rmtree(other, ignore_errors=True)
    return Store.open(directory)


def _link(source: Path, target: Path) -> None:
    with contextlib.suppress(OSError):
        source.chmod(0o444)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def stores() -> list[tuple[Path, int, str]]:
    """(folder, bytes on disk, name of the source) of each shared store; the name is "" for an unfinished one."""
    found = []
    for slot in sorted(root().iterdir()) if root().is_dir() else ():
        try:
            name = str(disk.read_object(slot / "meta.json").get("source", ""))
        except CheckpointError:
            name = ""
        found.append((slot, sum(path.stat().st_size for path in slot.rglob("*") if path.is_file()), name))
    return found


def clear(days: float = 0.0) -> int:
    """Delete the shared stores unused for `days`. Returns the freed bytes; the links of runs stay."""
    freed = 0
    for slot, size, _ in stores():
        if time.time() - slot.stat().st_mtime >= days * 86400:
            with disk.lock(slot):
                shutil.rmtree(slot, ignore_errors=True)
            freed += size
    return freed
