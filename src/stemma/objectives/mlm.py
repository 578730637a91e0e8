"""Predict masked tokens of packed text (Devlin et al. 2018; the packing of Liu et al. 2019, "full sentences")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from stemma.data import random as draw
from stemma.declare import objectives as declared
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.nn.parts import Arch
from stemma.objectives import base, purposes
from stemma.objectives.languages import numbers
from stemma.objectives.units import Choice, Chooser


class Masked(base.Objective, of=declared.MLM, when=lambda spec: spec.pairs is None):
    """Windows of `context` tokens of documents written `cls tokens sep`, of which `rate` are to be predicted.

    How many of a document's tokens are chosen is `int(rate * length + u)` with u uniform, so that the rate holds on
    average for short ones too (fairseq, mask_tokens_dataset); where whole words are chosen, of every `context` tokens
    of it. The masking is a function of (seed, document, epoch), or of the epoch modulo `copies`; special tokens are
    never chosen and never stand in as random ones. A window without a target gets one.
    """

    structures = ("encoder",)
    streamed = True
    roles = ("mask",), ("cls", "bos"), ("sep", "eos")

    @classmethod
    def incompatible_reason(cls, spec: Any, arch: Arch) -> str | None:
        if arch.structure in cls.structures and arch.heads.lm is None:
            return f"{type(spec).__name__} predicts tokens, and arch.heads.lm is None; set it to MLMHead()"
        return super().incompatible_reason(spec, arch)

    def __init__(self, spec: declared.MLM, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.choose = Chooser(spec.unit, spec.rate, self.tokenizer)
        self.mask, self.cls, self.sep = (
            self.special_id("mask"),
            self.special_id("cls", "bos"),
            self.special_id("sep", "eos"),
        )

    def copy(self, epoch: int) -> int:
        """Which masking an epoch takes."""
        return epoch % self.spec.copies if self.spec.copies else epoch

    def piece(self, view: base.View) -> Callable[[int, int], base.Ints]:
        """How a document is written: tokens and labels."""

        def piece(document: int, epoch: int) -> base.Ints:
            tokens = np.concatenate([[self.cls], np.asarray(view[document]), [self.sep]]).astype(np.int64)
            rng = draw.generator(self.seed, purposes.MASK, document, self.copy(epoch))
            free = np.flatnonzero(~np.isin(tokens, self.special))
            inputs, labels = tokens.copy(), np.full(len(tokens), IGNORED, dtype=np.int64)
            stretch = len(tokens) if isinstance(self.spec.unit, declared.Tokens) else self.context
            for start in range(0, len(tokens), stretch):
                here = free[slice(*np.searchsorted(free, [start, start + stretch]))]
                n = min(len(here), int(self.spec.rate * len(here) + rng.random()))
                replace(self, inputs, labels, self.choose(tokens, here, n, rng), rng, self.plain)
            return np.stack([inputs, labels])

        return piece

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        langs = numbers(view, self.setting.text.languages)
        packer = base.Packer(self.order(view, once), lambda d: len(view[d]) + 2, self.piece(view), once, langs)
        for chunk, follow in self.chunks(packer, view, cursor, self.context, self.context):
            yield partial(self.example, packer, chunk), follow

    def example(self, packer: base.Packer, chunk: base.Chunk) -> base.Example:
        """A row of `context` tokens with at least one target, if it holds any text at all."""
        window = packer.row(chunk, self.context, [self.padding, IGNORED])
        inputs, labels = window.values
        if not (labels != IGNORED).any():
            free = np.flatnonzero(~np.isin(inputs, self.special) & (window.documents >= 0))
            document, epoch, offset = chunk.key
            rng = draw.generator(self.seed, purposes.FORCE, document, self.copy(epoch), offset)
            if len(free):
                replace(self, inputs, labels, Choice(free[rng.integers(len(free), size=1)]), rng, self.plain)
        row = {
            "input_ids": inputs,
            "labels": labels,
            "documents": window.documents,
            "position_ids": window.positions,
            "attention_mask": (window.documents >= 0).astype(np.int64),
        }
        return row if packer.langs is None else row | {"langs": window.langs}

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        batch = base.stack(examples, *examples[0])
        batch |= base.targets(batch.pop("labels"))
        if self.mixed or not base.several(examples):
            del batch["documents"], batch["position_ids"]
            if bool(batch["attention_mask"].all()):
                del batch["attention_mask"]
        else:
            del batch["attention_mask"]  # padding is a document of its own
        return batch

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        state = model.state(self.inputs(model, batch))
        return base.Loss({self.main: self.token_loss(model, model.read(state), batch)}, self.counts(batch))

    def inputs(self, model: Model, batch: base.Batch) -> Inputs:
        """What `model` reads of a batch."""
        return Inputs(
            batch["input_ids"],
            batch.get("attention_mask"),
            position_ids=base.position_ids(model, batch),
            documents=batch.get("documents"),
            langs=batch.get("langs"),
        )


def replace(
    objective: Any, inputs: base.Ints, labels: base.Ints, choice: Choice, rng: np.random.Generator, pool: base.Ints
) -> None:
    """Make the chosen places targets, in place: their tokens go to `labels`, and in `inputs` each becomes the mask
    token, a random one of `pool`, or stays, by a draw of its own or of its run (`objective.spec` has the shares)."""
    chosen, draws = choice
    labels[chosen] = inputs[chosen]
    u = rng.random(len(chosen))
    if draws is not None:
        u = u[draws]
    other = pool[rng.integers(len(pool), size=len(chosen))]
    spec = objective.spec
    new = np.where(u < spec.masked + spec.random, other, inputs[chosen])
    inputs[chosen] = np.where(u < spec.masked, objective.mask, new)
