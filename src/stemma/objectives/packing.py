"""The documents of a text in a reproducible order, packed into rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stemma.data import random as draw
from stemma.data.mixture import Mixed
from stemma.errors import DataError
from stemma.objectives.purposes import ORDER

Ints = NDArray[np.int64]

PAD_DOCUMENT = -1  # document number of padding


class View(Protocol):
    """Documents, or pieces of long ones, as token ids without special tokens. `closed`: whether a document ends here
    and does not go on in another piece."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Any: ...
    def sentences(self, i: int) -> Any: ...
    def text(self, i: int) -> str: ...
    def closed(self, i: int) -> bool: ...


@dataclass(frozen=True, order=True)
class Cursor:
    """A position in a stream of examples. `slot`: index into the endless order of documents, whose epoch is
    slot // documents; `offset`: the next token of that document, or its next sentence for sentence pairs."""

    slot: int = 0
    offset: int = 0


START = Cursor()


class Order:
    """The endless order of a view's documents: shuffled anew each epoch, with random access."""

    def __init__(self, seed: int, documents: int) -> None:
        if documents == 0:
            raise DataError("there is no document to train on")
        self.seed, self.documents = seed, documents

    def __getitem__(self, slot: int) -> tuple[int, int]:
        """(document, epoch) at index `slot`."""
        epoch, place = divmod(slot, self.documents)
        return draw.shuffled((self.seed, ORDER, epoch), self.documents, place), epoch


class Slice(NamedTuple):
    """`tokens` tokens of a document, from `start` on."""

    document: int
    epoch: int
    start: int
    tokens: int


class Chunk(NamedTuple):
    """Consecutive tokens of the stream: slices of documents, their number of tokens, and where the first stands."""

    parts: list[Slice]
    size: int
    at: Cursor

    @property
    def key(self) -> tuple[int, int, int]:
        """(document, epoch, offset) of the first token: the key of random draws for the chunk."""
        return self.parts[0][:3]


class PackedRow(NamedTuple):
    """A chunk, padded. `values` (K N): tokens and what is aligned with them; `documents` (N): 0, 1, ..., -1: padding;
    `positions` (N): from 0 in each document; `langs` (N): language ids, 0 for a model without languages."""

    values: Ints
    documents: Ints
    positions: Ints
    langs: Ints


class Packer:
    """Packs documents into rows. `piece(document, epoch)`: the document as K x tokens; `length(document)`: its number
    of tokens (or of what an offset counts), without writing it; `langs`: language id of each document, or None."""

    def __init__(
        self,
        order: Order | Mixed,
        length: Callable[[int], int],
        piece: Callable[[int, int], Ints],
        once: bool,
        langs: Ints | None = None,
    ) -> None:
        self.order, self.length, self.piece, self.once, self.langs = order, length, piece, once, langs
        self._pieces: dict[tuple[int, int], Ints] = {}

    def seek(self, at: Cursor) -> Cursor | None:
        """`at`, or, at the end of a document, the next token after it; None at the end of the epoch if `once`."""
        empty = 0
        while True:
            if self.once and at.slot >= self.order.documents:
                return None
            if at.offset < self.length(self.order[at.slot][0]):
                return at
            at = Cursor(at.slot + 1)
            empty += 1
            if empty > self.order.documents + 1:
                raise DataError("there is no token to train on: every document is empty")

    def read(self, document: int, epoch: int) -> Ints:
        """The whole piece of a document."""
        key = (document, epoch)
        if key not in self._pieces:
            if len(self._pieces) >= 8:
                self._pieces.pop(next(iter(self._pieces)))
            self._pieces[key] = self.piece(document, epoch)
        return self._pieces[key]

    def chunks(self, cursor: Cursor, size: int, stride: int) -> Iterator[tuple[Chunk, Cursor]]:
        """Chunks of `size` tokens that begin every `stride` tokens, each with the cursor of the next."""
        here = self.seek(cursor)
        while here is not None:
            parts: list[Slice] = []
            fill, start = 0, here
            at: Cursor | None = here
            follow: Cursor | None = None
            while at is not None and fill < size:
                document, epoch = self.order[at.slot]
                take = min(size - fill, self.length(document) - at.offset)
                parts.append(Slice(document, epoch, at.offset, take))
                if fill <= stride < fill + take:
                    follow = Cursor(at.slot, at.offset + stride - fill)
                fill += take
                at = self.seek(Cursor(at.slot, at.offset + take))
            last = at if at is not None else Cursor(self.order.documents)
            yield Chunk(parts, fill, start), follow or last
            here = self.seek(follow or last)

    def row(self, chunk: Chunk, size: int, padding: Sequence[int]) -> PackedRow:
        """The tokens of a chunk in a row of `size`, padded with `padding` (one value for each of the K)."""
        values = np.repeat(np.asarray(padding, dtype=np.int64)[:, None], size, 1)
        documents = np.full(size, PAD_DOCUMENT, dtype=np.int64)
        positions, langs = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        fill = 0
        for i, part in enumerate(chunk.parts):
            here = slice(fill, fill + part.tokens)
            values[:, here] = self.read(part.document, part.epoch)[:, part.start : part.start + part.tokens]
            documents[here] = i
            positions[here] = np.arange(part.tokens)
            if self.langs is not None:
                langs[here] = self.langs[part.document]
            fill += part.tokens
        return PackedRow(values, documents, positions, langs)


def first_fit(sizes: Sequence[int]) -> list[list[int]]:
    """Items of these sizes, by their numbers, in rows as long as the longest of them: the longest first, each in the
    first row that has room (first-fit decreasing)."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        at = next((r for r, left in enumerate(room) if left >= sizes[i]), len(rows))
        if at == len(rows):
            rows.append([])
            room.append(max(sizes))
        rows[at].append(i)
        room[at] -= sizes[i]
    return rows
