"""Stores shared by runs: tokenised once in the cache directory, linked into every run that needs them.

The cache has a place for each source and tokenizer, `stores/<hash>`, which holds one store: that of the text as it was
last (and a place of its own for each version of the code that reads and tokenises). A run gets the store's files as
hard links, or as copies where the cache is on another file system, so it stands on its own: the cache may be deleted at
any time (and what no run asked for in a month is, when something new comes), and a run that is deleted leaves the cache
as it was. Files in the cache are read-only and are compared with their checksums before they are given away.
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

UNUSED = 30.0  # days after which a store that no run asked for makes room


def root() -> Path:
    """Where shared stores are kept."""
    return builtin.cache() / "stores"


def place(source: Source, tokenizer: Encoder) -> Path | None:
    """The place in the cache for a source and a tokenizer; None for text that only this process has."""
    if source.paths is None:
        return None
    told = [
        stamps.rules(),
        source.name,
        source.facts,
        tokenizer.fingerprint,
        [str(path.absolute()) for path in source.paths],
    ]
    return root() / hashlib.sha256(json.dumps(told).encode("utf-8", "replace")).hexdigest()[:32]


def build(
    source: Source | str,
    tokenizer: Encoder,
    directory: str | Path,
    *,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Store:
    """`Store.build` by way of the cache: the store in `directory`, linked from the one that all runs on this text and
    tokenizer share. Where the cache cannot be written, or the text is in memory or streamed, it is built in place."""
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
    """The store with its files linked into `directory`."""
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
    """The shared stores: place, bytes on disk, and what they were made of ("" for one that is not finished)."""
    found = []
    for slot in sorted(root().iterdir()) if root().is_dir() else ():
        try:
            name = str(disk.read_object(slot / "meta.json").get("source", ""))
        except CheckpointError:
            name = ""
        found.append((slot, sum(path.stat().st_size for path in slot.rglob("*") if path.is_file()), name))
    return found


def clear(days: float = 0.0) -> int:
    """Delete the shared stores that no run asked for in so many days; the bytes that they held. Runs keep theirs."""
    freed = 0
    for slot, size, _ in stores():
        if time.time() - slot.stat().st_mtime >= days * 86400:
            with disk.lock(slot):
                shutil.rmtree(slot, ignore_errors=True)
            freed += size
    return freed
