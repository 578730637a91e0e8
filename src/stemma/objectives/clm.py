"""Predict the next token (Radford et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from stemma.declare import objectives as declared
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.objectives import base
from stemma.objectives.languages import numbers


class NextToken(base.Objective, of=declared.CLM):
    """Windows of `context` inputs whose targets stand one token later: every step of the stream is a target once.

    A document is written `bos tokens eos`, as far as the tokenizer has these. Where both are one token (GPT-2), a
    document is written `bos tokens` and the next one's bos closes it. Unless `mixed`, a token sees its own document
    only, and no document's first token is predicted from another. A piece of a document that goes on elsewhere is not
    closed: nothing is predicted after its last token.
    """

    predicts_all = True
    structures = ("decoder",)
    streamed = True

    def __init__(self, spec: declared.Objective, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.span = self.context  # targets of a chunk
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        self.shared = bos is not None and bos == eos
        self.before = [] if bos is None else [int(bos)]
        self.after = [] if eos is None or self.shared else [int(eos)]

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        packer = self.packer(view, once)
        for chunk, follow in self.chunks(packer, view, cursor, self.span + 1, self.span):
            yield partial(self.example, view, packer, chunk), follow

    def packer(self, view: base.View, once: bool) -> base.Packer:
        """The documents of a view as one stream."""

        def piece(document: int, _: int) -> base.Ints:
            return self.straight(view, document)[None]

        langs = numbers(view, self.setting.text.languages)
        return base.Packer(self.order(view, once), partial(self.length, view), piece, once, langs)

    def straight(self, view: base.View, document: int) -> base.Ints:
        """A document as it is written."""
        after = self.after if view.closed(document) else []
        return np.concatenate([self.before, np.asarray(view[document]), after]).astype(np.int64)

    def length(self, view: base.View, document: int) -> int:
        """The tokens of a document as it is written."""
        return len(self.before) + len(view[document]) + (len(self.after) if view.closed(document) else 0)

    def example(self, view: base.View, packer: base.Packer, chunk: base.Chunk) -> base.Example:
        """A row of `span` inputs and what follows each of them."""
        window = packer.row(chunk, self.span + 1, [self.padding])
        ids, documents = window.values[0], window.documents.copy()
        if chunk.size <= self.span and self.shared:  # the epoch's last token is closed too
            ids[chunk.size], documents[chunk.size] = self.before[0], documents[chunk.size - 1]
        real = documents[1:] >= 0
        if not self.mixed and not self.shared:
            real &= documents[1:] == documents[:-1]
        last = -1
        for part in chunk.parts:
            last += part.tokens
            if last < self.span and not view.closed(part.document) and self.ends(packer, part):
                real[last] = False
        row = {
            "input_ids": ids[:-1],
            "labels": np.where(real, ids[1:], IGNORED),
            "documents": window.documents[:-1],
            "position_ids": window.positions[:-1],
        }
        return row if packer.langs is None else row | {"langs": window.langs[:-1]}

    @staticmethod
    def ends(packer: base.Packer, part: base.Slice) -> bool:
        """Whether a slice reaches the end of its document."""
        return part.start + part.tokens == packer.length(part.document)

    def tokens_without_target(self, view: base.View) -> int:
        if self.before:
            return 0
        return min(1, len(view)) if self.mixed else len(view)

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        batch = base.stack(examples, *examples[0])
        batch |= base.targets(batch.pop("labels"))
        if self.mixed or not base.several(examples):  # padding at the end needs no mask: nothing looks back at it
            del batch["documents"], batch["position_ids"]
        return batch

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        inputs = Inputs(
            batch["input_ids"],
            position_ids=base.position_ids(model, batch),
            documents=batch.get("documents"),
            langs=batch.get("langs"),
            contexts=base.alone(model, batch),
        )
        hidden = model.decode(inputs)
        return base.Loss({self.main: self.token_loss(model, hidden, batch)}, self.counts(batch))
