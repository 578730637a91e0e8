"""Weights before training, as published for each kind."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from stemma.nn import parts
from stemma.nn.norms import HeadNorm, OffsetRMSNorm, RMSNorm


class Undrawn(TorchFunctionMode):
    """Leaves new modules as they are: on the meta device there is nothing to draw, and to trace a random function there
    torch imports its compiler, which takes a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@torch.no_grad()
def initialise(model: nn.Module, arch: parts.Arch, dims: parts.Dims, seed: int) -> None:
    """Fill every parameter of `model` in place. The draw depends on `seed` alone, not on torch's global state."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if (custom := getattr(module, "init_weights", None)) is not None:  # of a component of one's own
            custom(generator)
            continue
        if isinstance(module, (nn.LayerNorm, RMSNorm, HeadNorm)):
            module.weight.fill_(1.0)
        for key, weight in module.named_parameters(recurse=False):
            if key == "bias" or isinstance(module, OffsetRMSNorm):
                weight.zero_()
            elif not isinstance(module, (nn.LayerNorm, RMSNorm, HeadNorm)):
                _fill(f"{name}.{key}", weight, arch, dims, generator)


def _fill(path: str, weight: nn.Parameter, arch: parts.Arch, dims: parts.Dims, generator: torch.Generator) -> None:
    owner = path.split(".")[-2 if path.endswith(("weight", "bias")) else -1]
    dims = dims.decoder if path.startswith("decoder.") else dims
    if isinstance(arch.init, parts.FanIn):
        weight.normal_(0.0, arch.init.factor * _fan_in(owner, dims), generator=generator)
        return
    if isinstance(arch.init, parts.Glorot):
        if owner == "tokens" or weight.ndim < 2:  # a vector (XLNet's first query) is drawn as an embedding is
            weight.normal_(0.0, weight.shape[-1] ** -0.5, generator=generator)
        else:
            nn.init.xavier_uniform_(weight, generator=generator)
        return
    if isinstance(arch.init, parts.LeCun):
        weight.normal_(0.0, 1.0 if owner == "tokens" else weight.shape[-1] ** -0.5, generator=generator)
        return
    std = arch.init.std
    if arch.init.residual and owner in ("o", "down"):
        std /= math.sqrt(2 * dims.layers)  # two branches a layer write into the stream
    if arch.init.positions is not None and path.endswith("position.table.weight"):
        if arch.init.positions == "sines":
            weight.copy_(_sines(*weight.shape))
            return
        std = arch.init.positions
    if arch.init.truncated:
        nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std, generator=generator)
    else:
        weight.normal_(0.0, std, generator=generator)


def _sines(rows: int, width: int) -> torch.Tensor:
    """Sines in the even columns, cosines in the odd ones, a pair a frequency (Vaswani et al. 2017, section 3.5)."""
    column = torch.arange(width)
    angle = torch.arange(rows)[:, None] / 10000.0 ** (2 * (column // 2) / width)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())


def _fan_in(owner: str, dims: parts.Dims) -> float:
    match owner:
        case "q":
            return (dims.d_model * dims.width) ** -0.5
        case "o":
            return (dims.heads * dims.width) ** -0.5
        case "down":
            return dims.d_ff**-0.5
        case "tokens":
            return 1.0
    return dims.d_model**-0.5  # k, v, up, gate, an untied head, the table of distances
