"""Which documents, or parts of long ones, are held out from training: decided by their own hash and a seed."""

from __future__ import annotations

import hashlib
import itertools
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from stemma.data import blocks, random
from stemma.data.documents import Document, Source
from stemma.data.sources import read
from stemma.errors import DataError

Unit = Literal["document", "block"]
PURPOSE = 0x5EED  # of the draws
RUN = 8  # blocks of a document that are held out together at most
DRAWS = 16  # that are held out of a text that allows it
MISS = 0.2  # share of the held-out fraction by which the draws may miss it


def content_hash(text: str) -> int:
    """A 64-bit hash of a document's text."""
    return bytes_hash(text.encode("utf-8"))


def bytes_hash(raw: bytes) -> int:
    """The hash of a text in UTF-8."""
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


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
    unique, where = _different(hashes, fraction)
    draw = random.hashed((seed, PURPOSE), unique)
    out = draw < fraction
    if not out.any():
        out[draw.argmin()] = True
    elif out.all():
        out[draw.argmax()] = False
    return out[where]


def _different(hashes: npt.NDArray[np.uint64], fraction: float) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """The different hashes, and which of them each is. Raises DataError if there are fewer than two."""
    if not 0 < fraction < 1:
        raise DataError(f"the held-out fraction is {fraction}; a number between 0 and 1 was expected")
    unique, where = np.unique(hashes, return_inverse=True)
    if len(unique) < 2:
        raise DataError(
            "the text cannot be divided into training and held-out documents: it has only one document (a row, or a "
            "text without a line end); give more of them, or several lines"
            if len(hashes) < 2
            else "the text cannot be divided into training and held-out documents: all its documents are the same"
        )
    return unique, where


class Blocks(NamedTuple):
    """The documents of a text as blocks (`data.blocks`). `edges` int64[documents + 1]: offsets of the documents;
    `hashes`, `sizes` (bytes): of the blocks; `groups`: of the documents, None where none has one."""

    edges: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int64]
    groups: Sequence[Any] | None


def held_out_blocks(text: Blocks, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """bool[blocks]: which are held out, about `fraction` of the bytes.

    A short document is drawn, a whole one with a group, or up to `RUN` consecutive blocks of a long one: fewer of a
    small text, so that about `DRAWS` are held out. A draw depends on the hash of the text and the seed alone, and what
    falls below `fraction` is held out. Where this misses the share by more than `MISS` of it, the threshold moves until
    the share is as near as it comes; so a text that grows keeps most of what was held out of it. Raises DataError if
    there is nothing to divide."""
    counts = np.diff(text.edges)
    run = 1
    while run < RUN and fraction * int(text.sizes.sum()) > DRAWS * 2 * run * blocks.MOST:
        run *= 2
    within = np.arange(len(text.hashes)) - np.repeat(text.edges[:-1], counts)
    first = within % run == 0
    if text.groups is not None:
        alone = np.asarray([group in ("", -1) for group in text.groups])
        first &= np.repeat(alone, counts) | (within == 0)
    starts = np.flatnonzero(first)
    hashes = text.hashes[starts]
    if text.groups is not None:
        owner = np.searchsorted(text.edges, starts, side="right") - 1
        hashes = joined(hashes, [text.groups[i] for i in owner.tolist()])
    unique, where = _different(hashes, fraction)
    sizes = np.bincount(where, weights=np.add.reduceat(text.sizes, starts)).astype(np.float64)
    out = chosen(random.hashed((seed, PURPOSE), unique), sizes, fraction)[where]
    return np.repeat(out, np.diff(np.append(starts, len(text.hashes))))


def chosen(draw: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], fraction: float) -> npt.NDArray[np.bool_]:
    """bool[n]: those with a draw below `fraction`; where their share of all sizes is too far from it, those with the
    smallest draws whose share is nearest, and of these none that is twice the share, unless all are."""
    target = fraction * sizes.sum()
    below = draw < fraction
    if below.any() and not below.all() and abs(sizes[below].sum() - target) <= MISS * target:
        return below
    order = np.argsort(draw, kind="stable")
    fit = order[sizes[order] <= max(2 * target, sizes.min())]
    enough = int(np.abs(np.cumsum(sizes[fit]) - target).argmin()) + 1
    out = np.zeros(len(draw), dtype=bool)
    out[fit[: min(enough, len(draw) - 1)]] = True
    return out


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


def joined(hashes: npt.NDArray[np.uint64], groups: Sequence[Any]) -> npt.NDArray[np.uint64]:
    """`bound`. Raises DataError if nothing is left to divide."""
    found = bound(hashes, groups)
    if len(np.unique(found)) < 2 <= len(np.unique(hashes)):
        raise DataError(
            f"the text cannot be divided into training and held-out documents: all {len(hashes)} of them have one "
            "value in the field 'group', which binds translations of each other; if it means something else, add "
            "#group=none to the name of the data"
        )
    return found


def divided(hashes: npt.NDArray[np.uint64], groups: Sequence[Any], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """`held_out` of documents with groups, which stay on one side. Raises DataError if they leave nothing to divide."""
    return held_out(joined(hashes, groups), fraction, seed)


def training_texts(
    source: Source | str, val_fraction: float = 0.05, seed: int = 0, unit: Unit = "document"
) -> Iterator[str]:
    """The training texts of `Store.split(val_fraction, seed, unit)`, before there is a store, for training a tokenizer;
    of a divided document each part that is not interrupted. Walks the source twice. Raises DataError."""
    source = read(source) if isinstance(source, str) else source
    counts, hashes, sizes = array("q"), array("Q"), array("q")
    groups: list[str] = []
    for document in pieces(source.documents()):
        parts = blocks.divided(document.text) if unit == "block" else [document.text]
        counts.append(len(parts))
        for part in parts:
            raw = part.encode("utf-8")
            hashes.append(bytes_hash(raw))
            sizes.append(len(raw))
        groups.append(document.group)
    every, known = np.asarray(hashes, dtype=np.uint64), groups if any(groups) else None
    if unit == "block":
        edges = np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))])
        text = Blocks(edges, every, np.asarray(sizes, dtype=np.int64), known)
        out = held_out_blocks(text, val_fraction, seed)
    else:
        out = held_out(every, val_fraction, seed) if known is None else divided(every, known, val_fraction, seed)
    changed = f"{source.name} changed while it was read; run the command again when nothing writes to it"
    at = 0
    for document in pieces(source.documents()):
        parts = blocks.divided(document.text) if unit == "block" else [document.text]
        away = out[at : at + len(parts)].tolist()
        at += len(parts)
        if at > len(out):
            raise DataError(changed)
        for held, run in itertools.groupby(zip(away, parts, strict=True), key=lambda each: each[0]):
            if not held:
                yield "".join(part for _, part in run)
    if at < len(out):
        raise DataError(changed)
