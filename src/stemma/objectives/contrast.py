"""Which texts belong together (Reimers & Gurevych 2019, arXiv:1908.10084; the released all-MiniLM train_script.py)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from stemma.data import random as draw
from stemma.declare import objectives as declared
from stemma.errors import DataError
from stemma.nn.inputs import Inputs
from stemma.nn.model import Model
from stemma.objectives import base, purposes


class Pairs(base.Objective, of=declared.Contrastive):
    """Groups of `spec.group` pairs of texts, each written `cls text sep`. The mean of the hidden states is a text's
    vector; each first text is matched by cosine against all second texts of its group, and each second text against all
    first ones.

    A pair is two neighbouring sentences of a document, at a random place each epoch, or the halves of a document of one
    sentence. The pairs of a group come from consecutive documents of the epoch's order. An example is a whole group, so
    the loss does not depend on how a step is split. (The published pairs are questions and answers, titles and texts,
    and more.)
    """

    main = "pair"
    structures = ("encoder",)
    roles = ("cls", "bos"), ("sep", "eos")

    def __init__(self, spec: declared.Contrastive, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.rows = 2 * spec.group
        self.cls, self.sep = self.special_id("cls", "bos"), self.special_id("sep", "eos")

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        order = self.order(view, once)
        at = cursor.slot
        while not (once and at >= len(view)):
            group: list[tuple[int, int]] = []
            begin = at
            while len(group) < self.spec.group and not (once and at >= len(view)):
                if len(view[order[at][0]]) >= 2:
                    group.append(order[at])
                at += 1
                if not group and at - begin > len(view):
                    raise DataError("there is no pair to train on: every document is shorter than two tokens")
            if group:
                yield partial(self.example, view, group), base.Cursor(at)

    def texts(self, view: base.View, document: int, epoch: int) -> tuple[base.Ints, base.Ints]:
        """The pair of a document in an epoch."""
        tokens = np.asarray(view[document], dtype=np.int64)
        starts = np.unique([0, *(s for s in view.sentences(document) if 0 < s < len(tokens)), len(tokens)])
        if len(starts) < 3:
            first, middle, end = 0, len(tokens) // 2, len(tokens)
        else:
            k = int(draw.generator(self.seed, purposes.TWIN, document, epoch).integers(len(starts) - 2))
            first, middle, end = (int(s) for s in starts[k : k + 3])
        room = self.context - 2
        return tokens[first:middle][:room], tokens[middle:end][:room]

    def example(self, view: base.View, group: list[tuple[int, int]]) -> base.Example:
        """The texts of a group: all first ones, then all second ones in the same order."""
        pairs = [self.texts(view, *place) for place in group]
        texts = [[self.cls, *text, self.sep] for side in (0, 1) for text in (pair[side] for pair in pairs)]
        ids = np.full((len(texts), self.context), self.padding, dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, text in enumerate(texts):
            ids[i, : len(text)], mask[i, : len(text)] = text, 1
        return {"input_ids": ids, "attention_mask": mask}

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        batch = {k: torch.from_numpy(np.concatenate([e[k] for e in examples])) for k in examples[0]}
        longest = -8 * (-int(batch["attention_mask"].sum(1).max()) // 8)
        sizes = torch.tensor([len(e["input_ids"]) // 2 for e in examples], dtype=torch.int64)
        return {k: v[:, : min(longest, self.context)] for k, v in batch.items()} | {"groups": sizes}

    def counts(self, batch: base.Batch) -> dict[str, int]:
        return {self.main: len(batch["input_ids"]) // 2}

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        mask = batch["attention_mask"]
        hidden = model.encode(Inputs(batch["input_ids"], mask)).float()
        vectors = F.normalize((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)
        total, right, at = torch.zeros((), device=vectors.device), 0.0, 0
        for size in batch["groups"].tolist():
            first, second = vectors[at : at + size], vectors[at + size : at + 2 * size]
            own = torch.arange(size, device=vectors.device)
            with torch.autocast(vectors.device.type, enabled=False):  # cosines are near each other, times a scale
                scores = first @ second.T * self.spec.scale
            both = F.cross_entropy(scores, own, reduction="sum") + F.cross_entropy(scores.T, own, reduction="sum")
            total, at = total + both / 2, at + 2 * size
            right += float((scores.detach().argmax(1) == own).sum())
        return base.Loss({self.main: total}, self.counts(batch), {"pair_right": right})
