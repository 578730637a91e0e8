"""Optimisers and learning rates from their declarations."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from stemma.declare import recipes
from stemma.errors import CheckpointError, UsageError
from stemma.rewrites.paths import nearest_path
from stemma.train import optimisers

Named = Iterable[tuple[str, Tensor]]  # parameters by name
BLOCK = re.compile(r"(?P<stack>(\w+:)?(en|de)coder)\.blocks\.(?P<i>\d+)\.")


def optimizer(
    spec: recipes.Optimizer,
    named: Named,
    lr: float,
    parts: optimisers.Parts | None = None,
    uses: Mapping[str, str] | None = None,
    rates: Sequence[recipes.Rate | recipes.LayerDecay] = (),
) -> torch.optim.Optimizer:
    """The optimiser over those of the parameters that learn. Weight decay applies to matrices and tables, not to gains
    and biases. `uses`: see `uses_of`; without it, what has two dimensions is a matrix. `parts`: answers for sharded
    parameters. `rates`: a group's rate is `lr` times its "times". Raises UsageError for a pattern of a rate that
    matches nothing that learns."""
    named = list(named)
    made = _optimizer(spec, lr, _split(_groups(spec, named, uses or {}), named, rates))
    if parts is not None and isinstance(made, optimisers.Optimizer):
        made.parts = parts
    return made


def _optimizer(spec: recipes.Optimizer, lr: float, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    match spec:
        case recipes.AdamW(corrected=True):
            return torch.optim.AdamW(groups, lr=lr, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True)
        case recipes.AdamW():
            return optimisers.Adam(groups, lr, (spec.beta1, spec.beta2), spec.eps)
        case recipes.LAMB():
            return optimisers.LAMB(groups, lr, (spec.beta1, spec.beta2), spec.eps, spec.corrected)
        case recipes.Adafactor():
            return optimisers.Adafactor(
                groups,
                lr,
                decay=spec.decay,
                clip=spec.clip,
                smallest=spec.smallest,
                momentum=spec.momentum,
                power=spec.power,
            )
        case recipes.Muon():
            betas = (spec.beta1, spec.beta2)
            return optimisers.Muon(groups, lr, betas, spec.eps, spec.momentum, spec.iterations)


def uses_of(networks: Iterable[tuple[str, nn.Module]]) -> dict[str, str]:
    """What parameters with several dimensions are used for where they multiply no vectors: "vector" (gains or biases
    with a row for each head) or "table" (rows that are looked up). Their modules say it (`parameter_uses`). `networks`:
    prefix of the names, network."""
    return {
        f"{prefix}{path}.{name}": use
        for prefix, net in networks
        for path, module in net.named_modules()
        for name, use in getattr(module, "parameter_uses", {}).items()
    }


def is_hidden(name: str, p: Tensor, uses: Mapping[str, str]) -> bool:
    """Whether a parameter is a matrix of a block, which Muon makes orthogonal."""
    return ".blocks." in name and p.ndim >= 2 and "table" not in name and name not in uses


def _groups(spec: recipes.Optimizer, named: Named, uses: Mapping[str, str]) -> list[dict[str, Any]]:
    """Parameter groups: matrices of blocks (apart for Muon), other matrices and tables, and the rest (gains,
    biases)."""
    learning = [(name, p) for name, p in named if p.requires_grad]
    rest = {n for n, p in learning if p.ndim < 2 or uses.get(n) == "vector"}
    hidden = {n for n, p in learning if isinstance(spec, recipes.Muon) and is_hidden(n, p, uses)}
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in learning if n in hidden], "weight_decay": spec.weight_decay, "matrices": True},
        {"params": [p for n, p in learning if n not in hidden | rest], "weight_decay": spec.weight_decay},
        {"params": [p for n, p in learning if n in rest], "weight_decay": 0.0, "adapted": False},
    ]
    return [group for group in groups if group["params"]]


def _split(
    groups: list[dict[str, Any]], named: Named, rates: Sequence[recipes.Rate | recipes.LayerDecay]
) -> list[dict[str, Any]]:
    """The groups, each divided by what its parameters' rate is multiplied with."""
    if not rates:
        return groups
    names = {id(p): name for name, p in named if p.requires_grad}
    times = times_of(list(names.values()), rates)
    found: list[dict[str, Any]] = []
    for group in groups:
        for factor in dict.fromkeys(times[names[id(p)]] for p in group["params"]):
            own = [p for p in group["params"] if times[names[id(p)]] == factor]
            found.append(group | {"params": own, "times": factor})
    return found


