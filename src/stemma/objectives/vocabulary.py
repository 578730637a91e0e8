"""The loss at the vocabulary: hidden states of targets through the head, without all logits in memory at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stemma.nn.model import Model

LOGITS = 2**25  # logits held at once (128 MB in fp32); more targets go through the head in chunks


def picked(hidden: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """N D: the hidden states (B T D) of the batch's targets."""
    flat = hidden.flatten(0, 1)
    where = batch.get("where")
    return flat if where is None else flat.index_select(0, where)


def token_loss(
    model: Model, hidden: Tensor, batch: Mapping[str, Tensor], z: float = 0.0, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy in nats summed over the targets of `batch`, fp32; `hidden` is B T D. `z` times the square of the
    logarithm of the softmax's denominator is added for each (de Brebisson & Vincent 2016; Chowdhery et al. 2022,
    section 5). `smoothing`: the share of a target's probability that all entries get alike (Szegedy et al. 2015,
    section 7)."""
    more = (smoothing,) if smoothing else ()
    states, goal = picked(hidden, batch), batch["targets"]
    rows = max(1, LOGITS // model.dims.vocab)
    if len(goal) <= rows:
        return _summed(model, states, goal, z, *more)
    parts = [
        checkpoint(_summed, model, h, g, z, *more, use_reentrant=False)
        for h, g in zip(states.split(rows), goal.split(rows), strict=True)
    ]
    return torch.stack(parts).sum()


def _summed(model: Model, hidden: Tensor, goal: Tensor, z: float, smoothing: float = 0.0) -> Tensor:
    logits = model.logits(hidden).float()
    loss = F.cross_entropy(logits, goal, reduction="sum", label_smoothing=smoothing)
    return loss + z * logits.logsumexp(-1).square().sum() if z else loss
