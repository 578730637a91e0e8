"""Translation (Vaswani et al. 2017, arXiv:1706.03762, sections 5.1 and 5.4): pairs of sentences, batched by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.declare import objectives as declared
from stemma.errors import DataError, UsageError
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.objectives import base
from stemma.objectives.vocabulary import token_loss


class SentencePairs(base.Objective, of=declared.Translation):
    """Rows of sentence pairs that do not see each other, up to `context` source tokens and `context` target tokens.
    Both sides of a pair end with eos; the decoder's input begins with the start token. A sentence longer than a row is
    cut at its end. The order of pairs is new each epoch; a cursor's slot counts pairs."""

    structures = ("encoder-decoder",)
    roles = (("eos",),)

    def __init__(self, spec: declared.Translation, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.eos = self.special_id("eos")
        start = setting.text.start_id
        self.start = self.padding if start is None or start == setting.text.pad_id else start

    def languages(self, view: Any) -> tuple[int, int]:
        """The numbers of the source's and the target's language in the text. Raises UsageError, DataError."""
        names = [name for name in getattr(view, "languages", ()) if name]
        if len(names) < 2:
            raise DataError(
                "translation needs sentence pairs in two languages, and this text is "
                + (f"in {names[0]} alone" if names else "in no language that is named")
                + "; train on builtin:parallel:en-de, or files such as talks.en|talks.de"
            )
        asked = {"source": self.spec.source, "target": self.spec.target}
        if not any(asked.values()) and len(names) > 2:
            raise UsageError(
                f"the text is in {', '.join(names)}: choose two of them by objective.source and objective.target"
            )
        for what, name in asked.items():
            if name and name not in names:
                raise UsageError(f"objective.{what}={name} is no language of the text, which has {', '.join(names)}")
        source = asked["source"] or next(name for name in names if name != asked["target"])
        target = asked["target"] or next(name for name in names if name != source)
        known = list(view.languages)
        return known.index(source), known.index(target)

    def pairs(self, view: Any) -> list[tuple[int, int]]:
        """(source document, target document) of every group that has both, in the order of the text."""
        source, target = self.languages(view)
        ids, groups = np.asarray(view.language_ids), np.asarray(view.groups)
        aims: dict[int, list[int]] = {}
        for j in np.flatnonzero((ids == target) & (groups >= 0)).tolist():
            aims.setdefault(int(groups[j]), []).append(j)
        found = [
            (i, j)
            for i in np.flatnonzero((ids == source) & (groups >= 0)).tolist()
            for j in aims.get(int(groups[i]), [])
        ]
        if not found:
            raise DataError(
                f"no text in {view.languages[source]} has a translation in {view.languages[target]} (documents of one "
                "group)"
            )
        return found

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        pairs = self.pairs(view)
        order = base.Order(self.seed, len(pairs))

        def size(document: int) -> int:
            return min(len(view[document]) + 1, self.context)

        slot = cursor.slot
        while not (once and slot >= len(pairs)):
            chosen: list[tuple[int, int]] = []
            rooms = [self.context, self.context]
            while not (once and slot >= len(pairs)):
                pair = pairs[order[slot][0]]
                rooms = [room - size(document) for room, document in zip(rooms, pair, strict=True)]
                if min(rooms) < 0:
                    break
                chosen.append(pair)
                slot += 1
            yield partial(self.example, view, chosen), base.Cursor(slot)

    def example(self, view: base.View, chosen: Sequence[tuple[int, int]]) -> base.Example:
        """A row of pairs."""
        row: dict[str, base.Ints] = {
            "input_ids": np.full(self.context, self.padding, dtype=np.int64),
            "documents": np.full(self.context, base.PAD_DOCUMENT, dtype=np.int64),
            "position_ids": np.zeros(self.context, dtype=np.int64),
            "labels": np.full(self.context, IGNORED, dtype=np.int64),
            "decoder_input_ids": np.full(self.context, self.padding, dtype=np.int64),
            # padding follows the last pair, so that it has something to look at; nothing looks at it
            "decoder_documents": np.full(self.context, len(chosen) - 1, dtype=np.int64),
            "decoder_position_ids": np.zeros(self.context, dtype=np.int64),
        }
        at, to = 0, 0
        for number, (source, target) in enumerate(chosen):
            read, said = (np.append(np.asarray(view[d])[: self.context - 1], self.eos) for d in (source, target))
            here, there = slice(at, at + len(read)), slice(to, to + len(said))
            row["input_ids"][here], row["documents"][here], row["position_ids"][here] = (
                read,
                number,
                np.arange(len(read)),
            )
            row["labels"][there], row["decoder_documents"][there] = said, number
            row["decoder_input_ids"][there] = [self.start, *said[:-1]]
            row["decoder_position_ids"][there] = np.arange(len(said))
            at, to = at + len(read), to + len(said)
        return dict(row)

    def epochs(self, view: Any, cursor: base.Cursor) -> float:
        return cursor.slot / len(self.pairs(view))

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        batch = base.stack(examples, *examples[0])
        labels = batch.pop("labels")
        batch |= base.targets(labels)
        # where places are what masks go by, padding stands after every token
        batch["decoder_position_ids"] = torch.where(labels == IGNORED, self.context - 1, batch["decoder_position_ids"])
        if not base.several(examples):
            padded = batch["documents"] == base.PAD_DOCUMENT
            for name in ("documents", "position_ids", "decoder_documents", "decoder_position_ids"):
                del batch[name]
            if bool(padded.any()):
                batch["attention_mask"] = (~padded).to(torch.int64)
        return batch

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        mask, documents = batch.get("attention_mask"), batch.get("documents")
        source = Inputs(batch["input_ids"], mask, position_ids=base.position_ids(model, batch), documents=documents)
        target = Inputs(
            batch["decoder_input_ids"],
            position_ids=base.position_ids(model, batch, "decoder_position_ids"),
            documents=batch.get("decoder_documents"),
            encoder_hidden=model.encode(source),
            encoder_mask=mask,
            encoder_documents=documents,
        )
        hidden = model.decode(target)
        return base.Loss({self.main: self.token_loss(model, hidden, batch)}, self.counts(batch))

    def token_loss(self, model: Model, hidden: Tensor, batch: base.Batch) -> Tensor:
        """As everywhere, with smoothed targets in training."""
        if not model.training:
            return token_loss(model, hidden, batch)
        return token_loss(model, hidden, batch, self.setting.z_loss, self.spec.smoothing)
