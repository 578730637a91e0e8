"""Products with a weight that is made of its codes when it is needed, and kept in between by nobody."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from stemma.nn.mixed import linear


class MakesWeight(Protocol):
    """What has a weight that costs work to make."""

    @property
    def weight(self) -> Tensor: ...


class _FrozenLinear(torch.autograd.Function):
    """`x w^T`, with a gradient for `x` alone. The backward pass makes the weight again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: MakesWeight) -> Tensor:
        ctx.module = module
        return linear(x, module.weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0]
        return grad @ ctx.module.weight.to(grad.dtype), None


def frozen_linear(x: Tensor, module: MakesWeight, bias: Tensor | None) -> Tensor:
    """`x w^T + b` for the weight of `module`, which does not learn: ... D -> ... E."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return linear(x, module.weight, bias)
    y: Tensor = _FrozenLinear.apply(x, module)
    return y if bias is None else y + bias.to(y.dtype)
