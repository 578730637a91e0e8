"""Predict a run of a text from the others (Song et al. 2019, arXiv:1905.02450, section 3; the released code:
restricted_mask_sent in MASS-unsupNMT, masked_dataset.py in MASS-summarization)."""

from __future__ import annotations

import numpy as np

from stemma.data import random as draw
from stemma.declare import objectives as declared
from stemma.objectives import base, purposes
from stemma.objectives.mlm import replace
from stemma.objectives.rewriting import Key, Pair, Rewriting, Shape
from stemma.objectives.units import Choice


class MaskedRun(Rewriting, of=declared.Fragment):
    """An encoder reads a text with a run of it masked; a decoder writes the run, and reads before each token of it the
    one that precedes it in the text, at the place where this stands. So it sees nothing of the text but the run.

    A text is written `cls tokens sep` (as far as the tokenizer has these, else with eos), and neither end is masked. A
    long text is cut into blocks, each of which has a run of its own.
    """

    structures: tuple[str, ...] = ("encoder-decoder",)
    roles = ("mask",), ("cls", "bos", "eos"), ("sep", "eos")
    counted = False
    even = True

    def __init__(self, spec: declared.Fragment, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.mask = self.special_id("mask")
        self.front, self.close = [self.special_id("cls", "bos", "eos")], [self.special_id("sep", "eos")]
        self.raw = self.longest()
        self.room = 8 * -(-self.shape(self.raw, ()).goal // 8)

    def blocks(self, length: int) -> list[tuple[int, int]]:
        """Beginning and length of each block."""
        size = self.spec.block or length
        return [(start, min(size, length - start)) for start in range(0, length, size)]

    def run(self, length: int) -> int:
        """Tokens of the run in a block."""
        share = length * self.spec.rate
        return max(1, round(share) if self.spec.block is None else int(share))

    def shape(self, length: int, key: Key) -> Shape:
        return Shape(length + 2, sum(self.run(n) for _, n in self.blocks(length)))

    def chosen(self, length: int, rng: np.random.Generator) -> base.Ints:
        """Places of the tokens that are to be written."""
        runs = []
        for start, n in self.blocks(length):
            free = n - self.run(n)
            u, anywhere = rng.random(), int(rng.integers(free + 1))
            if u < self.spec.start:
                anywhere = 0
            elif u < self.spec.start + self.spec.end:
                anywhere = free
            runs.append(start + anywhere + np.arange(self.run(n)))
        return np.concatenate(runs)

    def rewrite(self, text: base.Ints, key: Key) -> Pair:
        rng = draw.generator(self.seed, purposes.RUN, *key)
        whole = np.concatenate([self.front, text[0], self.close]).astype(np.int64)
        places = self.chosen(text.shape[1], rng) + len(self.front)
        inputs = whole.copy()
        replace(self, inputs, np.empty_like(whole), Choice(places), rng, self.plain)
        return Pair(inputs, whole[places], whole[places - 1], places - 1)
