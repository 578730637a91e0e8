"""Layers whose parameters may be of another type than what they compute with: checkpoints mix types.

What goes on has the type of what came in. Matrices multiply in their own type, gains of norms in the wider of the two,
and biases and tables are cast to what they are added to. Under autocast nothing of this happens: it casts by itself.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.nn import products


def autocast_on(x: Tensor) -> bool:
    """Whether autocast casts what is computed of `x`. The meta device has none: what stands for it there (a plan of a
    GPU's step) casts by itself too."""
    return x.device.type == "meta" or torch.is_autocast_enabled(x.device.type)


def cast(y: Tensor, x: Tensor) -> Tensor:
    """`y` in the type of `x`; as it is under autocast."""
    return y if y.dtype == x.dtype or autocast_on(x) else y.to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weight^T + bias`: ... D, E D, E -> ... E."""
    if x.dtype == weight.dtype and (bias is None or bias.dtype == weight.dtype):
        return products.linear(x, weight, bias) if products.fits(x, weight) else F.linear(x, weight, bias)
    return cast(F.linear(cast(x, weight), weight, None if bias is None else cast(bias, weight)), x)


class Matrix(Protocol):
    """A matrix that multiplies by itself, because it is kept in another form than its numbers."""

    @property
    def weight(self) -> Tensor: ...

    def times(self, x: Tensor, bias: Tensor | None) -> Tensor: ...


def times(x: Tensor, matrix: Tensor | Matrix, bias: Tensor | None) -> Tensor:
    """`x matrix^T + bias`: ... D -> ... E."""
    return linear(x, matrix, bias) if isinstance(matrix, Tensor) else matrix.times(x, bias)


class Linear(nn.Linear):
    """`x weight^T + bias`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the last axis, in the wider type where types differ."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype and (self.bias is None or self.bias.dtype == x.dtype):
            return super().forward(x)
        if autocast_on(x):
            return super().forward(x)
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        bias = None if self.bias is None else self.bias.to(wide)
        return F.layer_norm(x.to(wide), self.normalized_shape, self.weight.to(wide), bias, self.eps).to(x.dtype)
