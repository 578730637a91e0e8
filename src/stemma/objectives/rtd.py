"""Replaced token detection (Clark et al. 2020, arXiv:2003.10555, section 2), and the three ways to share embeddings of
DeBERTaV3 (He et al. 2021, arXiv:2111.09543, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.data import random as draw
from stemma.declare import objectives as declared
from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.nn.parts import Arch
from stemma.nn.positions import Learned
from stemma.objectives import base, purposes
from stemma.objectives.mlm import Masked
from stemma.objectives.pairs import MaskedPairs
from stemma.objectives.vocabulary import LOGITS, picked

BITS = 53  # of a draw, as many as a double holds


class ReplacedTokens(base.Objective, of=declared.RTD):
    """The generator learns to fill masked places; the model reads the text with its samples there and predicts for
    every token but padding whether it differs from the original: a sample that equals the true token is no
    replacement. No gradient passes through the samples.

    Rows are those of `MLM` with the same `rate`, `masked` and `pairs`; ELECTRA's released code draws the places with
    replacement and so chooses a little fewer of them (13.9 % where 15 % are declared). The draw of each sample is a
    function of (seed, place of the row in the data, target), so that it is the same however a step is split, and in
    evaluation.
    """

    main = "replaced"
    structures = ("encoder",)
    roles = ("mask",), ("cls", "bos"), ("sep", "eos")

    def __init__(self, spec: declared.RTD, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        goal = declared.MLM(rate=spec.rate, masked=spec.masked, random=0.0, pairs=spec.pairs)
        self.masking = Masked(goal, setting) if spec.pairs is None else MaskedPairs(goal, setting)
        self.streamed = self.masking.streamed

    @classmethod
    def incompatible_reason(cls, spec: declared.RTD, arch: Arch) -> str | None:
        if arch.structure in cls.structures and arch.heads.detect is None:
            return "RTD needs a head that detects replaced tokens, and arch.heads.detect is None; set it to Detector()"
        return super().incompatible_reason(spec, arch)

    # ------------------------------------------------------------ two networks

    def tie(self, model: Model, nets: base.Nets) -> None:
        """Share embeddings as `sharing` says: `tied` all that stands before the first block (tokens, segments, absolute
        positions and their norm), `disentangled` the tables of tokens and of absolute positions."""
        generator = self.generator(nets)
        if self.spec.sharing == "none":
            return
        ours, theirs = model.dims.embed_width, generator.dims.embed_width
        if ours != theirs:
            raise UsageError(
                f"model and generator share embeddings, and theirs are {ours} and {theirs} wide; set dims.embed, or "
                "objective.sharing=none"
            )
        positions = _positions(model), _positions(generator)
        if self.spec.sharing == "tied":
            generator.embed = model.embed
            if positions[0] is not None and positions[1] is not None:
                positions[1].table = positions[0].table
            if model.encoder is not None and generator.encoder is not None:
                generator.encoder.embed_norm = model.encoder.embed_norm
            return
        model.embed.tokens = Beside(generator.embed.tokens)
        if positions[0] is not None and positions[1] is not None:
            positions[0].table = Beside(positions[1].table)

    def untie(self, model: Model, nets: base.Nets) -> None:
        """Write the sum of both tables into the model's own, after training."""
        for owner, name in ((model.embed, "tokens"), (_positions(model), "table")):
            if isinstance(table := getattr(owner, name, None), Beside):
                setattr(owner, name, table.alone())

    @staticmethod
    def generator(nets: base.Nets) -> Model:
        """The generator among the nets. Raises UsageError if it cannot fill masks."""
        if "generator" not in nets:
            raise UsageError("RTD trains two networks, and its generator is not there")
        found = nets["generator"]
        if found.encoder is None or found.lm is None:
            raise UsageError(f"the generator must be an encoder that predicts tokens, and {found.name or 'it'} is none")
        return found

    # ------------------------------------------------------------ rows

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        here = cursor
        for make, follow in self.masking.lazy_examples(view, cursor, once):
            yield partial(self.example, make, here), follow
            here = follow

    def example(self, make: base.MakeExample, at: base.Cursor) -> base.Example:
        """A row, with a draw for each of its targets."""
        row = make()
        n = int((row["labels"] >= 0).sum())
        return row | {"draws": draw.integers((self.seed, purposes.SAMPLE, at.slot, at.offset), n, 2**BITS)}

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        draws = np.concatenate([e["draws"] for e in examples])
        rows = [{k: v for k, v in e.items() if k != "draws"} for e in examples]
        return self.masking.collate(rows) | {"draws": torch.from_numpy(draws)}

    def counts(self, batch: base.Batch) -> dict[str, int]:
        return {self.main: int(real(batch).sum()), "token": len(batch["targets"])}

    # ------------------------------------------------------------ the loss

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        if model.detect is None:
            raise UsageError("RTD needs a head that detects replaced tokens: arch.heads.detect")
        generator = self.generator(nets)
        hidden = generator.read(generator.state(self.masking.inputs(generator, batch)))
        tokens = self.token_loss(generator, hidden, batch)
        ids, replaced = self.replace(generator, hidden, batch)
        own = self.masking.inputs(model, batch)
        own.input_ids = ids
        found = model.detect(model.encode(own), first(batch)).float()
        known = real(batch)
        each = F.binary_cross_entropy_with_logits(found, replaced.to(found.dtype), reduction="none")
        right = (found.detach() > 0) == replaced
        return base.Loss(
            {self.main: each[known].sum(), "token": tokens},
            self.counts(batch),
            {"replaced_right": float(right[known].sum()), "replaced_share": float(replaced.sum())},
            {self.main: self.spec.weight},
        )

    @torch.no_grad()
    def replace(self, generator: Model, hidden: Tensor, batch: base.Batch) -> tuple[Tensor, Tensor]:
        """The text with samples of the generator in its chosen places (B T), and which tokens are others (B T)."""
        states, goal, draws = picked(hidden, batch), batch["targets"], batch["draws"]
        rows = max(1, LOGITS // generator.dims.vocab)
        parts = [
            sample(generator.logits(h).float() / self.spec.temperature, d)
            for h, d in zip(states.split(rows), draws.split(rows), strict=True)
        ]
        where = batch["where"] if "where" in batch else torch.arange(len(goal), device=goal.device)
        ids = batch["input_ids"].flatten().scatter(0, where, torch.cat(parts))
        replaced = torch.zeros_like(ids, dtype=torch.bool).scatter(0, where, ids[where] != goal)
        return ids.view_as(batch["input_ids"]), replaced.view_as(batch["input_ids"])


class Beside(nn.Embedding):
    """Rows of a `base`, which get no gradient from here, plus own ones that begin as zero."""

    def __init__(self, base: nn.Embedding) -> None:
        like = base.weight
        super().__init__(like.shape[0], like.shape[1], device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.weight)
        self.base = (base,)  # in a tuple, so that it is no part of this module

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + F.embedding(ids, self.base[0].weight.detach())

    def alone(self) -> nn.Embedding:
        """A plain table of the sums."""
        both = self.base[0].weight.detach() + self.weight.detach()
        return nn.Embedding.from_pretrained(both, freeze=False)


def sample(logits: Tensor, draws: Tensor) -> Tensor:
    """A token (N) of each row of `logits` (N V): where a draw (N, of [0, 2**BITS)) falls in the cumulated chances."""
    chances = logits.double().softmax(-1).cumsum(-1)
    at = draws.double()[:, None] * 2.0**-BITS * chances[:, -1:]
    return torch.searchsorted(chances, at, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


def real(batch: base.Batch) -> Tensor:
    """Which tokens of a batch are no padding: B T."""
    if "documents" in batch:
        return batch["documents"] >= 0
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def first(batch: base.Batch) -> Tensor | None:
    """Where the first token of each token's document stands in its row (B T); None where a row is one text."""
    if "position_ids" not in batch:
        return None
    place = torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
    return place - batch["position_ids"]


def _positions(model: Model) -> Any:
    """The module of a model's table of absolute positions; None if it has none."""
    scheme = None if model.encoder is None else model.encoder.position
    return scheme if isinstance(scheme, Learned) else None
