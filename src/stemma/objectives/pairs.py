"""Masked tokens of two segments, and what is said of the two: BERT's pairs, ALBERT's order, ELECTRA's halves."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from stemma.data import random as draw
from stemma.declare import objectives as declared
from stemma.errors import UsageError
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.nn.parts import Arch
from stemma.objectives import base, purposes
from stemma.objectives.mlm import Masked, replace
from stemma.objectives.units import Chooser

SHORT = 0.1  # how often a shorter pair is made, so that short inputs are seen too
SHORT_HALVES, SINGLE = 0.05, 0.1  # the same for halves, and how often there is one segment only (ELECTRA)


class Cut(NamedTuple):
    """A chunk of `size` sentences, the first segment from `parts`, the second from the others; `label`: 1 if the second
    is not what follows the first: a `strange` text, or the two are swapped; `wanted`: tokens of the pair."""

    size: int
    parts: NDArray[np.bool_]
    wanted: int
    label: int = 0
    strange: bool = False

    @property
    def used(self) -> int:
        """How many sentences are used up: what the second segment would have been is put back."""
        return int(self.parts.sum()) if self.strange else self.size


class MaskedPairs(base.Objective, of=declared.MLM, when=lambda spec: spec.pairs is not None):
    """`[CLS] A [SEP] B [SEP]` with masked tokens. `next` (Devlin et al. 2018, sections 3.1 and A.2): half of the time B
    follows A in its document (label 0), else it comes from another (label 1). `order` (Lan et al. 2019, section 3.1): B
    follows A (label 0), or the two are swapped (label 1); where there is one sentence only, B is a random text with
    label 1, as the released code has it. `halves` (Clark et al. 2020): B follows A, and nothing is said of it. A pair
    is a function of (seed, document, epoch or copy, first sentence).

    The algorithms are those of the released create_pretraining_data.py of BERT and of ALBERT and of ELECTRA's
    build_pretraining_dataset.py, with the draws keyed instead of in sequence (so that a shorter length is drawn
    for each pair, and not once for all pairs of a document as in BERT's and ALBERT's), and with sentences longer than
    half a row split, which the released code would cut off. Without `most`, `rate` of a full row are targets at most,
    which is the flag of BERT's at the published lengths: 20 at 128 tokens, 77 at 512. Random tokens are any of the
    vocabulary.
    """

    structures = ("encoder",)
    roles = ("mask",), ("cls", "bos"), ("sep", "eos")

    def __init__(self, spec: declared.MLM, setting: base.Setting) -> None:
        super().__init__(spec, dataclasses.replace(setting, mixed=True))
        self.choose = Chooser(spec.unit, spec.rate, self.tokenizer)
        self.mask, self.cls, self.sep = (
            self.special_id("mask"),
            self.special_id("cls", "bos"),
            self.special_id("sep", "eos"),
        )
        self.most = math.ceil(spec.rate * self.context) if spec.most is None else spec.most
        self.everything: base.Ints = np.arange(self.tokenizer.vocab_size, dtype=np.int64)

    @classmethod
    def incompatible_reason(cls, spec: declared.MLM, arch: Arch) -> str | None:
        heads = arch.heads
        if arch.structure in cls.structures and spec.pairs != "halves" and not (heads.pooler and heads.pair):
            return (
                f"objective.pairs={spec.pairs!r} needs arch.heads.pooler and arch.heads.pair; set "
                "arch.heads.pooler=Summary() and arch.heads.pair=true"
            )
        return Masked.incompatible_reason(spec, arch)

    def copy(self, epoch: int) -> int:
        """Which of the `copies` of the data an epoch reads."""
        return epoch % self.spec.copies if self.spec.copies else epoch

    def sentences(self, view: base.View, document: int) -> base.Ints:
        """Where the sentences of a document begin, none longer than half a row, and where the last one ends."""
        length = len(view[document])
        starts = [int(s) for s in view.sentences(document)]
        edges = sorted({0, length, *(s for s in starts if 0 < s < length)})
        half = max(1, (self.context - 3) // 2)
        return np.array([i for a, b in itertools.pairwise(edges) for i in range(a, b, half)] + [length])

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        sentences = lru_cache(8)(partial(self.sentences, view))
        # an offset counts sentences here
        order = self.order(view, once)
        packer = base.Packer(order, lambda d: len(sentences(d)) - 1, lambda d, _: np.asarray(view[d])[None], once)
        order = packer.order
        here = packer.seek(cursor)
        while here is not None:
            document, epoch = order[here.slot]
            edges = sentences(document)
            cut, _ = self.cut(edges, document, epoch, here.offset)
            follow = packer.seek(base.Cursor(here.slot, here.offset + cut.used))
            yield partial(self.pair, view, edges, document, epoch, here.offset), follow or base.Cursor(order.documents)
            here = follow

    def cut(self, edges: base.Ints, document: int, epoch: int, first: int) -> tuple[Cut, np.random.Generator]:
        """How the pair that starts at sentence `first` is cut, and the generator of what else is drawn for it."""
        rng = draw.generator(self.seed, purposes.PAIR, document, self.copy(epoch), first)
        lengths = np.diff(edges[first:])
        room = self.context - 3
        if self.spec.pairs == "halves":
            return self.halves(lengths, rng), rng
        wanted = int(rng.integers(2, room + 1)) if rng.random() < SHORT else room
        size = fill(lengths, wanted)
        end = int(rng.integers(1, size)) if size >= 2 else 1
        odd = size == 1 or rng.random() < 0.5
        strange = odd and (size == 1 or self.spec.pairs == "next")
        return Cut(size, np.arange(size) < end, wanted, int(odd), strange), rng

    def halves(self, lengths: base.Ints, rng: np.random.Generator) -> Cut:
        """The sentences of a text that fills a row, the first ones until half of it, the others after them."""
        wanted = int(rng.integers(5, self.context + 1)) if rng.random() < SHORT_HALVES else self.context
        size = fill(lengths, wanted)
        parts = np.zeros(size, dtype=bool)
        half = self.context * size if rng.random() < SINGLE else (wanted - 3) // 2
        a = 0
        for i, n in enumerate(lengths[:size]):
            if i == 0 or a + n < half or (a < half and rng.random() < 0.5):
                parts[i] = True
                a += n
            else:
                break  # the second segment has begun
        return Cut(size, parts, wanted)

    def pair(self, view: base.View, edges: base.Ints, document: int, epoch: int, first: int) -> base.Example:
        """The pair that starts at sentence `first`."""
        cut, rng = self.cut(edges, document, epoch, first)
        tokens = np.asarray(view[document], dtype=np.int64)
        end = first + int(cut.parts.sum())
        a, b = tokens[edges[first] : edges[end]], tokens[edges[end] : edges[first + cut.size]]
        if self.spec.pairs == "halves":
            a = a[: self.context - 2]
            b = b[: max(0, self.context - len(a) - 3)]
            return self.example(a, b, None, rng)
        if cut.strange:
            b = self.strange(view, document, cut.wanted - len(a), rng)
        elif cut.label:
            a, b = b, a
        a, b = truncate(a, b, self.context - 3, rng)
        return self.example(a, b, cut.label, rng)

    def strange(self, view: base.View, document: int, wanted: int, rng: np.random.Generator) -> base.Ints:
        """Sentences from a random place of another document, until there are `wanted` tokens."""
        other = document
        for _ in range(10):
            other = int(rng.integers(len(view)))
            if other != document and len(view[other]):
                break
        other = other if len(view[other]) else document
        edges = self.sentences(view, other)
        first = int(rng.integers(len(edges) - 1))
        size = fill(np.diff(edges[first:]), wanted)
        return np.asarray(view[other], dtype=np.int64)[edges[first] : edges[first + size]]

    def example(self, a: base.Ints, b: base.Ints, label: int | None, rng: np.random.Generator) -> base.Example:
        """`[CLS] a [SEP] b [SEP]` with its masking, padded to `context`; without `b` there is one segment."""
        second = np.concatenate([b, [self.sep]]) if len(b) else b
        tokens = np.concatenate([[self.cls], a, [self.sep], second]).astype(np.int64)
        labels = np.full(len(tokens), IGNORED, dtype=np.int64)
        free = np.concatenate([np.arange(1, len(a) + 1), np.arange(len(a) + 2, len(a) + 2 + len(b))])
        n = min(self.most, max(1, round(self.spec.rate * len(tokens))))
        replace(self, tokens, labels, self.choose(tokens, free, n, rng), rng, self.everything)
        gap = self.context - len(tokens)
        segments = np.repeat([0, 1, 0], [len(a) + 2, len(second), gap])
        row = {
            "input_ids": np.pad(tokens, (0, gap), constant_values=self.padding),
            "labels": np.pad(labels, (0, gap), constant_values=IGNORED),
            "token_type_ids": segments.astype(np.int64),
            "attention_mask": np.repeat([1, 0], [len(tokens), gap]).astype(np.int64),
        }
        return row if label is None else row | {"pair_labels": np.asarray(label, dtype=np.int64)}

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        named = ("input_ids", "labels", "token_type_ids", "attention_mask", "pair_labels")
        batch = base.stack(examples, *(name for name in named if name in examples[0]))
        batch |= base.targets(batch.pop("labels"))
        if bool(batch["attention_mask"].all()):
            del batch["attention_mask"]
        return batch

    def counts(self, batch: base.Batch) -> dict[str, int]:
        pairs = {"pair": len(batch["pair_labels"])} if "pair_labels" in batch else {}
        return {self.main: len(batch["targets"])} | pairs

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        state = model.state(self.inputs(model, batch))
        sums = {self.main: self.token_loss(model, model.read(state), batch)}
        if "pair_labels" not in batch:
            return base.Loss(sums, self.counts(batch))
        if model.pooler is None or model.pair is None:
            raise UsageError("objective.pairs needs arch.heads.pooler and arch.heads.pair")
        pair = model.paired(model.pooler(state.hidden)).float()
        right = (pair.detach().argmax(-1) == batch["pair_labels"]).sum()
        sums["pair"] = F.cross_entropy(pair, batch["pair_labels"], reduction="sum")
        return base.Loss(sums, self.counts(batch), {"pair_right": float(right)})

    def inputs(self, model: Model, batch: base.Batch) -> Inputs:
        """What `model` reads of a batch; segments only where it has more than one."""
        segments = batch["token_type_ids"] if model.dims.segments > 1 else None
        return Inputs(batch["input_ids"], batch.get("attention_mask"), segments)


def fill(lengths: base.Ints, wanted: int) -> int:
    """How many sentences of these lengths make `wanted` tokens, or all there are."""
    return min(int(np.searchsorted(np.cumsum(lengths), wanted)) + 1, len(lengths))


def truncate(a: base.Ints, b: base.Ints, room: int, rng: np.random.Generator) -> tuple[base.Ints, base.Ints]:
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
