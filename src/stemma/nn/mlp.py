"""The position-wise networks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.nn import parts


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of GELU, operation by operation as GPT-2's authors wrote it: torch's fused kernel rounds otherwise,
    and a deep model with large logits shows it in the fifth decimal."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def activation(name: parts.Activation, fused: bool = False) -> Callable[[Tensor], Tensor]:
    """The function of an activation's name; `gelu` is the exact form, `gelu_tanh` the approximation of GPT, by torch's
    own kernel if `fused`."""
    match name:
        case "gelu":
            return F.gelu
        case "gelu_tanh":
            return functools.partial(F.gelu, approximate="tanh") if fused else gelu_tanh
        case "relu":
            return F.relu
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
        return self.down(F.dropout(y, self.dropout, self.training and self.dropout > 0))
