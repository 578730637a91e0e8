"""Optimisers and learning rates from their declarations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from stemma.errors import CheckpointError, UsageError
from stemma.families import recipes


def optimizer(
    spec: recipes.AdamW | recipes.Adafactor | recipes.LAMB, model: nn.Module, lr: float
) -> torch.optim.Optimizer:
    """The optimiser over all parameters of `model`; weight decay spares norms and biases (all that is no matrix)."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": spec.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    match spec:
        case recipes.AdamW():
            return torch.optim.AdamW(groups, lr=lr, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True)
        case recipes.Adafactor():
            # torch squares its first eps: 1e-15 is the 1e-30 of the paper
            return torch.optim.Adafactor(groups, lr=lr, beta2_decay=-spec.decay, eps=(1e-15, 1e-3), d=spec.clip)
    raise UsageError(f"training with {type(spec).__name__} is not implemented yet; set recipe.optimizer to AdamW")


def rate(schedule: recipes.Schedule, lr: float, step: int, steps: int) -> float:
    """The learning rate of `step` (from 1) in a run of `steps`.

    Linear and cosine reach `floor * lr` at the last step. `rsqrt`: constant for `warmup` steps, then by 1/sqrt(step).
    """
    warm = schedule.warmup
    if schedule.shape == "rsqrt":
        return lr * max(schedule.floor, math.sqrt(max(warm, 1) / max(step, warm, 1)))
    if step <= warm:
        return lr * step / (warm + 1)
    done = min(1.0, (step - warm) / max(steps - warm, 1))
    match schedule.shape:
        case "linear":
            share = 1.0 - done
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * done))
        case _:
            return lr
    return lr * (schedule.floor + (1.0 - schedule.floor) * share)


def state(learners: Any, opt: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors by `parameter:slot`."""
    return {
        f"{name}:{slot}": value if isinstance(value, Tensor) else torch.tensor(float(value))
        for name, p in learners.named()
        for slot, value in opt.state.get(p, {}).items()
        if value is not None
    }


def restore(learners: Any, opt: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `state` took. Raises CheckpointError for tensors of parameters that the model lacks."""
    known = dict(learners.named())
    for key, value in tensors.items():
        name, _, slot = key.rpartition(":")
        if name not in known:
            raise CheckpointError(f"the optimiser's state speaks of {name}, which this model does not have")
        place = "cpu" if slot == "step" and not _on_device(opt) else known[name].device
        opt.state[known[name]][slot] = value.to(place, copy=True)


def _on_device(opt: torch.optim.Optimizer) -> bool:
    return bool(opt.defaults.get("fused"))
