"""Learn what rows of a task mark as answers: the next token of decoders, the replies of encoder-decoders."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from stemma.declare import tasks as declared
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.objectives import base

MEASURED = 500  # rows of which the mean length is taken
MULTIPLE = 8  # lengths of batches are multiples of it, so that there are few different ones


def trimmed(rows: Sequence[base.Ints], padding: int) -> torch.Tensor:
    """Rows of any length as one tensor, padded at their ends to the longest of them."""
    longest = -(-max(map(len, rows)) // MULTIPLE) * MULTIPLE
    out = np.full((len(rows), longest), padding, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


class RunAnswers(base.Objective, of=declared.Answers):
    """Rows of `context` inputs with whole examples in them, in the order of the text: the next example begins a new row
    where it does not fit. An example of n tokens takes n - 1 places; its marks say which tokens are targets. Examples
    do not see each other."""

    structures = ("decoder",)
    of_rows = True

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        order, slot = self.order(view, once), cursor.slot

        def left() -> bool:
            return not (once and slot >= order.documents)

        while left():
            chosen: list[int] = []
            room = self.context
            while left():
                document = order[slot][0]
                size = len(view[document]) - 1
                if chosen and (size > room or not self.spec.packed):
                    break
                chosen.append(document)
                room, slot = room - size, slot + 1
            yield partial(self.example, view, chosen), base.Cursor(slot)

    def size(self, view: Any) -> int:
        """Tokens of a row without padding: the mean of the first ones."""
        found = [follow for _, follow in itertools.islice(self.lazy_examples(view, once=True), MEASURED)]
        read = found[-1].slot / len(view) if found else 0.0
        return max(1, round((view.tokens_total - len(view)) * read / max(1, len(found))))

    def example(self, view: base.View, chosen: Sequence[int]) -> base.Example:
        """A row of whole examples."""
        found = [self.single(np.asarray(view[i]), view.sentences(i)) for i in chosen]
        ids, labels = (np.concatenate([one[k] for one in found])[: self.context] for k in (0, 1))
        documents = np.concatenate([np.full(len(one[0]), i) for i, one in enumerate(found)])[: self.context]
        positions = np.concatenate([np.arange(len(one[0])) for one in found])[: self.context]
        return {"input_ids": ids, "labels": labels, "documents": documents, "position_ids": positions}

    @staticmethod
    def single(ids: base.Ints, marks: base.Ints) -> tuple[base.Ints, base.Ints]:
        """Inputs and labels of an example: targets begin and end at the marks after the first, in turn."""
        learnt = np.searchsorted(np.asarray(marks)[1:], np.arange(1, len(ids)), side="right") % 2 == 1
        return ids[:-1], np.where(learnt, ids[1:], IGNORED)

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        fill = {"input_ids": self.padding, "labels": IGNORED, "documents": base.PAD_DOCUMENT, "position_ids": 0}
        batch = {name: trimmed([e[name] for e in examples], value) for name, value in fill.items()}
        batch |= base.targets(batch.pop("labels"))
        if not base.several(examples):  # padding at the end needs no mask: nothing looks back at it
            del batch["documents"], batch["position_ids"]
        return batch

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        positions = base.position_ids(model, batch)
        inputs = Inputs(batch["input_ids"], position_ids=positions, documents=batch.get("documents"))
        inputs.contexts = base.alone(model, batch)
        return base.Loss({self.main: self.token_loss(model, model.decode(inputs), batch)}, self.counts(batch))


class RunReplies(base.Objective, of=declared.Replies):
    """One text and its reply a row, each with the tokens that the tokenizer puts around a text; the decoder begins with
    its start token."""

    structures = ("encoder-decoder",)
    of_rows = True

    def __init__(self, spec: declared.Replies, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        start = setting.text.start_id
        self.start = int(start) if start is not None else self.special_id("bos", "cls", "pad")

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        return singles(self, view, cursor, once)

    def size(self, view: Any) -> int:
        return max(1, round(view.tokens_total / max(1, len(view))))

    def example(self, view: base.View, document: int) -> base.Example:
        """A row: what is read, and what is written for it."""
        ids, cut = np.asarray(view[document]), int(view.sentences(document)[1])
        said = ids[cut:]
        return {"input_ids": ids[:cut], "labels": said, "decoder_input_ids": np.concatenate([[self.start], said[:-1]])}

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        fill = {"input_ids": self.padding, "labels": IGNORED, "decoder_input_ids": self.padding}
        batch = {name: trimmed([e[name] for e in examples], value) for name, value in fill.items()}
        batch["attention_mask"] = trimmed([np.ones(len(e["input_ids"]), np.int64) for e in examples], 0)
        return batch | base.targets(batch.pop("labels"))

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        mask = batch["attention_mask"]
        hidden = model.encode(Inputs(batch["input_ids"], mask))
        target = Inputs(batch["decoder_input_ids"], encoder_hidden=hidden, encoder_mask=mask)
        return base.Loss({self.main: self.token_loss(model, model.decode(target), batch)}, self.counts(batch))


def singles(
    objective: Any, view: base.View, cursor: base.Cursor, once: bool
) -> Iterator[tuple[base.MakeExample, base.Cursor]]:
    """Examples of one row of the text each."""
    order, slot = objective.order(view, once), cursor.slot
    while not (once and slot >= order.documents):
        slot += 1
        yield partial(objective.example, view, order[slot - 1][0]), base.Cursor(slot)
