"""Which documents are held out from training: decided by each text's own hash and a seed."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stemma.data import random
from stemma.data.documents import Document, Source
from stemma.data.sources import read
from stemma.errors import DataError


def content_hash(text: str) -> int:
    """A 64-bit hash of a document's text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def pieces(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents. If there is only one, it is divided at blank lines, or without these at line ends."""
    rows = iter(documents)
    first = next(rows, None)
    if first is None:
        return
    second = next(rows, None)
    if second is not None:
        yield first
        yield second
        yield from rows
        return
    whole, name = first.text, first.name
    stem, _, line = name.rpartition(":")
    base, number = (stem, int(line)) if stem and line.isdigit() else (name, 1)
    for cut in (r"\n[^\S\n]*(?:\n[^\S\n]*)+", r"\n"):
        edges = [0, *(m.end() for m in re.finditer(cut, whole)), len(whole)]
        parts = [(a, whole[a:b].strip("\n")) for a, b in itertools.pairwise(edges)]
        parts = [(a, part) for a, part in parts if part.strip()]
        if len(parts) > 1:
            line_of, last = number, 0
            for a, part in parts:
                line_of += whole.count("\n", last, a)
                last = a
                yield first._replace(text=part, name=f"{base}:{line_of}", group="")
            return
    yield first


def held_out(hashes: npt.NDArray[np.uint64], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """bool[n]: which documents are held out. It depends on a document's own hash and the seed, so equal texts stay
    together and other texts do not matter. If one side would be empty, the text nearest to the threshold changes sides.
    Raises DataError if there are fewer than two different texts."""
    if not 0 < fraction < 1:
        raise DataError(f"the held-out fraction is {fraction}; a number between 0 and 1 was expected")
    unique, where = np.unique(hashes, return_inverse=True)
    if len(unique) < 2:
        raise DataError(
            "the text cannot be divided into training and held-out documents: it has only one document, without a "
            "line end; give more text, or several lines"
            if len(hashes) < 2
            else "the text cannot be divided into training and held-out documents: all its documents are the same"
        )
    draw = random.hashed((seed, 0x5EED), unique)
    out = draw < fraction
    if not out.any():
        out[draw.argmin()] = True
    elif out.all():
        out[draw.argmax()] = False
    return out[where]


def bound(hashes: npt.NDArray[np.uint64], groups: Sequence[Any]) -> npt.NDArray[np.uint64]:
    """uint64[n]: hashes that are equal for documents that must stay on one side: those of a group, and those with the
    same text, transitively (union-find; each set gets its smallest hash). `groups`: "" or -1 for none."""
    root = list(range(len(hashes)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    first: dict[Any, int] = {}
    for i, (text, group) in enumerate(zip(hashes.tolist(), groups, strict=True)):
        keys = [("text", text)] if group in ("", -1) else [("text", text), ("group", group)]
        for key in keys:
            a, b = find(first.setdefault(key, i)), find(i)
            if a != b:
                low, high = (a, b) if hashes[a] <= hashes[b] else (b, a)
                root[high] = low
    return hashes[[find(i) for i in range(len(hashes))]] if len(hashes) else hashes


def divided(hashes: npt.NDArray[np.uint64], groups: Sequence[Any], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """`held_out` of documents with groups, which stay on one side. Raises DataError if they leave nothing to divide."""
    joined = bound(hashes, groups)
    if len(np.unique(joined)) < 2 <= len(np.unique(hashes)):
        raise DataError(
            f"the text cannot be divided into training and held-out documents: all {len(hashes)} of them have one "
            "value in the field 'group', which binds translations of each other; if it means something else, add "
            "#group=none to the name of the data"
        )
    return held_out(joined, fraction, seed)


def training_texts(source: Source | str, val_fraction: float = 0.05, seed: int = 0) -> Iterator[str]:
    """The training texts of `Store.split(val_fraction, seed)`, before there is a store, for training a tokenizer.
    Walks the source twice. Raises DataError."""
    source = read(source) if isinstance(source, str) else source
    seen = [(content_hash(document.text), document.group) for document in pieces(source.documents())]
    hashes = np.array([text for text, _ in seen], dtype=np.uint64)
    groups = [group for _, group in seen]
    out = divided(hashes, groups, val_fraction, seed) if any(groups) else held_out(hashes, val_fraction, seed)
    for document, away in zip(pieces(source.documents()), out, strict=True):
        if not away:
            yield document.text
