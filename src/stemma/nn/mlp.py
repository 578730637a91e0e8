"""The position-wise networks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import parts


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of GELU, operation by operation as GPT-2's authors wrote it: torch's fused kernel rounds otherwise,
    and a deep model with large logits shows it in the fifth decimal. Where no gradient is wanted, in place."""
    if not torch.is_grad_enabled():
        y = torch.pow(x, 3.0).mul_(0.044715).add_(x).mul_(math.sqrt(2.0 / math.pi))
        return y.tanh_().add_(1.0).mul_(0.5 * x)
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def dropped(x: Tensor, rate: float, training: bool) -> Tensor:
    """Dropout in training, which draws nothing where the rate is 0."""
    return F.dropout(x, rate) if training and rate > 0 else x


def capped(x: Tensor, cap: float) -> Tensor:
    """`cap tanh(x / cap)`; in place where no gradient is wanted, for `x` that nobody else reads."""
    if torch.is_grad_enabled():
        return cap * torch.tanh(x / cap)
    return x.div_(cap).tanh_().mul_(cap)


class _Rectified(torch.autograd.Function):
    """ReLU whose gradient follows from the sign of its output, which the next product keeps anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clamp_min(0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        return outer[0] * ctx.saved_tensors[0].sign()


def relu(x: Tensor) -> Tensor:
    """ReLU in training. A compiled graph on a CPU would otherwise keep which inputs were positive as booleans, and
    inductor's vectors write and read those one by one, which takes longer than the product before it saves."""
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        y: Tensor = _Rectified.apply(x)
        return y
    return F.relu(x)


def fused_gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of GELU in training: torch's kernel. Compiled for a CPU it is written as `x sigmoid(2 u)`, which
    equals `x (1 + tanh(u)) / 2`: a vector of exponentials costs a fraction of one of hyperbolic tangents."""
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        return x * torch.sigmoid(x * (math.sqrt(8.0 / math.pi) * (1.0 + 0.044715 * x * x)))
    return F.gelu(x, approximate="tanh")


def activation(name: parts.Activation, fused: bool = False) -> Callable[[Tensor], Tensor]:
    """The function of an activation's name; `gelu` is the exact form, `gelu_tanh` the approximation of GPT, by torch's
    own kernel if so called. `fused`: the form that is fastest in training."""
    match name:
        case "gelu":
            return F.gelu
        case "gelu_tanh":
            return fused_gelu_tanh if fused else gelu_tanh
        case "gelu_tanh_fused":
            return fused_gelu_tanh if fused else functools.partial(F.gelu, approximate="tanh")
        case "relu":
            return relu if fused else F.relu
        case "silu":
            return F.silu


class MLP(nn.Module):
    """`down(act(up(x)))`, or `down(act(gate(x)) * up(x))` where the spec is gated."""

    def __init__(self, spec: parts.MLP | parts.GatedMLP, dims: parts.Dims, dropout: float) -> None:
        super().__init__()
        self.act, self.fused, self.dropout = activation(spec.act), activation(spec.act, fused=True), dropout
        self.gate = nn.Linear(dims.d_model, dims.d_ff, spec.bias) if isinstance(spec, parts.GatedMLP) else None
        self.up = nn.Linear(dims.d_model, dims.d_ff, spec.bias)
        self.down = nn.Linear(dims.d_ff, dims.d_model, spec.bias)

    def forward(self, x: Tensor) -> Tensor:  # B T D -> B T D
        act = self.fused if self.training else self.act
        y = act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x)
        return self.down(dropped(y, self.dropout, self.training))


KERNEL = (torch.float32, torch.float16)


class Experts(nn.Module):
    """Gated MLPs of which each token takes a few. Tokens are sorted by expert, so that each is one product a matrix.

    `stacked`: parameters whose first axis counts the experts, which files keep apart."""

    stacked = ("gate", "up", "down")

    def __init__(self, spec: parts.Experts, dims: parts.Dims, dropout: float) -> None:
        super().__init__()
        if dims.experts is None or dims.active is None:
            raise UsageError("a mixture of experts needs dims.experts and dims.active")
        self.act, self.fused, self.dropout = activation(spec.act), activation(spec.act, fused=True), dropout
        self.count, self.active = dims.experts, dims.active
        self.router = nn.Linear(dims.d_model, dims.experts, bias=False)
        self.gate = nn.Parameter(torch.empty(dims.experts, dims.d_ff, dims.d_model))
        self.up = nn.Parameter(torch.empty(dims.experts, dims.d_ff, dims.d_model))
        self.down = nn.Parameter(torch.empty(dims.experts, dims.d_model, dims.d_ff))

    def forward(self, x: Tensor) -> Tensor:  # B T D -> B T D
        act = self.fused if self.training else self.act
        tokens = x.reshape(-1, x.shape[-1])
        scores = self.router(tokens).float().softmax(-1)
        weights, chosen = scores.topk(self.active, -1)
        weights = (weights / weights.sum(-1, keepdim=True)).flatten()
        order = chosen.flatten().argsort(stable=True)  # places N*K, by expert
        ends = torch.zeros(self.count, dtype=torch.int64, device=x.device)
        ends = ends.scatter_add(0, chosen.flatten(), torch.ones_like(order)).cumsum(0).to(torch.int32)
        rows = tokens[order // self.active]
        y = act(self.times(rows, self.gate, ends)) * self.times(rows, self.up, ends)
        y = self.times(dropped(y, self.dropout, self.training), self.down, ends)
        y = y * weights[order, None].to(y.dtype)
        back = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=x.device))
        return y[back].unflatten(0, (-1, self.active)).sum(1).view_as(x)

    def times(self, rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        """Rows (sorted by expert, of which each has those up to `ends`) times the matrix of their expert."""
        if torch.is_autocast_enabled(rows.device.type):  # which knows products of matrices, not those of groups
            low = torch.get_autocast_dtype(rows.device.type)
            rows, weight = rows.to(low), weight.to(low)
        # torch's kernel wants rows of whole 16 bytes, and bfloat16 when it is traced or not on a CPU
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
