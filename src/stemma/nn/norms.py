"""Normalisation over the last axis: `norm(spec, width)` builds what the spec declares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.nn import parts


class RMSNorm(nn.Module):
    """`x / rms(x) * weight`, the mean square in fp32, the result cast back before the gain (LLaMA, T5)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # ... D -> ... D
        if x.dtype in (torch.float32, torch.float64):
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class OffsetRMSNorm(nn.Module):
    """`x / rms(x) * (1 + weight)`, all of it in fp32 (Gemma)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # ... D -> ... D
        return F.rms_norm(x.float(), (x.shape[-1],), 1.0 + self.weight.float(), self.eps).to(x.dtype)


def norm(spec: parts.Norm, width: int) -> nn.Module:
    """The module of a norm spec over vectors of `width`."""
    match spec:
        case parts.LayerNorm(eps, bias):
            return nn.LayerNorm(width, eps=eps, bias=bias)
        case parts.RMSNorm(eps, offset):
            return OffsetRMSNorm(width, eps) if offset else RMSNorm(width, eps)
