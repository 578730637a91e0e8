"""Crossbatch training (Tworkowski et al. 2023, arXiv:2307.03170, section 3.2 and the released code)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np

from stemma.declare import objectives as declared
from stemma.nn.inputs import Inputs
from stemma.nn.model import Model
from stemma.nn.parts import Arch, Memory, Rotary
from stemma.objectives import base
from stemma.objectives.clm import NextToken


def seen_rows(spec: declared.CrossBatch) -> tuple[tuple[int, ...], ...]:
    """Of each row of a pack the rows before it that its memory layers see, the nearest first."""
    found = []
    for row in range(spec.rows * spec.texts):
        place = row % spec.rows  # in its text
        first = row - place  # of its text
        if spec.mixture:
            own, other = spec.mixture[place]
            seen = [*range(row - 1, row - 1 - own, -1), *range(first - 1, first - 1 - other, -1)]
        else:
            step = -(-(spec.contexts + 1) // max(spec.rows - 1, 1))
            many = spec.contexts if spec.rows == 1 else min(place * step, spec.contexts)
            seen = list(range(row - 1, row - 1 - many, -1))
        found.append(tuple(i for i in seen if i >= 0))
    return tuple(found)


class CrossRows(NextToken, of=declared.CrossBatch):
    """Packs of `rows * texts` rows. `rows` consecutive ones hold a stretch of `rows * context` tokens of text; where
    a document ends the next one begins, `eos bos` between them, without padding, and the two see each other (as the
    released pipeline packs, `doc_aware_kK`). In training, memory layers of a row see the rows of its pack that
    `seen_rows` names; in evaluation each row is read by itself, so that losses compare with those of a model without
    memory. A micro-batch holds whole packs."""

    streamed = False

    def __init__(self, spec: declared.CrossBatch, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.mixed = True
        self.rows = spec.rows * spec.texts
        self.span = spec.rows * self.context
        self.contexts = seen_rows(spec)

    @classmethod
    def incompatible_reason(cls, spec: declared.CrossBatch, arch: Arch) -> str | None:
        if (why := super().incompatible_reason(spec, arch)) is not None:
            return why
        if not isinstance(arch.mask, Memory):
            return (
                f"CrossBatch lets memory layers see other rows, and this network has none (arch.mask={arch.mask}); "
                "begin from longllama, or set arch.mask=Memory()"
            )
        if not isinstance(arch.position, Rotary):
            return "CrossBatch takes keys of other rows as they are before rotation, and arch.position is not Rotary"
        return None

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        packer = self.packer(view, once)
        chunks = packer.chunks(cursor, self.span + 1, self.span)
        while some := list(itertools.islice(chunks, self.spec.texts)):
            yield partial(self.pack, view, packer, [chunk for chunk, _ in some]), some[-1][1]

    def pack(self, view: base.View, packer: base.Packer, chunks: Sequence[base.Chunk]) -> base.Example:
        """A pack of rows, the last texts padding at the end of an epoch."""
        found = [self.example(view, packer, chunk) for chunk in chunks]
        found += [self.example(view, packer, base.Chunk([], 0, base.START))] * (self.spec.texts - len(found))
        return {name: np.concatenate([e[name].reshape(-1, self.context) for e in found]) for name in found[0]}

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        batch = super().collate(examples)
        return {name: x.flatten(0, 1) if x.ndim == 3 else x for name, x in batch.items()}

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        ids, contexts = batch["input_ids"], base.alone(model, batch)
        if model.training:
            packs = range(0, len(ids), self.rows)
            contexts = tuple(tuple(first + i for i in seen) for first in packs for seen in self.contexts)
        hidden = model.decode(Inputs(ids, langs=batch.get("langs"), contexts=contexts))
        return base.Loss({self.main: self.token_loss(model, hidden, batch)}, self.counts(batch))
