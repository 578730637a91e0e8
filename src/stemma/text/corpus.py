"""Texts to train a tokenizer on: walked more than once without being held in memory."""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from stemma import disk

AT_ONCE = 1 << 18  # characters counted at a time
_HEAD = struct.Struct("<q")


class _Written:
    """Texts in a temporary file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def __iter__(self) -> Iterator[str]:
        self.file.seek(0)
        while head := self.file.read(_HEAD.size):
            yield self.file.read(_HEAD.unpack(head)[0]).decode("utf-8", "surrogatepass")


@contextlib.contextmanager
def repeatable(texts: Iterable[str]) -> Iterator[Iterable[str]]:
    """The texts, to be walked again and again, one walk at a time. Those of an iterator are written to a temporary
    file. Raises ResourceError if the disk is full."""
    if iter(texts) is not texts:
        yield texts
        return
    with disk.writing(Path(tempfile.gettempdir())):
        file = tempfile.TemporaryFile(prefix="stemma-")  # noqa: SIM115
    with file:
        for text in texts:
            raw = text.encode("utf-8", "surrogatepass")
            with disk.writing(Path(tempfile.gettempdir())):
                file.write(_HEAD.pack(len(raw)) + raw)
        with disk.writing(Path(tempfile.gettempdir())):
            file.flush()
        yield _Written(file)


def characters(texts: Iterable[str], normal: Callable[[str], str]) -> Counter[str]:
    """How often each character is in the texts as `normal` writes them. `normal` must treat every character by itself,
    as BERT's normalizer does."""
    seen = np.zeros(0x110000, dtype=np.int64)
    held: list[str] = []
    size = 0

    def count() -> None:
        codes = np.frombuffer("".join(held).encode("utf-32-le", "surrogatepass"), np.uint32)
        found = np.bincount(codes)
        seen[: len(found)] += found

    for text in texts:
        held.append(text)
        size += len(text)
        if size >= AT_ONCE:
            count()
            held.clear()
            size = 0
    count()
    counts: Counter[str] = Counter()
    for code in np.flatnonzero(seen).tolist():
        for char in normal(chr(code)):
            counts[char] += int(seen[code])
    return counts
