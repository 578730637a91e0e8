"""How well a model predicts held-out text, in bits."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stemma.data import View
from stemma.data import random as draw
from stemma.errors import DataError
from stemma.nn.model import Model
from stemma.objectives import NO_NETS, Nets, Objective
from stemma.objectives.base import Loss, means
from stemma.objectives.languages import token_shares
from stemma.train.config import Plan

LN2 = math.log(2.0)
Floats = npt.NDArray[np.float64]


SHORT = 0.1  # of a sample, the share that parts may lack which have no more tokens


def sample(view: View, tokens: int, shares: Sequence[float] = ()) -> View:
    """Whole documents of `view`, always the same ones, up to about `tokens` tokens. A document's translations come with
    it. `shares`: of the tokens, for each source of a mixture; without them, all documents are alike."""
    alone = view.groups < 0
    units = np.where(alone, np.arange(len(view)) + len(view.groups) + int(view.groups.max(initial=0)), view.groups)
    _, unit = np.unique(units, return_inverse=True)
    order = draw.permutation((0,), int(unit.max()) + 1)
    sizes = np.bincount(unit, weights=view.lengths)
    taken, wanted, part = [], np.asarray([float(tokens)]), np.zeros(len(order), dtype=np.int64)
    if len(shares) > 1:
        part[unit] = view.part_ids
        wanted = amounts(np.bincount(part, sizes, len(shares)).astype(float), np.asarray(shares), tokens)
    for number, want in enumerate(wanted):
        own = order[part[order] == number]
        taken.append(own[: int(np.searchsorted(np.cumsum(sizes[own]), want)) + 1])
    return view.pick(np.flatnonzero(np.isin(unit, np.concatenate(taken))))


def judged_by(plan: Plan, train: Any, held: Any) -> Any:
    """The held-out documents by which a run is judged."""
    shares = token_shares(train, plan.recipe.sampling) if plan.train.judged == "weights" else ()
    return sample(held, plan.train.eval_tokens, shares)


def amounts(have: Floats, shares: Floats, tokens: int) -> Floats:
    """How many tokens of each part make up a sample in these shares, of at most `tokens`: fewer where parts end, so
    that what these lack is at most `SHORT` of it. `have`: tokens of each part."""
    shares = np.where(have > 0, shares, 0.0)
    shares = shares / max(shares.sum(), 1e-9)
    low, high = 0.0, float(min(tokens, have.sum()))
    if np.minimum(have, shares * high).sum() >= (1 - SHORT) * high:
        return np.minimum(have, shares * high)
    for _ in range(50):  # the lack grows with the sample
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(have, shares * middle).sum() >= (1 - SHORT) * middle else (low, middle)
    return np.minimum(have, shares * low)


def evaluate(
    model: Model,
    objective: Objective,
    view: View,
    *,
    rows: int = 16,
    autocast: Any = None,
    nets: Nets = NO_NETS,
    answers: list[tuple[int, Any]] | None = None,
) -> dict[str, float]:
    """The quality of `model` on every document of `view`, by the objective's own measure.

    If every token is a target: `bits_per_byte` = the bits of all targets, end tokens included, over the bytes of the
    text. A token without a target (a document's first, without bos) costs log2(vocabulary). Other objectives:
    `bits_per_target` and, if targets are tokens, `bits_per_target_byte`, at the text's mean bytes a token. Other parts
    of the loss: `loss_NAME`, their mean in nats. Tasks have their own metrics beside the loss. `answers`: a list that
    gets what the model said of each example.
    """
    found = _measured(model, objective, view, max(1, rows // objective.rows), autocast, nets)
    main, sums, counts = objective.main, found.sums, found.counts
    if not counts.get(main):
        raise DataError("the held-out text holds nothing to predict; give more text or raise train.val_fraction")
    bits, n = sums[main] / LN2, counts[main]
    size = max(1, view.bytes_total)
    if objective.predicts_all:
        free = objective.tokens_without_target(view)
        quality = {"loss": sums[main] / n, "bits_per_byte": (bits + free * math.log2(model.dims.vocab)) / size}
    else:
        quality = {"loss": sums[main] / n}
        if objective.in_bits:
            quality["bits_per_target"] = bits / n
        if main == "token" and not objective.of_rows:
            quality["bits_per_target_byte"] = bits / n * view.tokens_total / size
    for k in sums:
        if k != main and counts[k]:
            quality[f"loss_{k}"] = sums[k] / counts[k]
    if objective.records:
        quality |= means(found.metrics, n)
    for k, m in found.metrics.items() if not objective.records else ():
        if n_k := counts[k.partition("_")[0]]:
            quality[k] = m / n_k
    if answers is not None:
        answers[:] = found.answers
    return quality | objective.measured(view, found.answers) | {"targets": float(n)}


@dataclass
class Totals:
    """Sums, counts and metrics of a loss (`objectives.base.Loss`), added up over batches."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    answers: list[tuple[int, Any]] = field(default_factory=list)

    def add(self, loss: Loss) -> None:
        for k, s in loss.sums.items():
            self.sums[k] = self.sums.get(k, 0.0) + float(s)
            self.counts[k] = self.counts.get(k, 0) + loss.counts[k]
        for k, m in loss.recorded.items():
            self.metrics[k] = self.metrics.get(k, 0.0) + m
        self.answers += loss.answers


@torch.no_grad()
def _measured(model: Model, objective: Objective, view: View, rows: int, autocast: Any, nets: Nets) -> Totals:
    """The losses of every row of `view`, `rows` examples at a time, in eval mode."""
    training, found = {net: net.training for net in (model, *nets.values())}, Totals()
    for net in training:
        net.eval()
    examples = (example for example, _ in objective.examples(view, once=True))
    try:
        while held := list(itertools.islice(examples, rows)):
            batch = {k: v.to(model.device) for k, v in objective.collate(held).items()}
            with autocast() if autocast is not None else contextlib.nullcontext():
                found.add(objective.loss(model, batch, nets))
    finally:
        for net, mode in training.items():
            net.train(mode)
    return found
