"""Blank filling under a prefix mask (GLM): the tokens of a prompt's context see each other, new tokens fill a blank.

A prompt is `context start`. The context holds tokens that stand for blanks ([MASK], [sMASK], [gMASK]); `start`
(<|startofpiece|>, <sop>) begins the text of the first one. Behind a filled blank, `start` begins the text of the next:
`context start a b start`. A prompt of ids is used as it is: without `start` all of it is context, and the first new
token takes the position of `start`. A prompt of text gets `start` at its end, and before it the end-of-text blank
where it names no blank.

Positions are those of training. With pairs of positions (`Position.columns` is 2), the context has (0, 0), (1, 0), ...;
the text of the blank at place m has (m, 1), (m, 2), ..., `start` first; without a blank, m is the last place of the
context. With single positions (GLM-130B), the whole text of a blank has position m, but the text of the end-of-text
blank, or of none, counts on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stemma.decoding.session import Session
from stemma.errors import UsageError
from stemma.nn.model import Model


class BlankTokens(NamedTuple):
    """Token ids of blank filling: `start` begins the text of a blank; `blanks` stand for blanks; `end` is the blank at
    the end of a text, if it is one of its own."""

    start: int | None = None
    blanks: tuple[int, ...] = ()
    end: int | None = None


def blank_tokens(model: Model) -> BlankTokens:
    """From the checkpoint's config where it names them, else from the tokenizer."""
    text, tokenizer = model.text, model.tokenizer
    if text is None or not text.blanks:
        return BlankTokens()
    blanks = text.blank_ids
    if not blanks and tokenizer is not None:
        blanks = tuple(i for name in text.blanks if (i := tokenizer.id(name)) is not None)
    start = text.bos_id
    if start is None and tokenizer is not None and text.bos is not None:
        start = tokenizer.id(text.bos)
    return BlankTokens(start, blanks, blanks[-1] if len(blanks) > 1 else None)


def context(model: Model, text: str, special: bool) -> list[int]:
    """The ids of a context: no special token around it but the one that begins a text, if there is one. `special`:
    names of special tokens in the text become these tokens."""
    tokenizer = model.tokenizer
    cls = model.text.cls if model.text is not None else None
    first = tokenizer.id(cls) if cls is not None else None
    ids: list[int] = tokenizer.encode(text, add_special=False, allow_special=special)
    return ids if first is None else [first, *ids]


def prompt(model: Model, text: str) -> list[int]:
    """The ids of a text that is to be continued, or whose first blank is to be filled."""
    tokens = blank_tokens(model)
    names = any(name in text for name in model.text.blanks) if model.text is not None else False
    ids = context(model, text, names)
    if tokens.start is None or not tokens.blanks:
        return ids
    blank = [] if any(i in tokens.blanks for i in ids) else [tokens.blanks[-1]]
    return [*ids, *blank, tokens.start]


class Placed(NamedTuple):
    """A prompt's `places` (in the text, in the blank), how many of its tokens are `context`, and the next token's
    position: place `at` (None: it counts on) and place `block` in its blank."""

    places: list[tuple[int, int]]
    context: int
    at: int | None
    block: int


def place(ids: Sequence[int], tokens: BlankTokens, columns: int) -> Placed:
    """The positions of a prompt."""
    context = next((i for i, token in enumerate(ids) if token == tokens.start), len(ids))
    blanks = [(i, token) for i, token in enumerate(ids[:context]) if token in tokens.blanks]
    places = [(i, 0) for i in range(context)]
    at, block = _place_of(blanks, 0, context, tokens, columns), 1
    filled = -1
    for i in range(context, len(ids)):
        if ids[i] == tokens.start:
            filled += 1
            at, block = _place_of(blanks, filled, context, tokens, columns), 1
        places.append((i if at is None else at, block))
        block += 1
    return Placed(places, context, at, block)


def _place_of(blanks: list[tuple[int, int]], k: int, context: int, tokens: BlankTokens, columns: int) -> int | None:
    """The place of the k-th blank's text (of the last blank, if there are fewer)."""
    if not blanks:
        return max(context - 1, 0) if columns > 1 else None
    at, token = blanks[min(k, len(blanks) - 1)]
    return None if columns == 1 and token == tokens.end else at


class BlankSession(Session):
    """Rows that fill a blank of their context."""

    PER_ROW = (*Session.PER_ROW, "at", "block")
    COUNTS_ON = False

    def _place(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        tokens, columns = blank_tokens(self.model), self._columns
        placed = [place(text, tokens, columns) for text in texts]
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

    def _places(self, ahead: Tensor) -> Tensor:
        place = torch.where(self.at[:, None] < 0, self.lengths[:, None] + ahead, self.at[:, None])
        return torch.stack([place, self.block[:, None] + ahead], -1) if self._columns > 1 else place

    def _next_places(self) -> list[int]:
        places: list[int] = self._places(torch.zeros_like(self.lengths)[:, None]).flatten().tolist()
        return places

    def _advance(self, counts: Tensor | int) -> None:
        super()._advance(counts)
        self.block = self.block + counts

    @property
    def _columns(self) -> int:
        assert self.model.decoder is not None
        return self.model.decoder.position.columns

    def _check_room(self) -> None:
        if self._columns == 1 or self._limit is None:  # two tables end apart: `_check_tables`
            super()._check_room()

    def _last_places(self) -> Tensor:
        return self.block if self._columns > 1 else super()._last_places()

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
