"""Infilling (Bavarian et al. 2022, arXiv:2207.14255; Roziere et al. 2023, arXiv:2308.12950, section 2.3)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from stemma.data import random as draw
from stemma.declare import objectives as declared
from stemma.declare.family import INFILL_NAMES as NAMES
from stemma.declare.family import Text
from stemma.errors import UsageError
from stemma.nn.model import IGNORED
from stemma.objectives import base, purposes
from stemma.objectives.clm import NextToken

WHOLE_WORDS = ("wordpiece", "gpt-bpe")  # kinds of tokenizer that take a part of a word for another word


class Piece(NamedTuple):
    """Tokens of a document in a row, and what follows each of them there (`goals`; IGNORED behind the last one).
    `closed`: whether the document ends with them and not elsewhere."""

    tokens: base.Ints
    goals: base.Ints
    closed: bool = True


class Infilling(NextToken, of=declared.Infill):
    """Next-token prediction on documents of which `rate`, where a row holds them whole, are written

        PSM  bos PRE prefix SUF suffix MID middle EOT
        SPM  bos PRE SUF suffix MID prefix middle EOT    (`swapped` of them)

    and all others, also those that a row cuts, `bos tokens eos`. Every token is predicted, the marks too. The two
    places of the cut are drawn uniformly; in SPM prefix and middle are tokenised as one, so that only PSM sees the
    parts of a cut token; what follows something is tokenised as its continuation, without the space that some
    tokenizers put in front of a text. What becomes of a document is a function of (seed, document, epoch) and of the
    room that is left in its row.

    The length of a rearranged document depends on where it is cut, so that planning has to tokenise it.
    """

    streamed = False

    def __init__(self, spec: declared.Infill, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.marks = [self._mark(name) for name in setting.text.infill or NAMES]
        if spec.cut == "characters" and self.tokenizer.kind in WHOLE_WORDS:
            raise UsageError(
                f"a {self.tokenizer.kind} tokenizer cannot write a part of a word; use objective.cut=tokens"
            )

    @classmethod
    def tokens(cls, spec: declared.Infill, text: Text) -> tuple[str, ...]:
        return text.infill or NAMES

    def _mark(self, name: str) -> int:
        found = self.tokenizer.id(name)
        if found is None:
            raise UsageError(f"infilling needs the token {name}, and the tokenizer has none")
        return int(found)

    # ------------------------------------------------------------ one document

    def rearranged(self, view: base.View, document: int, epoch: int) -> base.Ints | None:
        """A document with its middle at the end; None for those that stay as they are."""
        rng = draw.generator(self.seed, purposes.INFILL, document, epoch)
        if rng.random() >= self.spec.rate:
            return None
        swapped = rng.random() < self.spec.swapped
        prefix, middle, suffix = self._cut(view, document, rng, swapped)
        pre, suf, mid, end = ([mark] for mark in self.marks)
        order = (
            [pre, suf, suffix, mid, prefix, middle, end] if swapped else [pre, prefix, suf, suffix, mid, middle, end]
        )
        return np.concatenate([self.before, *order]).astype(np.int64)

    def _cut(
        self, view: base.View, document: int, rng: np.random.Generator, swapped: bool
    ) -> tuple[base.Ints, base.Ints, base.Ints]:
        """Prefix, middle and suffix of a document; the middle with the prefix where they are `swapped`."""
        if self.spec.cut == "tokens":
            whole = np.asarray(view[document], dtype=np.int64)
            a, b = np.sort(rng.integers(0, len(whole) + 1, size=2))
            return whole[:a], whole[a:b], whole[b:]
        text = view.text(document)
        a, b = np.sort(rng.integers(0, len(text) + 1, size=2))
        if swapped:
            return self._ids(text[:b]), np.zeros(0, dtype=np.int64), self._ids(text[b:], True)
        return self._ids(text[:a]), self._ids(text[a:b], True), self._ids(text[b:], True)

    def _ids(self, text: str, goes_on: bool = False) -> base.Ints:
        known = self.tokenizer
        ids = known.encode_continuation(text) if goes_on else known.encode(text, add_special=False)
        return np.asarray(ids, dtype=np.int64)

    # ------------------------------------------------------------ rows

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        packer = base.Packer(
            self.order(view, once), partial(self.length, view), lambda d, _: self.straight(view, d)[None], once
        )
        here = packer.seek(cursor)
        while here is not None:
            pieces: list[Piece] = []
            room = self.context
            at: base.Cursor | None = here
            while at is not None and room > 0:
                piece, at = self._next(view, packer, at, room)
                pieces.append(piece)
                room -= len(piece.tokens)
            yield partial(self.row, packer, pieces, at), at or base.Cursor(packer.order.documents)
            here = at

    def _next(
        self, view: base.View, packer: base.Packer, at: base.Cursor, room: int
    ) -> tuple[Piece, base.Cursor | None]:
        """What stands next in a row with `room` left, and the place after it."""
        document, epoch = packer.order[at.slot]
        length = packer.length(document)
        if at.offset == 0 and length <= room:
            found = self.rearranged(view, document, epoch)
            if found is not None and len(found) <= room:
                return Piece(found, np.append(found[1:], IGNORED)), packer.seek(base.Cursor(at.slot + 1))
        whole = packer.read(document, epoch)[0]
        end = min(length, at.offset + room)
        goals = np.append(whole[at.offset + 1 : end + 1], [IGNORED] if end == length else [])
        piece = Piece(whole[at.offset : end], goals.astype(np.int64), view.closed(document))
        return piece, packer.seek(base.Cursor(at.slot, end))

    def row(self, packer: base.Packer, pieces: list[Piece], follow: base.Cursor | None) -> base.Example:
        """One example of the pieces, padded to `context`."""
        sizes = [len(piece.tokens) for piece in pieces]
        gap = self.context - sum(sizes)
        labels = [piece.goals.copy() for piece in pieces]
        closes = self.before[0] if self.shared else None
        for i, goal in enumerate(labels):
            if goal[-1] != IGNORED or not pieces[i].closed:
                continue
            if closes is not None:  # the next document's bos ends this one
                goal[-1] = closes
            elif self.mixed and i + 1 < len(pieces):
                goal[-1] = pieces[i + 1].tokens[0]
            elif self.mixed and self.before and follow is not None and not gap:
                goal[-1] = self.before[0]

        def fill(values: list[base.Ints], padding: int) -> base.Ints:
            return np.pad(np.concatenate(values).astype(np.int64), (0, gap), constant_values=padding)

        return {
            "input_ids": fill([piece.tokens for piece in pieces], self.padding),
            "labels": fill(labels, IGNORED),
            "documents": fill([np.full(n, i) for i, n in enumerate(sizes)], base.PAD_DOCUMENT),
            "position_ids": fill([np.arange(n) for n in sizes], 0),
        }
