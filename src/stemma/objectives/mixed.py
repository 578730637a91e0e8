"""Masked tokens under several masks of attention (Dong et al. 2019, arXiv:1905.03197, sections 2.3 and 2.4)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.data import random as draw
from stemma.declare import objectives as declared
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.nn.parts import Arch, Open
from stemma.objectives import base, purposes
from stemma.objectives.mlm import replace
from stemma.objectives.pairs import SHORT, MaskedPairs, fill, truncate
from stemma.objectives.units import Choice

MODES = ("full", "prefix", "causal", "reverse")  # as rows are numbered by


class MixedMasked(MaskedPairs, of=declared.MixedMLM):
    """Rows of four kinds, drawn for each row with the declared shares: `[CLS] A [SEP] B [SEP]` under a full mask, with
    next-sentence prediction (as `MaskedPairs`); the same where A is a prefix and B is causal; `[CLS] A [SEP]` from left
    to right, or from right to left. `parts.Open` says which segment ids mark which kind.

    The published shares are of batches. Here they are of rows, so that a step does not depend on how it is split; the
    expected shares are the same. The rows of a kind go through the network together.
    """

    def __init__(self, spec: declared.MixedMLM, setting: base.Setting) -> None:
        super().__init__(declared.MLM(spec.rate, spec.masked, spec.random, pairs="next"), setting)
        self.mixture = spec
        shares = np.asarray([spec.full, spec.prefix, spec.causal, spec.reverse])
        self.shares = shares / shares.sum()

    @classmethod
    def incompatible_reason(cls, spec: Any, arch: Arch) -> str | None:
        if not isinstance(arch.mask, Open):
            return (
                "MixedMLM needs a network whose mask each call chooses (arch.mask=Open(), "
                f"dims.segments=6), and this one has {arch.mask}"
            )
        if spec.full and (arch.heads.pooler is None or not arch.heads.pair):
            return "objective.full needs arch.heads.pooler and arch.heads.pair, which tell whether B follows A"
        return None  # such a mask is an encoder's

    # ------------------------------------------------------------ rows

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        sentences = lru_cache(8)(partial(self.sentences, view))
        order = self.order(view, once)  # an offset counts sentences
        packer = base.Packer(order, lambda d: len(sentences(d)) - 1, lambda d, _: np.asarray(view[d])[None], once)
        here = packer.seek(cursor)
        while here is not None:
            document, epoch = order[here.slot]
            key, edges = (document, epoch, here.offset), sentences(document)
            mode = self.mode(*key)
            if mode == "full":
                make: base.MakeExample = partial(self.whole_row, view, edges, key)
                used = self.cut(edges, *key)[0].used
            else:
                used = self.chunk(key, edges, mode)
                make = partial(self.written, view, edges[key[2] : key[2] + used + 1], key, mode)
            follow = packer.seek(base.Cursor(here.slot, here.offset + used))
            yield make, follow or base.Cursor(order.documents)
            here = follow

    def mode(self, *key: int) -> str:
        """Which kind of row begins at a sentence (document, epoch, number)."""
        return MODES[int(draw.generator(self.seed, purposes.PACK, *key, 0).choice(len(MODES), p=self.shares))]

    def chunk(self, key: tuple[int, int, int], edges: base.Ints, mode: str) -> int:
        """How many sentences a row holds that has one text, or one and what follows it."""
        rng = draw.generator(self.seed, purposes.PACK, *key, 1)
        room = self.context - (3 if mode == "prefix" else 2)
        wanted = int(rng.integers(2, room + 1)) if rng.random() < SHORT else room
        return fill(np.diff(edges[key[2] :]), wanted)

    def whole_row(self, view: base.View, edges: base.Ints, key: tuple[int, int, int]) -> base.Example:
        """A row that is read whole."""
        return self.labelled(self.pair(view, edges, *key), "full")

    def labelled(self, example: base.Example, mode: str) -> base.Example:
        """A row with its kind; `prefix`: the length of the part that is read whole, where another part is not."""
        return {**example, "mode": np.asarray(MODES.index(mode)), "prefix": np.asarray(0, dtype=np.int64)}

    def written(self, view: base.View, edges: base.Ints, key: tuple[int, int, int], mode: str) -> base.Example:
        """A row of a kind that is not read whole, from the sentences between `edges`."""
        tokens = np.asarray(view[key[0]], dtype=np.int64)
        chunk = [tokens[a:b] for a, b in itertools.pairwise(edges)]
        rng = draw.generator(self.seed, purposes.PACK, *key, 2)
        if mode == "prefix":
            text = np.concatenate(chunk)
            cut = len(np.concatenate(chunk[: int(rng.integers(1, len(chunk)))])) if len(chunk) > 1 else len(text) // 2
            a, b = truncate(text[:cut], text[cut:], self.context - 3, rng)
            row = self.example(a, b, 0, rng)
            return self.labelled(row, mode) | {"prefix": np.asarray(len(a) + 2, dtype=np.int64)}
        text = np.concatenate(chunk)[: self.context - 2]
        return self.labelled(
            self.row([self.cls, *text, self.sep], np.zeros(len(text) + 2, dtype=np.int64), 0, rng), mode
        )

    def example(self, a: base.Ints, b: base.Ints, label: int | None, rng: np.random.Generator) -> base.Example:
        tokens = np.concatenate([[self.cls], a, [self.sep], b, [self.sep]])
        return self.row(tokens, np.repeat([0, 1], [len(a) + 2, len(b) + 1]), label or 0, rng)

    def row(
        self, tokens: base.Ints | list[int], segments: base.Ints, label: int, rng: np.random.Generator
    ) -> base.Example:
        """Tokens with their masking, padded to `context`."""
        ids = np.asarray(tokens, dtype=np.int64)
        labels = np.full(len(ids), IGNORED, dtype=np.int64)
        n = min(self.most, max(1, round(self.spec.rate * len(ids))))
        replace(self, ids, labels, Choice(self.places(ids, n, rng)), rng, self.everything)
        gap = self.context - len(ids)
        return {
            "input_ids": np.pad(ids, (0, gap), constant_values=self.padding),
            "labels": np.pad(labels, (0, gap), constant_values=IGNORED),
            "token_type_ids": np.pad(segments.astype(np.int64), (0, gap)),
            "attention_mask": np.repeat([1, 0], [len(ids), gap]).astype(np.int64),
            "pair_labels": np.asarray(label, dtype=np.int64),
        }

    def places(self, ids: base.Ints, n: int, rng: np.random.Generator) -> base.Ints:
        """`n` places to be predicted: single tokens, or runs that end before a special token."""
        special = np.isin(ids, [self.cls, self.sep])
        found: list[int] = []
        for at in rng.permutation(np.flatnonzero(~special)):
            if len(found) >= n:
                break
            if at in found:
                continue
            size = 1
            if self.mixture.span > 1 and rng.random() >= self.mixture.single:
                size = int(rng.integers(2, self.mixture.span + 1))
            for place in range(int(at), int(at) + size):
                if special[place]:
                    break
                if place not in found:
                    found.append(place)
        return rng.permutation(np.asarray(found, dtype=np.int64))[:n]

    # ------------------------------------------------------------ batches

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        batch = base.stack(
            examples, "input_ids", "labels", "token_type_ids", "attention_mask", "pair_labels", "mode", "prefix"
        )
        whole = batch["mode"] == 0
        batch["pair_labels"] = batch["pair_labels"][whole]
        return batch | base.targets(batch.pop("labels"))

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        assert isinstance(model.arch.mask, Open)
        hidden: Tensor | None = None
        pair, right = torch.zeros((), device=model.device), 0.0
        for number, mode in enumerate(MODES):
            rows = (batch["mode"] == number).nonzero().squeeze(1)
            if not len(rows):
                continue
            inputs = Inputs(
                batch["input_ids"][rows],
                batch["attention_mask"][rows],
                segments(model.arch.mask, mode, batch["token_type_ids"][rows]),
                attention=mode,
                prefix=batch["prefix"][rows] if mode == "prefix" else None,
            )
            state = model.state(inputs)
            if hidden is None:
                hidden = state.hidden.new_zeros(*batch["input_ids"].shape, state.hidden.shape[-1])
            hidden = hidden.index_copy(0, rows, model.read(state).to(hidden.dtype))
            if mode == "full" and model.pooler is not None and model.pair is not None:
                scores = model.pair(model.pooler(state.hidden)).float()
                pair = F.cross_entropy(scores, batch["pair_labels"], reduction="sum")
                right = float((scores.detach().argmax(-1) == batch["pair_labels"]).sum())
        assert hidden is not None
        sums = {self.main: self.token_loss(model, hidden, batch), "pair": pair}
        return base.Loss(sums, self.counts(batch), {"pair_right": right})


def segments(mask: Open, mode: str, halves: Tensor) -> Tensor:
    """The segments that go with a kind of row, of which half a token is in (0, 1)."""
    match mode:
        case "causal":
            return torch.full_like(halves, mask.causal)
        case "reverse":
            return torch.full_like(halves, mask.reverse)
        case "prefix":
            return torch.where(halves == 0, mask.source, mask.target)
    return halves
