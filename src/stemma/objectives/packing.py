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

OUTSIDE = -1  # document number of padding


class View(Protocol):
    """Documents as token ids, without special tokens."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Any: ...
    def sentences(self, i: int) -> Any: ...
    def text(self, i: int) -> str: ...


@dataclass(frozen=True, order=True)
class Cursor:
    """Where a stream of examples stands: `slot`, a place in the endless order of documents (slot // documents is the
    epoch), and `offset` in that document (the next token, or the next sentence for sentence pairs)."""

    slot: int = 0
    offset: int = 0


START = Cursor()


class Order:
    """The endless order of a view's documents: a new one each epoch, found at any place without going there."""

    def __init__(self, seed: int, documents: int) -> None:
        if documents == 0:
            raise DataError("there is no document to train on")
        self.seed, self.documents = seed, documents

    def __getitem__(self, slot: int) -> tuple[int, int]:
        """(document, epoch) at a place of the order."""
        epoch, place = divmod(slot, self.documents)
        return draw.shuffled((self.seed, ORDER, epoch), self.documents, place), epoch


class Part(NamedTuple):
    """`tokens` of a document from `start` on, as a row holds them."""

    document: int
    epoch: int
    start: int
    tokens: int


class Span(NamedTuple):
    """A stretch of the stream: its parts, how many tokens they are, and where it begins."""

    parts: list[Part]
    size: int
    at: Cursor

    @property
    def key(self) -> tuple[int, int, int]:
        """(document, epoch, offset) of the first token: what draws for the whole stretch depend on."""
        return self.parts[0][:3]


class Window(NamedTuple):
    """`values` (K N): aligned rows of a stretch of the stream; `documents` (N): 0, 1, ... by document, -1 for padding;
    `positions` (N): from 0 in each document; `langs` (N): the number of each one's language, 0 where none are told."""

    values: Ints
    documents: Ints
    positions: Ints
    langs: Ints


class Reader:
    """The documents of a view in order, as `piece(document, epoch)` writes them (K x tokens), of which `length`
    tells the number of tokens (or what else an offset counts) without writing them. `langs`: the number of each
    document's language, for a model that is told."""

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

    def settle(self, at: Cursor) -> Cursor | None:
        """`at`, or the first token after it if it stands at an end; None at the end of the epoch if `once`."""
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

    def spans(self, cursor: Cursor, size: int, stride: int) -> Iterator[tuple[Span, Cursor]]:
        """Stretches of `size` tokens, one every `stride` (size or size - 1), each with the cursor of the next."""
        here = self.settle(cursor)
        while here is not None:
            parts: list[Part] = []
            fill, start = 0, here
            at: Cursor | None = here
            follow: Cursor | None = None
            while at is not None and fill < size:
                document, epoch = self.order[at.slot]
                take = min(size - fill, self.length(document) - at.offset)
                parts.append(Part(document, epoch, at.offset, take))
                if fill <= stride < fill + take:
                    follow = Cursor(at.slot, at.offset + stride - fill)
                fill += take
                at = self.settle(Cursor(at.slot, at.offset + take))
            last = at if at is not None else Cursor(self.order.documents)
            yield Span(parts, fill, start), follow or last
            here = self.settle(follow or last)

    def window(self, span: Span, size: int, padding: Sequence[int]) -> Window:
        """The tokens of a stretch in a row of `size`."""
        values = np.repeat(np.asarray(padding, dtype=np.int64)[:, None], size, 1)
        documents = np.full(size, OUTSIDE, dtype=np.int64)
        positions, langs = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        fill = 0
        for i, part in enumerate(span.parts):
            here = slice(fill, fill + part.tokens)
            values[:, here] = self.read(part.document, part.epoch)[:, part.start : part.start + part.tokens]
            documents[here] = i
            positions[here] = np.arange(part.tokens)
            if self.langs is not None:
                langs[here] = self.langs[part.document]
            fill += part.tokens
        return Window(values, documents, positions, langs)
