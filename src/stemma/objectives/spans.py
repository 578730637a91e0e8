"""Span corruption (Raffel et al. 2020, section 3.1.4; the released t5/data/preprocessors.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from stemma.data import random as draw
from stemma.errors import UsageError
from stemma.families import goals
from stemma.nn.model import IGNORED, Model
from stemma.objectives.base import (
    ALONE,
    OUTSIDE,
    SPAN,
    Batch,
    Cursor,
    Example,
    Ints,
    Loss,
    Make,
    Nets,
    Objective,
    Part,
    Reader,
    Setting,
    Span,
    View,
    layout,
    several,
    stack,
    targets,
)


class Sizes:
    """How many tokens of a text fall out, in how many spans, and what is left of it."""

    def __init__(self, spec: goals.Spans, length: int) -> None:
        self.noise = min(max(round(length * spec.rate), 1), max(length - 1, 1))
        self.spans = min(max(round(self.noise / spec.mean), 1), max(length - self.noise, 1))
        self.inputs = length - self.noise + self.spans + 1  # with the end token
        self.targets = self.noise + self.spans + 1


def raw_length(spec: goals.Spans, context: int) -> int:
    """The longest text whose corrupted form has at most `context` tokens: 568 for 512 at T5's numbers."""
    length = 2
    while Sizes(spec, length + 1).inputs <= context:
        length += 1
    return length


def partition(items: int, parts: int, rng: np.random.Generator) -> Ints:
    """`items` cut into `parts` non-empty runs, each way equally likely; their lengths."""
    cuts = np.sort(rng.permutation(items - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [items]]))


