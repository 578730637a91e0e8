"""What T5's paper compares span corruption with (Raffel et al. 2020, section 3.3, tables 3 and 5): tokens that fall out
one by one, and shuffled texts. In the released code: iid_noise_mask and the functions of t5/data/preprocessors.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stemma.data import random as draw
from stemma.declare import objectives as declared
from stemma.declare.family import Text
from stemma.errors import UsageError
from stemma.objectives import base, purposes
from stemma.objectives.rewriting import Key, Pair, Rewriting, Shape

NOWHERE = 2**40  # tokens of a text that cannot be rewritten: more than fit anywhere


class TokenCorruption(Rewriting, of=declared.Corruption):
    """Each token falls out with a probability; a text without one loses one. Which is decided from left to right, so
    that a longer text loses the same ones among its first tokens.

    The mask token is the tokenizer's, or, as in T5, the first sentinel. Of runs that are replaced, a text loses as many
    as there are sentinels, one of which closes the goal of a text that ends with kept tokens; where they do not
    suffice, the text is cut."""

    @classmethod
    def required_roles(cls, spec: declared.Corruption, text: Text) -> tuple[tuple[str, ...], ...]:
        match spec.style:
            case "replace":
                return *cls.roles, ("sentinels",)
            case "mask":
                return *cls.roles, ("mask", "sentinels")
        return cls.roles

    def __init__(self, spec: declared.Corruption, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.sentinels: base.Ints = np.asarray(
            [self.tokenizer.sentinel(k) for k in range(int(self.tokenizer.sentinels))], dtype=np.int64
        )
        if spec.style == "replace" and len(self.sentinels) < 2:
            raise UsageError(
                f"replaced runs need sentinels, and the tokenizer has {len(self.sentinels)}; set text.sentinels=100"
            )
        if spec.style == "mask" and self.tokenizer.mask_id is None and not len(self.sentinels):
            raise UsageError("this objective needs a mask token or sentinels, and the tokenizer has neither")
        self.room = self.context
        self.raw = self.context if spec.style == "mask" else int(self.context / (1 - spec.rate)) + 32
        self._known: tuple[Key, base.Ints, base.Ints] | None = None

    @property
    def mask(self) -> int:
        """What stands for a token that fell out, where the goal is the whole text."""
        return int(self.tokenizer.mask_id if self.tokenizer.mask_id is not None else self.sentinels[0])

    def draws(self, key: Key) -> NDArray[np.bool_]:
        """Which of the first `raw` tokens of a text fall out."""
        return draw.uniform((self.seed, purposes.NOISE, *key), self.raw) < self.spec.rate

    def noise(self, length: int, key: Key) -> NDArray[np.bool_]:
        """Which tokens of a text fall out, at least one."""
        found = self.draws(key)[:length].copy()
        if not found.any():
            found[int(draw.uniform((self.seed, purposes.FORCE, *key), 1)[0] * length)] = True
        return found

    def shape(self, length: int, key: Key) -> Shape:
        more = len(self.front) + len(self.close)
        if self.spec.style == "mask":
            return Shape(length + more, length + 1)
        if self._known is None or self._known[0] != key:
            lost = self.draws(key)
            begins = lost & ~np.concatenate([[False], lost[:-1]])
            self._known = key, np.cumsum(lost), np.cumsum(begins)
        if length > self.raw:
            return Shape(NOWHERE, NOWHERE)
        gone, runs = (max(1, int(counts[length - 1])) for counts in self._known[1:])
        kept = length - int(self._known[1][length - 1])
        if self.spec.style == "drop":
            return Shape(kept + more, gone + 1)
        if runs >= len(self.sentinels):
            return Shape(NOWHERE, NOWHERE)
        return Shape(kept + runs + more, gone + runs + 2)

    def rewrite(self, text: base.Ints, key: Key) -> Pair:
        tokens = text[0]
        lost = self.noise(len(tokens), key)
        match self.spec.style:
            case "mask":
                rng = draw.generator(self.seed, purposes.NOISE, *key)
                other = self.plain[rng.integers(len(self.plain), size=len(tokens))]
                new = np.where(rng.random(len(tokens)) < self.spec.random, other, self.mask)
                inputs, goal = np.where(lost, new, tokens), tokens
            case "drop":
                inputs, goal = tokens[~lost], tokens[lost]
            case _:
                inputs, goal = self.replaced(tokens, lost)
        return Pair(np.concatenate([self.front, inputs, self.close]).astype(np.int64), np.append(goal, self.eos))

    def replaced(self, tokens: base.Ints, lost: NDArray[np.bool_]) -> tuple[base.Ints, base.Ints]:
        """A sentinel in the place of each run, and the runs, each after its sentinel."""
        inputs: list[int] = []
        goal: list[int] = []
        runs = 0
        for i, token in enumerate(tokens.tolist()):
            if not lost[i]:
                inputs.append(token)
                continue
            if i == 0 or not lost[i - 1]:
                inputs.append(int(self.sentinels[runs]))
                goal.append(int(self.sentinels[runs]))
                runs += 1
            goal.append(token)
        if not lost[-1]:
            goal.append(int(self.sentinels[runs]))
        return np.asarray(inputs, dtype=np.int64), np.asarray(goal, dtype=np.int64)


class Deshuffling(Rewriting, of=declared.Deshuffle):
    """The tokens of a text in random order are input, the text is the goal."""

    even = True

    def __init__(self, spec: declared.Deshuffle, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.room = self.context
        self.raw = self.longest()

    def shape(self, length: int, key: Key) -> Shape:
        return Shape(len(self.front) + length + len(self.close), length + 1)

    def rewrite(self, text: base.Ints, key: Key) -> Pair:
        order = draw.generator(self.seed, purposes.SHUFFLE, *key).permutation(text.shape[1])
        inputs = np.concatenate([self.front, text[0, order], self.close]).astype(np.int64)
        return Pair(inputs, np.append(text[0], self.eos))