def times_of(names: Sequence[str], rates: Sequence[recipes.Rate | recipes.LayerDecay]) -> dict[str, float]:
    """What the rate of each parameter is multiplied with. Raises UsageError for a pattern that matches none."""
    times = dict.fromkeys(names, 1.0)
    for rate in rates:
        if isinstance(rate, recipes.LayerDecay):
            for name in names:
                times[name] *= rate.decay ** _below(name, names)
            continue
        for pattern in rate.where:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(
                    f"recipe.rates: {pattern!r} matches no parameter that learns{nearest_path(pattern, names)}"
                )
        for name in names:
            if any(fnmatchcase(name, pattern) for pattern in rate.where):
                times[name] *= rate.times
    return times


def _below(name: str, names: Sequence[str]) -> int:
    """How far a parameter lies below the heads: 0 for a head, L + 1 - i in block i of L, L + 2 for embeddings."""
    stacks = [found for other in names if (found := BLOCK.match(other))]
    if found := BLOCK.match(name):
        layers = 1 + max(int(other["i"]) for other in stacks if other["stack"] == found["stack"])
        return layers + 1 - int(found["i"])
    if not re.match(r"(\w+:)?embed\.", name):
        return 0
    return 2 + max((int(other["i"]) + 1 for other in stacks), default=0)


def learning_rate(schedule: recipes.Schedule, lr: float, step: float, steps: int) -> float:
    """The learning rate of `step` (from 1) in a run of `steps`; it peaks at step `warmup`, or at the first."""
    warm = schedule.warmup
    if schedule.shape == "rsqrt":
        return lr * max(schedule.floor, math.sqrt(max(warm, 1) / max(step, warm, 1)))
    if step <= warm:
        return lr * step / warm
    end = schedule.until * steps
    done = min(1.0, (step - warm) / max(end - warm, 1))
    match schedule.shape:
        case "linear":
            share = 1.0 - done
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * done))
        case "inverse":
            return lr * max(schedule.floor, math.sqrt(max(warm, 1) / step))
        case "trapezoid":
            begin = max(schedule.hold * steps, warm)
            share = 1.0 - min(1.0, max(0.0, step - begin) / max(steps - begin, 1))
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
    """Restore the tensors of `state`. Raises CheckpointError for tensors of parameters that the model lacks."""
    known = dict(learners.named())
    for key, value in tensors.items():
        name, _, slot = key.rpartition(":")
        if name not in known:
            raise CheckpointError(f"the optimiser's state has {name}, which this model lacks")
        place = "cpu" if slot == "step" and not _on_device(opt) else known[name].device
        opt.state[known[name]][slot] = value.to(place, copy=True)
    names = {id(p): name for name, p in known.items()}
    for group in opt.param_groups:
        for p in group["params"]:
            held = set(opt.state[p]) if p in opt.state else set()
            if held and held != (needed := _slots(opt, group, p)):
                odd = min(held ^ needed)
                what = "lacks" if odd in needed else "has an unknown"
                raise CheckpointError(f"the optimiser's state {what} {odd!r} of {names.get(id(p), 'a parameter')}")


def _slots(opt: torch.optim.Optimizer, group: dict[str, Any], p: Tensor) -> set[str]:
    """The names of what an optimiser keeps of a parameter."""
    own = getattr(opt, "slots", None)
    return {"step", *(own(group, p) if own is not None else ("exp_avg", "exp_avg_sq"))}


def _on_device(opt: torch.optim.Optimizer) -> bool:
    return bool(opt.defaults.get("fused"))
