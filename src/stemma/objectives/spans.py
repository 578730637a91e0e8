"""Span corruption (Raffel et al. 2020, section 3.1.4; the released t5/data/preprocessors.py)."""

from __future__ import annotations

import math

import numpy as np

from stemma.data import random as draw
from stemma.declare import objectives as declared
from stemma.declare.family import Text
from stemma.errors import UsageError
from stemma.objectives import base, purposes
from stemma.objectives.rewriting import Key, Pair, Rewriting, Shape


class Sizes:
    """How many tokens of a text fall out, in how many spans, and what is left of it. Without a mean length of spans
    there is one."""

    def __init__(self, spec: declared.Spans | declared.Denoiser, length: int) -> None:
        assert spec.rate is not None
        self.noise = min(max(round(length * spec.rate), 1), max(length - 1, 1))
        wanted = 1 if spec.mean is None else round(self.noise / spec.mean)
        self.spans = min(max(wanted, 1), max(length - self.noise, 1))
        self.inputs = length - self.noise + self.spans + 1  # with the end token
        self.targets = self.noise + self.spans + 1


def raw_length(spec: declared.Spans, context: int) -> int:
    """The longest text whose corrupted form has at most `context` tokens: 568 for 512 at T5's numbers."""
    length = 2
    while Sizes(spec, length + 1).inputs <= context:
        length += 1
    return length


def partition(items: int, parts: int, rng: np.random.Generator) -> base.Ints:
    """`items` cut into `parts` non-empty runs, each way equally likely; their lengths."""
    cuts = np.sort(rng.permutation(items - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [items]]))


def cut_out(
    tokens: base.Ints, sizes: Sizes, sentinels: base.Ints, rng: np.random.Generator
) -> tuple[base.Ints, base.Ints]:
    """A text with spans fallen out, a sentinel in the place of each, and the spans after their sentinels. It begins
    with a kept token, unless it is its only one, and ends with a span."""
    if len(tokens) == 1:
        return sentinels[:1], np.concatenate([sentinels[:1], tokens])
    lost = partition(sizes.noise, sizes.spans, rng)
    kept = partition(len(tokens) - sizes.noise, sizes.spans, rng)
    runs = np.split(tokens, np.cumsum(np.stack([kept, lost], 1).ravel())[:-1])  # kept, lost, kept, lost ...
    inputs: list[base.Ints] = []
    goal: list[base.Ints] = []
    for k in range(sizes.spans):
        inputs += [runs[2 * k], sentinels[k : k + 1]]
        goal += [sentinels[k : k + 1], runs[2 * k + 1]]
    return np.concatenate(inputs), np.concatenate(goal)


class SpanCorruption(Rewriting, of=declared.Spans):
    """A text with spans fallen out, a sentinel in the place of each; the targets are the spans after their sentinels.

    The goal is closed by eos, and so are the inputs of an encoder-decoder; a text begins with a kept token and ends
    with a span. `mixed`: the published packing, one text of `raw` tokens cut from documents run together, inputs of
    exactly `context` tokens.
    """

    even = True

    @classmethod
    def required_roles(cls, spec: declared.Spans, text: Text) -> tuple[tuple[str, ...], ...]:
        return *cls.roles, ("sentinels",)

    def __init__(self, spec: declared.Spans, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.raw = self.longest() if self.single else raw_length(spec, self.context)
        whole = Sizes(spec, self.raw)
        if whole.spans > int(self.tokenizer.sentinels):
            raise UsageError(
                f"a row of {self.context} tokens loses {whole.spans} spans, and the tokenizer has "
                f"{self.tokenizer.sentinels} sentinels; shorten the context or lower objective.rate"
            )
        self.sentinels: base.Ints = np.asarray([self.tokenizer.sentinel(k) for k in range(whole.spans)], dtype=np.int64)
        # short texts have more targets a token, so rows of several get more room
        self.room = whole.targets if self.mixed else 8 * math.ceil(whole.targets * 1.25 / 8)

    def shape(self, length: int, key: Key) -> Shape:
        sizes = Sizes(self.spec, length)
        return Shape(sizes.inputs - 1 + len(self.front) + len(self.close), sizes.targets)

    def rewrite(self, text: base.Ints, key: Key) -> Pair:
        return Pair(*self.corrupt(text[0], key))

    def corrupt(self, tokens: base.Ints, key: Key) -> tuple[base.Ints, base.Ints]:
        """Inputs and targets of a text."""
        inputs, goal = cut_out(
            tokens, Sizes(self.spec, len(tokens)), self.sentinels, draw.generator(self.seed, purposes.SPAN, *key)
        )
        ends = (self.front, inputs, self.close), (goal, [self.eos])
        return np.concatenate(ends[0]).astype(np.int64), np.concatenate(ends[1]).astype(np.int64)
