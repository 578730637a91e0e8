"""UL2's mixture of denoisers (Tay et al. 2022, arXiv:2205.05131, section 3.1), and UL2R's for continued training of a
decoder (Tay et al. 2022, arXiv:2210.11399, section 2)."""

from __future__ import annotations

import math

import numpy as np

from stemma.data import random as draw
from stemma.declare import objectives as declared
from stemma.declare.family import Text
from stemma.errors import UsageError
from stemma.objectives import base, purposes
from stemma.objectives.corruption import NOWHERE
from stemma.objectives.prefix import place
from stemma.objectives.rewriting import Key, Pair, Rewriting, Shape
from stemma.objectives.spans import Sizes, cut_out


class Mixture(Rewriting, of=declared.Denoisers):
    """Each text meets one of the kinds, drawn by their shares, and says which by the mode token in front of its inputs.

    Spans are cut as in span corruption. A text is as long as its row and the sentinels allow: with 512 tokens and 100
    sentinels, half of the tokens in spans of 3 are lost of texts of 600."""

    @classmethod
    def required_roles(cls, spec: declared.Denoisers, text: Text) -> tuple[tuple[str, ...], ...]:
        return cls.roles if all(kind.rate is None for kind in spec.kinds) else (*cls.roles, ("sentinels",))

    @classmethod
    def tokens(cls, spec: declared.Denoisers, text: Text) -> tuple[str, ...]:
        return tuple(dict.fromkeys(kind.mode for kind in spec.kinds if kind.mode))

    def __init__(self, spec: declared.Denoisers, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.kinds = spec.kinds
        shares = np.asarray([kind.share for kind in spec.kinds])
        self.bounds = np.cumsum(shares) / shares.sum()
        self.modes = [self.mode(kind.mode) for kind in spec.kinds]
        count = int(self.tokenizer.sentinels)
        if count == 0 and any(kind.rate is not None for kind in spec.kinds):
            raise UsageError("denoisers need sentinels, and the tokenizer has none; set text.sentinels=100")
        self.sentinels: base.Ints = np.asarray([self.tokenizer.sentinel(k) for k in range(count)], dtype=np.int64)
        self.room = self.context
        self.raw = math.ceil(self.context / (1 - max(kind.rate or 0.5 for kind in spec.kinds))) + 1

    def mode(self, name: str) -> list[int]:
        """The ids of a mode token (none for a kind without one)."""
        if not name:
            return []
        found = self.tokenizer.id(name)
        if found is None:
            raise UsageError(
                f"the tokenizer has no mode token {name}, which stands before a text; one trained for the run has it"
            )
        return [int(found)]

    def which(self, key: Key) -> int:
        """The kind that a text meets."""
        u = draw.uniform((self.seed, purposes.KIND, *key), 1)[0]
        return int(min(np.searchsorted(self.bounds, u, side="right"), len(self.kinds) - 1))

    def cut(self, length: int, key: Key) -> int:
        """Where a text is cut of which any end may be the goal."""
        return place(length, draw.uniform((self.seed, purposes.CUT, *key), 1)[0])

    def shape(self, length: int, key: Key) -> Shape:
        number = self.which(key)
        kind = self.kinds[number]
        more = len(self.front) + len(self.modes[number]) + len(self.close)
        if kind.rate is None:
            cut = self.cut(length, key)
            return Shape(more + cut, length - cut + 1)
        sizes = Sizes(kind, length)
        if sizes.spans > len(self.sentinels):
            return Shape(NOWHERE, NOWHERE)
        return Shape(more + sizes.inputs - 1, sizes.targets)

    def rewrite(self, text: base.Ints, key: Key) -> Pair:
        number, tokens = self.which(key), text[0]
        kind = self.kinds[number]
        if kind.rate is None:
            cut = self.cut(len(tokens), key)
            inputs, goal = tokens[:cut], tokens[cut:]
        else:
            rng = draw.generator(self.seed, purposes.SPAN, *key)
            inputs, goal = cut_out(tokens, Sizes(kind, len(tokens)), self.sentinels, rng)
        inputs = np.concatenate([self.front, self.modes[number], inputs, self.close]).astype(np.int64)
        return Pair(inputs, np.append(goal, self.eos))
