"""Restore a text from noise (Lewis et al. 2019, arXiv:1910.13461, section 2.2; the counts are those of fairseq's
denoising_dataset.py)."""

from __future__ import annotations

import math

import numpy as np

from stemma.data import random as draw
from stemma.declare import objectives as declared
from stemma.declare.family import Text
from stemma.errors import DataError, UsageError
from stemma.objectives import base, purposes
from stemma.objectives.languages import numbered
from stemma.objectives.rewriting import Key, Pair, Rewriting, Shape


class Restoration(Rewriting, of=declared.Denoise):
    """A text with noise is input, the text the goal. The noises come in this order, each with what the one before left:
    sentences are permuted, spans infilled, tokens masked, tokens deleted, the text rotated.

    A text is written `cls tokens eos`, of which the ends stay; where the decoder's input is shifted by the last token
    (mBART), `tokens eos code`, with the code of the text's language (of its last token, where texts run together).
    """

    structures: tuple[str, ...] = ("encoder-decoder",)
    even = True

    @classmethod
    def required_roles(cls, spec: declared.Denoise, text: Text) -> tuple[tuple[str, ...], ...]:
        mask = (("mask",),) if spec.infill or spec.mask else ()
        return cls.roles + mask + ((("cls", "bos"),) if text.shift == "start" else ())

    def __init__(self, spec: declared.Denoise, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.mask = self.special_id("mask") if spec.infill or spec.mask else -1
        text = setting.text
        self.shifted = text.shift == "last"
        if self.shifted:
            self.front, self.close = [], [self.eos, self.code("")]
        else:
            self.front, self.close = [self.special_id("cls", "bos")], [self.eos]
        self.room = self.context
        self.raw = self.longest()

    def code(self, language: str) -> int:
        """The token that ends a text of a language: the one of that name, or that goes on with a country after it
        (`de_DE`); the first one where nobody named the language. Raises UsageError if the tokenizer has no codes at
        all, DataError if it lacks this one."""
        codes = self.setting.text.extras
        name = next((c for c in codes if language in ("", c, c.partition("_")[0])), None)
        found = None if name is None else self.tokenizer.id(name)
        if found is None and language:
            raise DataError(
                f"the text has the language {language!r}, and text.extras holds no code for it, but {', '.join(codes)}"
            )
        if found is None:
            raise UsageError("a text ends with its language's code, and the tokenizer has none; see text.extras")
        return int(found)

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        if self.shifted:  # a missing code is told before training
            names = getattr(view, "languages", ("",))
            self.codes = {int(i): self.code(names[i]) for i in np.unique(numbered(view))}
        return super().lazy_examples(view, cursor, once)

    def piece(self, view: base.View, document: int) -> base.Ints:
        tokens = np.asarray(view[document], dtype=np.int64)
        begins = np.zeros(len(tokens), dtype=np.int64)
        starts = np.asarray(view.sentences(document))
        begins[starts[starts < len(tokens)]] = 1
        if not self.shifted:
            return np.stack([tokens, begins])
        return np.stack([tokens, begins, np.full(len(tokens), self.codes[int(numbered(view)[document])])])

    def growth(self, length: int) -> int:
        """Tokens by which noise may make a text longer: spans without a token are mask tokens put in. Twice what is
        expected of them, and two."""
        spec = self.spec
        return 2 + math.ceil(2 * spec.infill * length * math.exp(-spec.mean) / spec.mean) if spec.infill else 0

    def shape(self, length: int, key: Key) -> Shape:
        ends = len(self.front) + len(self.close)
        return Shape(length + self.growth(length) + ends, length + ends)

    def rewrite(self, text: base.Ints, key: Key) -> Pair:
        rng, spec = draw.generator(self.seed, purposes.NOISE, *key), self.spec
        tokens = text[0]
        if spec.permute:
            tokens = permuted(tokens, text[1], spec.permute, rng)
        if spec.infill:
            tokens = self.infilled(tokens, rng)
        if spec.mask:
            tokens = tokens.copy()
            tokens[some(tokens, spec.mask, rng)] = self.masks(math.ceil(spec.mask * len(tokens)), rng)
        if spec.delete:
            tokens = np.delete(tokens, some(tokens, spec.delete, rng))
        if spec.rotate and rng.random() < spec.rotate and len(tokens):
            tokens = np.roll(tokens, -int(rng.integers(len(tokens))))
        close = [self.eos, text[2, -1]] if self.shifted else self.close
        inputs = np.concatenate([self.front, tokens, close]).astype(np.int64)
        goal = np.concatenate([self.front, text[0], close]).astype(np.int64)
        return Pair(inputs, goal, np.roll(goal, 1) if self.shifted else None)

    def masks(self, n: int, rng: np.random.Generator) -> base.Ints:
        """`n` mask tokens, of which some are random ones instead."""
        other = self.plain[rng.integers(len(self.plain), size=n)]
        return np.where(rng.random(n) < self.spec.random, other, self.mask).astype(np.int64)

    def infilled(self, tokens: base.Ints, rng: np.random.Generator) -> base.Ints:
        """A mask token in the place of each span, and further ones for spans of no token.

        Lengths are drawn until they cover the share of the text; the last one is cut to meet it. Spans begin at
        different tokens and may run into each other: then less falls out than was drawn, and a mask token that lies in
        another span falls out with it."""
        budget = math.ceil(self.spec.infill * len(tokens))
        lengths = spans(budget, self.spec.mean, rng)
        real = lengths[lengths > 0]
        at = rng.permutation(len(tokens))[: len(real)]
        lost = np.zeros(len(tokens) + 1, dtype=np.int64)
        for start, length in zip(at, real, strict=True):  # what follows a span's first token
            lost[min(start + 1, len(tokens))] += 1
            lost[min(start + length, len(tokens))] -= 1
        kept = np.cumsum(lost)[:-1] == 0
        out = tokens.copy()
        out[at] = self.masks(len(at), rng)
        out = out[kept]
        room = len(tokens) + self.growth(len(tokens)) - len(out)
        return self.inserted(out, min(len(lengths) - len(real), room), rng)

    def inserted(self, tokens: base.Ints, n: int, rng: np.random.Generator) -> base.Ints:
        """`n` mask tokens more, anywhere."""
        out = np.empty(len(tokens) + n, dtype=np.int64)
        new = np.zeros(len(out), dtype=bool)
        new[rng.permutation(len(out))[:n]] = True
        out[new], out[~new] = self.masks(n, rng), tokens
        return out


def spans(budget: int, mean: float, rng: np.random.Generator) -> base.Ints:
    """Lengths by a Poisson law until they add up to `budget`; the last is cut to that."""
    drawn: list[base.Ints] = []
    while sum(int(part.sum()) for part in drawn) < budget:
        drawn.append(rng.poisson(mean, size=budget))
    lengths = np.concatenate(drawn)
    total = np.cumsum(lengths)
    last = int(np.searchsorted(total, budget))
    lengths = lengths[: last + 1].copy()
    lengths[last] -= total[last] - budget
    return lengths


def permuted(tokens: base.Ints, begins: base.Ints, share: float, rng: np.random.Generator) -> base.Ints:
    """The sentences of a text, of which `share` change places with each other."""
    starts = np.flatnonzero(begins[1:]) + 1
    parts = np.split(tokens, starts)
    moved = rng.permutation(len(parts))[: math.ceil(share * len(parts))]
    order = np.arange(len(parts))
    order[moved] = moved[rng.permutation(len(moved))]
    return np.concatenate([parts[i] for i in order])


def some(tokens: base.Ints, share: float, rng: np.random.Generator) -> base.Ints:
    """Places of `share` of the tokens, rounded up."""
    return rng.permutation(len(tokens))[: math.ceil(share * len(tokens))]
