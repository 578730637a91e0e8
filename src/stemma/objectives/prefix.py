"""Predict the rest of a text from its beginning (Raffel et al. 2020, sections 3.2.1 and 3.3.1; Liu et al. 2018)."""

from __future__ import annotations

import numpy as np

from stemma.data import random as draw
from stemma.declare import objectives as declared
from stemma.objectives import base, purposes
from stemma.objectives.rewriting import Key, Pair, Rewriting, Shape


def place(length: int, u: float) -> int:
    """Where a text is cut: anywhere inside it, `u` (in [0, 1)) says where; a single token is all rest."""
    return min(1 + int(u * (length - 1)), length - 1)


class Continuation(Rewriting, of=declared.PrefixLM):
    """The beginning of a text is input, its rest the goal; all places to cut are equally likely. In a decoder a row
    holds a text of `context` tokens."""

    def __init__(self, spec: declared.PrefixLM, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.room = self.context
        self.raw = self.context - len(self.front)

    def cut(self, length: int, key: Key) -> int:
        """Tokens of the beginning."""
        return place(length, draw.uniform((self.seed, purposes.CUT, *key), 1)[0])

    def shape(self, length: int, key: Key) -> Shape:
        cut = self.cut(length, key)
        return Shape(len(self.front) + cut + len(self.close), length - cut + 1)

    def rewrite(self, text: base.Ints, key: Key) -> Pair:
        cut = self.cut(text.shape[1], key)
        inputs = np.concatenate([self.front, text[0, :cut], self.close]).astype(np.int64)
        return Pair(inputs, np.append(text[0, cut:], self.eos))