class SpanCorruption(Objective):
    """A text with spans fallen out, a sentinel in the place of each; the targets are the spans after their sentinels.

    Both are closed by eos; a text begins with a kept token and ends with a span. `mixed`: the published packing, one
    text of `raw` tokens cut from documents run together, inputs of exactly `context` tokens. Otherwise a row is filled
    with corrupted texts, none of two documents; encoder, decoder and the attention between them stay within each.
    The corruption of a text is a function of (seed, document, epoch, offset).
    """

    structures = ("encoder-decoder",)

    def __init__(self, spec: goals.Spans, setting: Setting) -> None:
        super().__init__(setting)
        text, tokenizer, context, mixed = setting.text, self.tokenizer, self.context, self.mixed
        self.spec = spec
        self.eos = self.need("eos")
        self.start = self.padding if text.start_id is None or text.start_id == text.pad_id else text.start_id
        self.raw = raw_length(spec, context)
        whole = Sizes(spec, self.raw)
        if whole.spans > int(tokenizer.sentinels):
            raise UsageError(
                f"a row of {context} tokens loses {whole.spans} spans, and the tokenizer has {tokenizer.sentinels} "
                "sentinels; shorten the context or lower objective.rate"
            )
        self.sentinels: Ints = np.asarray([tokenizer.sentinel(k) for k in range(whole.spans)], dtype=np.int64)
        # short texts have more targets a token, so rows of several get more room
        self.room = whole.targets if mixed else 8 * math.ceil(whole.targets * 1.25 / 8)

    def corrupt(self, tokens: Ints, key: tuple[int, ...]) -> tuple[Ints, Ints]:
        """Inputs and targets of a text, both with eos."""
        sizes = Sizes(self.spec, len(tokens))
        rng = draw.generator(self.seed, SPAN, *key)
        if len(tokens) == 1:
            return np.array([self.sentinels[0], self.eos]), np.array([self.sentinels[0], tokens[0], self.eos])
        lost = partition(sizes.noise, sizes.spans, rng)
        kept = partition(len(tokens) - sizes.noise, sizes.spans, rng)
        runs = np.split(tokens, np.cumsum(np.stack([kept, lost], 1).ravel())[:-1])  # kept, lost, kept, lost ...
        inputs: list[Any] = []
        goal: list[Any] = []
        for k in range(sizes.spans):
            inputs += [runs[2 * k], self.sentinels[k : k + 1]]
            goal += [self.sentinels[k : k + 1], runs[2 * k + 1]]
        end = np.array([self.eos])
        return np.concatenate([*inputs, end]).astype(np.int64), np.concatenate([*goal, end]).astype(np.int64)

    def plan(self, view: View, cursor: Cursor = Cursor(), once: bool = False) -> Iterator[tuple[Make, Cursor]]:
        def piece(document: int, _: int) -> Ints:
            return np.asarray(view[document], dtype=np.int64)[None]

        reader = Reader(self.order(view), lambda d: len(view[d]), piece, once)
        for span, follow in (
            self.spans(reader, view, cursor, self.raw, self.raw) if self.mixed else self.apart(reader, cursor)
        ):
            yield partial(self.example, reader, span), follow

    def example(self, reader: Reader, span: Span) -> Example:
        """A row of corrupted texts: one of all parts run together, or one a part."""
        if self.mixed:
            tokens = reader.window(span, span.size, [self.padding]).values[0]
            return self.row([self.corrupt(tokens, span.key)])
        return self.row(
            [
                self.corrupt(reader.read(d, epoch)[0, start : start + n], (d, epoch, start))
                for d, epoch, start, n in span.parts
            ]
        )

    def apart(self, reader: Reader, cursor: Cursor) -> Iterator[tuple[Span, Cursor]]:
        """Rows as full as corrupted texts of different documents make them."""
        here = reader.settle(cursor)
        while here is not None:
            parts: list[Part] = []
            inputs, room = self.context, self.room
            at: Cursor | None = here
            while at is not None:
                document, epoch = reader.order[at.slot]
                rest = reader.length(document) - at.offset
                take = self.fit(rest, inputs, room)
                if take < rest and parts and take < 8:
                    break  # no scrap of a long text at the end of a row
                if take == 0:
                    break
                sizes = Sizes(self.spec, take)
                parts.append(Part(document, epoch, at.offset, take))
                inputs, room = inputs - sizes.inputs, room - sizes.targets
                at = reader.settle(Cursor(at.slot, at.offset + take))
            yield Span(parts, sum(p.tokens for p in parts), here), at or Cursor(reader.order.documents)
            here = at

    def fit(self, length: int, inputs: int, room: int) -> int:
        """How many of `length` tokens fit into what is left of a row's inputs and targets (0 if none do)."""
        low, high = 0, min(length, self.raw)
        while low < high:
            middle = (low + high + 1) // 2
            sizes = Sizes(self.spec, middle)
            if sizes.inputs <= inputs and sizes.targets <= room:
                low = middle
            else:
                high = middle - 1
        return low

    def row(self, texts: list[tuple[Ints, Ints]]) -> Example:
        """One example from corrupted texts, padded to `context` inputs and `room` targets."""

        def fill(parts: list[Ints], size: int, value: int) -> Ints:
            row = np.full(size, value, dtype=np.int64)
            joined = np.concatenate(parts)
            row[: len(joined)] = joined
            return row

        inputs, goals = [t[0] for t in texts], [t[1] for t in texts]
        numbers = range(len(texts))
        return {
            "input_ids": fill(inputs, self.context, self.padding),
            "documents": fill(
                [np.full(len(t), i) for i, t in zip(numbers, inputs, strict=True)], self.context, OUTSIDE
            ),
            "position_ids": fill([np.arange(len(t)) for t in inputs], self.context, 0),
            "labels": fill(goals, self.room, IGNORED),
            "decoder_input_ids": fill([np.concatenate([[self.start], t[:-1]]) for t in goals], self.room, self.padding),
            # padding follows the last text, so that it has something to look at; nothing looks at it
            "decoder_documents": fill(
                [np.full(len(t), i) for i, t in zip(numbers, goals, strict=True)], self.room, len(texts) - 1
            ),
            "decoder_position_ids": fill([np.arange(len(t)) for t in goals], self.room, 0),
        }

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = stack(examples, *examples[0])
        batch |= targets(batch.pop("labels"))
        padded = batch["documents"] == OUTSIDE
        if not several(examples):
            for name in ("documents", "position_ids", "decoder_documents", "decoder_position_ids"):
                del batch[name]
            if bool(padded.any()):
                batch["attention_mask"] = (~padded).to(torch.int64)
        return batch

    def loss(self, model: Model, batch: Batch, nets: Nets = ALONE) -> Loss:
        mask, documents = batch.get("attention_mask"), batch.get("documents")
        memory = model.encode(batch["input_ids"], mask, position_ids=layout(model, batch), documents=documents)
        hidden = model.decode(
            batch["decoder_input_ids"],
            position_ids=layout(model, batch, "decoder_position_ids"),
            documents=batch.get("decoder_documents"),
            memory=memory,
            memory_mask=mask,
            memory_documents=documents,
        )
        return Loss({self.main: self.token_loss(model, hidden, batch)}, self.counts(batch))
