"""Normalisation over the last axis: `norm(spec, width)` builds what the spec declares."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.nn import parts
from stemma.nn.mixed import LayerNorm, cast


class RMSNorm(nn.Module):
    """`x / rms(x) * weight`, the mean square in fp32, the result cast back before the gain (LLaMA, T5)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # ... D -> ... D
        if x.dtype in (torch.float32, torch.float64):
            return F.rms_norm(x, (x.shape[-1],), cast(self.weight, x), self.eps)
        wide = x.float()
        y = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        return cast(self.weight * y, x)


class OffsetRMSNorm(nn.Module):
    """`x / rms(x) * (1 + weight)`, all of it in fp32 (Gemma)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # ... D -> ... D
        return F.rms_norm(x.float(), (x.shape[-1],), 1.0 + self.weight.float(), self.eps).to(x.dtype)


class HeadNorm(nn.Module):
    """Layer normalisation of each head with its own gains, all of it in fp32 at least (Command R+)."""

    parameter_uses: ClassVar[dict[str, str]] = {"weight": "vector"}

    def __init__(self, heads: int, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # B H T D -> B H T D
        wide = x if x.dtype.itemsize >= 4 else x.float()
        y = F.layer_norm(wide, (x.shape[-1],), eps=self.eps)
        return (y * self.weight[:, None].to(wide.dtype)).to(x.dtype)


def head_norm(spec: parts.Norm | parts.HeadNorm, heads: int, width: int) -> nn.Module:
    """The module of a norm spec over the `width` of each head."""
    return HeadNorm(heads, width, spec.eps) if isinstance(spec, parts.HeadNorm) else norm(spec, width)


def norm(spec: parts.Norm, width: int) -> nn.Module:
    """The module of a norm spec over vectors of `width`."""
    match spec:
        case parts.LayerNorm(eps, bias):
            return LayerNorm(width, eps=eps, bias=bias)
        case parts.RMSNorm(eps, offset):
            return OffsetRMSNorm(width, eps) if offset else RMSNorm(width, eps)
    return spec.build(width)
