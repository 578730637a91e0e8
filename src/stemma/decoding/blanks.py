"""Decoding under a prefix mask: what a prompt holds is seen whole, and what is written fills a blank of it (GLM).

A prompt is `context start`, where the context has tokens that stand for a blank ([MASK], [sMASK], [gMASK]) and `start`
(<|startofpiece|>, <sop>) begins what fills the first of them. After one filled blank, `start` again begins the next:
`context start a b start`. A prompt of ids is taken as it is: without `start` all of it is context, and the first new
token stands where `start` would. A prompt of text gets `start` at its end, and before it the blank for the end of a
text where it names none.

Positions are those of training. Where places are pairs (`Position.columns` is 2), context has (0, 0), (1, 0), ..., and
what fills the blank at place m has (m, 1), (m, 2), ..., `start` first; without a blank, m is the last place of the
context. Where places are single (GLM-130B), what fills a blank has its place m, but what fills the blank for the end of
a text, or none, goes on counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stemma.decoding.session import Session
from stemma.errors import UsageError
from stemma.nn.model import Model


class Marks(NamedTuple):
    """The ids by which a model knows blanks: the token that begins what fills one, and those that stand for one, of
    which `end` is for the end of a text."""

    start: int | None = None
    blanks: tuple[int, ...] = ()
    end: int | None = None


def marks(model: Model) -> Marks:
    """Of the checkpoint's config where it names them, else of the tokenizer."""
    text, known = model.text, model.tokenizer
    if text is None or not text.blanks:
        return Marks()
    blanks = text.blank_ids
    if not blanks and known is not None:
        blanks = tuple(i for name in text.blanks if (i := known.id(name)) is not None)
    start = text.bos_id
    if start is None and known is not None and text.bos is not None:
        start = known.id(text.bos)
    return Marks(start, blanks, blanks[-1] if len(blanks) > 1 else None)


def context(model: Model, text: str, special: bool) -> list[int]:
    """The ids of what is seen whole: nothing stands around it but the token that begins a text, if there is one.
    `special`: names of special tokens in the text mean these."""
    known = model.tokenizer
    named = model.text.cls if model.text is not None else None
    first = known.id(named) if named is not None else None
    ids: list[int] = known.encode(text, add_special=False, allow_special=special)
    return ids if first is None else [first, *ids]


def prompt(model: Model, text: str) -> list[int]:
    """The ids of a text that is to be gone on with, or whose first blank is to be filled."""
    known = marks(model)
    names = any(name in text for name in model.text.blanks) if model.text is not None else False
    ids = context(model, text, names)
    if known.start is None or not known.blanks:
        return ids
    blank = [] if any(i in known.blanks for i in ids) else [known.blanks[-1]]
    return [*ids, *blank, known.start]


class Placed(NamedTuple):
    """A prompt's `places` (in the text, in a blank), how many of its tokens are context, and where the next one stands:
    at the place `at` (None: goes on counting) and as the `block`th of its blank."""

    places: list[tuple[int, int]]
    context: int
    at: int | None
    block: int


def place(ids: Sequence[int], known: Marks, columns: int) -> Placed:
    """Where the tokens of a prompt stand."""
    context = next((i for i, token in enumerate(ids) if token == known.start), len(ids))
    blanks = [(i, token) for i, token in enumerate(ids[:context]) if token in known.blanks]
    places = [(i, 0) for i in range(context)]
    at, block = _beside(blanks, 0, context, known, columns), 1
    filled = -1
    for i in range(context, len(ids)):
        if ids[i] == known.start:
            filled += 1
            at, block = _beside(blanks, filled, context, known, columns), 1
        places.append((i if at is None else at, block))
        block += 1
    return Placed(places, context, at, block)


def _beside(blanks: list[tuple[int, int]], k: int, context: int, known: Marks, columns: int) -> int | None:
    """The place of what fills the k-th blank (the last one, if there are fewer)."""
    if not blanks:
        return max(context - 1, 0) if columns > 1 else None
    at, token = blanks[min(k, len(blanks) - 1)]
    return None if columns == 1 and token == known.end else at


class BlankSession(Session):
    """A decoding whose rows have a context that is seen whole, and fill a blank of it."""

    PER_ROW = (*Session.PER_ROW, "at", "block")

    def _place(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        known, columns = marks(self.model), self._columns
        placed = [place(text, known, columns) for text in texts]
        longest = max(len(text) for text in texts)
        positions = torch.zeros(len(texts), longest, 2, dtype=torch.int64)
        for row, of in zip(positions, placed, strict=True):
            row[: len(of.places)] = torch.tensor(of.places)
        positions = positions.to(self.device)
        self.at = torch.tensor([-1 if of.at is None else of.at for of in placed], device=self.device)
        self.block = torch.tensor([of.block for of in placed], device=self.device)
        if columns > 1:
            self._check_tables(int(positions.max()), [of.block for of in placed])
        prefix = torch.tensor([of.context for of in placed], device=self.device)
        return positions if columns > 1 else positions[..., 0], prefix

    def _next(self) -> Tensor:
        place = torch.where(self.at < 0, self.lengths, self.at)[:, None]
        return torch.stack([place, self.block[:, None]], -1) if self._columns > 1 else place

    def step(self, tokens: Tensor) -> Tensor:
        logits = super().step(tokens)
        self.block = self.block + 1
        return logits

    @property
    def _columns(self) -> int:
        assert self.model.decoder is not None
        return self.model.decoder.position.columns

    def _check_room(self) -> None:
        if self._columns == 1 or self._limit is None:  # two tables end apart: `_check_tables`
            super()._check_room()

    def _last_place(self) -> int:
        return int(self.block.max()) if self._columns > 1 else super()._last_place()

    def _check_tables(self, most: int, blocks: Sequence[int]) -> None:
        """The table of places and that of places in a blank end apart from each other."""
        limit = self._limit
        if limit is None:
            return
        if most >= limit:
            raise UsageError(f"a prompt reaches place {most}, and this model's position table has {limit} rows")
        last, room = max((block + room - 2, room) for block, room in zip(blocks, self.room, strict=True))
        if last >= limit:
            raise UsageError(
                f"max_new_tokens={room} does not fit: this model's position table has {limit} rows; use "
                f"max_new_tokens={max(room - (last - limit + 1), 0)}"
            )
