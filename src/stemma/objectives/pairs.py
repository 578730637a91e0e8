"""Masked tokens and next-sentence prediction (Devlin et al. 2018, sections 3.1 and A.2)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch.nn.functional as F

from stemma.data import random as draw
from stemma.errors import UsageError
from stemma.families import goals
from stemma.nn.model import IGNORED, Model
from stemma.objectives.base import (
    ALONE,
    PAIR,
    Batch,
    Cursor,
    Example,
    Ints,
    Loss,
    Make,
    Nets,
    Objective,
    Reader,
    Setting,
    View,
    stack,
    targets,
)
from stemma.objectives.mlm import replace

SHORT = 0.1  # how often a shorter pair is made, so that short inputs are seen too


class MaskedPairs(Objective):
    """`[CLS] A [SEP] B [SEP]`: half of the time B follows A in its document (label 0), else it comes from another
    (label 1). A pair is a function of (seed, document, epoch or copy, first sentence).

    The algorithm is that of the released create_pretraining_data.py, with the draws keyed instead of in sequence, and
    with sentences longer than half a row split, which the released code would cut off. `max_pred` is its flag at the
    published lengths: 20 at 128 tokens, 77 at 512.
    """

    structures = ("encoder",)

    def __init__(self, spec: goals.MLM, setting: Setting) -> None:
        super().__init__(dataclasses.replace(setting, mixed=True))
        self.spec = spec
        self.mask, self.cls, self.sep = self.need("mask"), self.need("cls"), self.need("sep")
        self.max_pred = math.ceil(spec.rate * self.context)
        self.everything: Ints = np.arange(self.tokenizer.vocab_size, dtype=np.int64)

    def copy(self, epoch: int) -> int:
        """Which of the `copies` of the data an epoch reads."""
        return epoch % self.spec.copies if self.spec.copies else epoch

    def sentences(self, view: View, document: int) -> list[Ints]:
        """The sentences of a document, none longer than half a row."""
        tokens = np.asarray(view[document], dtype=np.int64)
        starts = [int(s) for s in view.sentences(document)]
        edges = sorted({0, len(tokens), *(s for s in starts if 0 < s < len(tokens))})
        half = max(1, (self.context - 3) // 2)
        return [tokens[i : min(i + half, b)] for a, b in itertools.pairwise(edges) for i in range(a, b, half)]

    def plan(self, view: View, cursor: Cursor = Cursor(), once: bool = False) -> Iterator[tuple[Make, Cursor]]:
        held: tuple[int, list[Ints]] = (-1, [])

        def sentences(document: int) -> list[Ints]:
            nonlocal held
            if held[0] != document:
                held = (document, self.sentences(view, document))
            return held[1]

        # an offset counts sentences here
        order = self.order(view)
        reader = Reader(order, lambda d: len(sentences(d)), lambda d, _: np.asarray(view[d])[None], once)
        order = reader.order
        here = reader.settle(cursor)
        while here is not None:
            document, epoch = order[here.slot]
            example, used = self.pair(view, document, epoch, sentences(document), here.offset)
            follow = reader.settle(Cursor(here.slot, here.offset + used))
            yield partial(dict, example), follow or Cursor(order.documents)
            here = follow

    def pair(self, view: View, document: int, epoch: int, sentences: list[Ints], first: int) -> tuple[Example, int]:
        """The pair that starts at sentence `first`, and how many sentences it uses up."""
        rng = draw.generator(self.seed, PAIR, document, self.copy(epoch), first)
        room = self.context - 3
        wanted = int(rng.integers(2, room + 1)) if rng.random() < SHORT else room
        chunk: list[Ints] = []
        length = 0
        for sentence in sentences[first:]:
            chunk.append(sentence)
            length += len(sentence)
            if length >= wanted:
                break
        end = int(rng.integers(1, len(chunk))) if len(chunk) >= 2 else 1
        a, used = np.concatenate(chunk[:end]), len(chunk)
        strange = len(chunk) == 1 or rng.random() < 0.5
        if strange:
            b = self.strange(view, document, wanted - len(a), rng)
            used = end  # what B would have been is put back
        else:
            b = np.concatenate(chunk[end:])
        a, b = truncate(a, b, room, rng)
        return self.example(a, b, int(strange), rng), used

    def strange(self, view: View, document: int, wanted: int, rng: np.random.Generator) -> Ints:
        """Sentences from a random place of another document, until there are `wanted` tokens."""
        other = document
        for _ in range(10):
            other = int(rng.integers(len(view)))
            if other != document and len(view[other]):
                break
        sentences = self.sentences(view, other if len(view[other]) else document)
        picked: list[Ints] = []
        for sentence in sentences[int(rng.integers(len(sentences))) :]:
            picked.append(sentence)
            if sum(map(len, picked)) >= wanted:
                break
        return np.concatenate(picked)

    def example(self, a: Ints, b: Ints, label: int, rng: np.random.Generator) -> Example:
        """`[CLS] a [SEP] b [SEP]` with its masking, padded to `context`."""
        tokens = np.concatenate([[self.cls], a, [self.sep], b, [self.sep]]).astype(np.int64)
        labels = np.full(len(tokens), IGNORED, dtype=np.int64)
        free = np.concatenate([np.arange(1, len(a) + 1), np.arange(len(a) + 2, len(tokens) - 1)])
        n = min(self.max_pred, max(1, round(self.spec.rate * len(tokens))))
        replace(self, tokens, labels, rng.permutation(free)[:n], rng, self.everything)
        gap = self.context - len(tokens)
        segments = np.repeat([0, 1, 0], [len(a) + 2, len(b) + 1, gap])
        return {
            "input_ids": np.pad(tokens, (0, gap), constant_values=self.padding),
            "labels": np.pad(labels, (0, gap), constant_values=IGNORED),
            "token_type_ids": segments.astype(np.int64),
            "attention_mask": np.repeat([1, 0], [len(tokens), gap]).astype(np.int64),
            "pair_labels": np.asarray(label, dtype=np.int64),
        }

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = stack(examples, "input_ids", "labels", "token_type_ids", "attention_mask", "pair_labels")
        batch |= targets(batch.pop("labels"))
        if bool(batch["attention_mask"].all()):
            del batch["attention_mask"]
        return batch

    def counts(self, batch: Batch) -> dict[str, int]:
        return {self.main: len(batch["targets"]), "pair": len(batch["pair_labels"])}

    def loss(self, model: Model, batch: Batch, nets: Nets = ALONE) -> Loss:
        if model.pooler is None or model.pair is None:
            raise UsageError("objective.pairs needs arch.heads.pooler and arch.heads.pair")
        state = model.state(batch["input_ids"], batch.get("attention_mask"), batch["token_type_ids"])
        pair = model.pair(model.pooler(state.hidden)).float()
        right = (pair.detach().argmax(-1) == batch["pair_labels"]).sum()
        sums = {
            self.main: self.token_loss(model, model.read(state), batch),
            "pair": F.cross_entropy(pair, batch["pair_labels"], reduction="sum"),
        }
        return Loss(sums, self.counts(batch), {"pair_right": float(right)})


def truncate(a: Ints, b: Ints, room: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Drop tokens from the longer of the two, from its front or its back by a coin, until both fit into `room`."""
    cut = {"a": [0, len(a)], "b": [0, len(b)]}
    while True:
        long_a, long_b = cut["a"][1] - cut["a"][0], cut["b"][1] - cut["b"][0]
        if long_a + long_b <= room:
            return a[slice(*cut["a"])], b[slice(*cut["b"])]
        edges = cut["a"] if long_a > long_b else cut["b"]
        if rng.random() < 0.5:
            edges[0] += 1
        else:
            edges[1] -= 1
