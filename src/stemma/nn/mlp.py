"""Position-wise feed-forward networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import cpu, functional, parts
from stemma.nn.mixed import Linear


def activation(name: parts.Activation, fused: bool = False) -> Callable[[Tensor], Tensor]:
    """The function of an activation's name. `gelu` is exact; `gelu_tanh` is GPT-2's approximation; `gelu_tanh_fused` is
    the same by torch's kernel. `fused`: the fastest form in training."""
    match name:
        case "gelu":
            return F.gelu
        case "gelu_tanh":
            return cpu.gelu_tanh if fused else functional.gelu_tanh
        case "gelu_tanh_fused":
            return cpu.gelu_tanh if fused else partial(F.gelu, approximate="tanh")
        case "relu":
            return cpu.relu if fused else F.relu
        case "silu":
            return F.silu
        case "tanh":
            return torch.tanh
        case "quick_gelu":
            return functional.quick_gelu
        case "relu2":
            return functional.relu2


class MLP(nn.Module):
    """`down(act(up(x)))`, or `down(act(gate(x)) * up(x))` where the spec is gated."""

    def __init__(self, spec: parts.MLP | parts.GatedMLP, dims: parts.Dims, dropout: float) -> None:
        super().__init__()
        self.act, self.fused, self.dropout = activation(spec.act), activation(spec.act, fused=True), dropout
        self.gate = Linear(dims.d_model, dims.d_ff, spec.bias) if isinstance(spec, parts.GatedMLP) else None
        self.up = Linear(dims.d_model, dims.d_ff, spec.bias)
        self.down = Linear(dims.d_ff, dims.d_model, spec.bias)

    def forward(self, x: Tensor) -> Tensor:  # B T D -> B T D
        act = self.fused if self.training else self.act
        y = act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x)
        return self.down(functional.dropout(y, self.dropout, self.training))


KERNEL = (torch.float32, torch.float16)  # types that torch's grouped product takes on a CPU only


Times = Callable[[Tensor, Tensor, Tensor], Tensor]  # rows, a matrix an expert, where each ends -> rows


class Experts(nn.Module):
    """A mixture of gated MLPs: each token goes through `dims.active` of `dims.experts`, weighted by the router. Tokens
    are sorted by expert, so that each matrix is used in one product.

    `stacked`: parameters whose first axis is the expert; files hold one tensor an expert."""

    stacked = ("gate", "up", "down")

    def __init__(self, spec: parts.Experts, dims: parts.Dims, dropout: float) -> None:
        super().__init__()
        if dims.experts is None or dims.active is None:
            raise UsageError("a mixture of experts needs dims.experts and dims.active")
        self.act, self.fused, self.dropout = activation(spec.act), activation(spec.act, fused=True), dropout
        self.count, self.active, self.normalised = dims.experts, dims.active, spec.normalised
        self.router = Linear(dims.d_model, dims.experts, bias=False)
        self.gate = nn.Parameter(torch.empty(dims.experts, dims.d_ff, dims.d_model))
        self.up = nn.Parameter(torch.empty(dims.experts, dims.d_ff, dims.d_model))
        self.down = nn.Parameter(torch.empty(dims.experts, dims.d_model, dims.d_ff))

    def forward(self, x: Tensor, times: Times | None = None) -> Tensor:  # B T D -> B T D
        times = self.times if times is None else times
        act = self.fused if self.training else self.act
        tokens = x.reshape(-1, x.shape[-1])
        scores = self.router(tokens).float().softmax(-1)
        weights, chosen = scores.topk(self.active, -1)
        weights = (weights / weights.sum(-1, keepdim=True) if self.normalised else weights).flatten()
        order = chosen.flatten().argsort(stable=True)  # N*K: token slots, sorted by expert
        ends = torch.zeros(self.count, dtype=torch.int64, device=x.device)
        ends = ends.scatter_add(0, chosen.flatten(), torch.ones_like(order)).cumsum(0).to(torch.int32)
        rows = tokens[order // self.active]
        y = act(times(rows, self.gate, ends)) * times(rows, self.up, ends)
        y = times(functional.dropout(y, self.dropout, self.training), self.down, ends)
        y = y * weights[order, None].to(y.dtype)
        back = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=x.device))
        return y[back].unflatten(0, (-1, self.active)).sum(1).view_as(x)

    def times(self, rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        """Each row times the matrix of its expert: R D, X E D, X -> R E. Rows are sorted; expert x ends at
        `ends[x]`."""
        if torch.is_autocast_enabled(rows.device.type):  # autocast does not know grouped products
            low = torch.get_autocast_dtype(rows.device.type)
            rows, weight = rows.to(low), weight.to(low)
        if rows.dtype != weight.dtype:
            return self.times(rows.to(weight.dtype), weight, ends).to(rows.dtype)
        # torch's kernel needs rows of a multiple of 16 bytes, and bfloat16 if it is traced or not on a CPU
        whole = all(n * rows.element_size() % 16 == 0 for n in weight.shape[1:])
        wide = rows.dtype in KERNEL and rows.device.type == "cpu" and not torch.compiler.is_compiling()
        if whole and (rows.dtype == torch.bfloat16 or wide):
            return F.grouped_mm(rows, weight.transpose(1, 2), offs=ends)
        places = torch.arange(len(rows), device=rows.device)
        return (rows @ weight.transpose(1, 2))[torch.searchsorted(ends, places, right=True), places]


def feed_forward(
    spec: parts.MLP | parts.GatedMLP | parts.Experts | parts.CustomMLP, dims: parts.Dims, dropout: float
) -> nn.Module:
    """The module of an MLP spec."""
    if isinstance(spec, parts.Experts):
        return Experts(spec, dims, dropout)
    if dims.experts is not None:
        raise UsageError(f"dims.experts={dims.experts} needs arch.mlp=Experts(...), not {spec}")
    if isinstance(spec, parts.CustomMLP):
        return spec.build(dims, dropout)
    return MLP(spec, dims, dropout)
