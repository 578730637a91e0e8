"""Modules whose weight is made of its codes when it is needed, and kept in between by nobody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stemma.nn.mixed import linear
from stemma.quantize import native
from stemma.rewrites.modules import Rewritten

# what multiplies in the place of a module's own `product`, where it can
PRODUCT: ContextVar[Callable[[Any, Tensor], Tensor | None] | None] = ContextVar("PRODUCT", default=None)


class MakesWeight(Protocol):
    """What has a weight that costs work to make."""

    @property
    def weight(self) -> Tensor: ...

    def product(self, x: Tensor) -> Tensor | None: ...


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
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor | None = _FrozenLinear.apply(x, module)
    else:
        other = None if torch.compiler.is_compiling() else PRODUCT.get()
        y = None if other is None else other(module, x)
        y = module.product(x) if y is None else y
    if y is None:
        return linear(x, module.weight, bias)
    return y if bias is None else y + bias.to(y.dtype)


class Frozen(Rewritten):
    """A module that keeps its weight in another form (`store`), and its bias as it is. The weight does not learn."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__(plain)
        self.bias: nn.Parameter | None = None
        if "bias" in self.shapes:
            self.bias = nn.Parameter(torch.empty(self.shapes["bias"], device="meta"))

    @property
    def weight(self) -> Tensor:
        """The weight that is computed with."""
        raise NotImplementedError

    @property
    def kept(self) -> str:
        """What the weight is kept in, in words."""
        raise NotImplementedError

    @property
    def quick(self) -> bool:
        """Whether `product` can compute of what is stored, on a CPU."""
        return False

    def product(self, x: Tensor) -> Tensor | None:
        """`x w^T` without making the weight, where that is possible and faster."""
        return None

    def times(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`x w^T + b`: ... D -> ... E."""
        return frozen_linear(x, self, bias)

    def store(self, value: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        """Take the weight, in the dtype of its file; `dtype` is what the model computes in."""
        raise NotImplementedError

    def load(self, name: str, value: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        if name != "bias":
            self.store(value, device, dtype)
            return
        learns = self.bias is None or self.bias.requires_grad
        held = torch.empty(value.shape, dtype=dtype, device=device).copy_(value)
        self.bias = nn.Parameter(held, requires_grad=learns)


class FrozenLinear(Frozen):
    """`x w^T + b`."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__(plain)
        self.out_features, self.in_features = self.shapes["weight"]

    def forward(self, x: Tensor) -> Tensor:
        return self.times(x, self.bias)

    def merge(self) -> nn.Module:
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        made.weight = nn.Parameter(self.weight)
        if self.bias is not None:
            made.bias = self.bias
        return made


def note(model: nn.Module) -> str | None:
    """What the matrices of a model are kept in and how products with them are computed, in words; None where all are
    plain."""
    found = [m for m in model.modules() if isinstance(m, Frozen)]
    if not found:
        return None
    kept = ", ".join(f"{n} in {kind}" for kind, n in Counter(m.kept for m in found).items())
    quick = any(m.quick and next(m.buffers()).device.type == "cpu" for m in found)
    return f"matrices: {kept}; products {native.how() if quick else native.PLAIN}"
