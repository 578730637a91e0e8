"""Rows of weights in the blocks of GGUF's types Q8_0, Q4_0 and Q4_1, made of floats and made floats again.

A block has 32 weights: a scale `d` in half precision, of Q4_1 a minimum `m` too, then the codes, `w = d*q` (Q8_0),
`d*(q - 8)`, or `d*q + m`. Codes and scales are those that the `gguf` package makes, bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stemma.errors import UsageError

BLOCK = 32
NUMBERS = {"Q8_0": 0, "Q4_0": 8, "Q4_1": 0}  # what is taken off a code; the types that floats can be rounded to


def rounded(kind: str, weights: Tensor) -> Tensor:
    """Rows of weights (N K, K a multiple of 32) as rows of bytes. Raises UsageError for inf and nan."""
    w = weights.float().unflatten(-1, (-1, BLOCK))
    if kind == "Q8_0":
        d = w.abs().amax(-1, keepdim=True) / 127
        scaled = w * inverse(d)
        codes = (scaled.abs() + 0.5).floor().copysign(scaled).to(torch.int8).view(torch.uint8)
        parts = [halves(d), codes]
    elif kind == "Q4_0":
        d = w.gather(-1, w.abs().argmax(-1, keepdim=True)) / -8
        parts = [halves(d), nibbles(w * inverse(d) + 8.5)]
    else:
        least = w.amin(-1, keepdim=True)
        d = (w.amax(-1, keepdim=True) - least) / 15
        parts = [halves(d), halves(least), nibbles((w - least) * inverse(d) + 0.5)]
    finite = weights.is_meta or all(bool(part.view(torch.float16).isfinite().all()) for part in parts[:-1])
    if not finite:
        raise UsageError(f"{kind} cannot hold inf or nan, nor scales that half precision has not: this tensor has some")
    return torch.cat(parts, -1).flatten(-2)


def numbers(kind: str, rows: Tensor) -> Tensor:
    """Rows of weights from rows of bytes: N K, fp32."""
    scales = 2 if kind == "Q4_1" else 1
    blocks = rows.unflatten(-1, (-1, 2 * scales + (BLOCK if kind == "Q8_0" else BLOCK // 2)))
    d, codes = blocks[..., : 2 * scales].contiguous().view(torch.float16).float(), blocks[..., 2 * scales :]
    if kind == "Q8_0":
        wide = codes.contiguous().view(torch.int8).float()
    else:
        wide = torch.cat([codes & 15, codes >> 4], -1).float()
    made = d[..., :1] * (wide - NUMBERS[kind])
    return (made + d[..., 1:] if scales == 2 else made).flatten(-2)


def inverse(d: Tensor) -> Tensor:
    return torch.where(d == 0, 0.0, 1 / d)


def halves(d: Tensor) -> Tensor:
    return d.to(torch.float16).view(torch.uint8)


def nibbles(codes: Tensor) -> Tensor:
    """Codes 0 to 15, the first half of a block in the low bits of the bytes."""
    whole = codes.clamp(0, 15).to(torch.uint8)
    return whole[..., : BLOCK // 2] | whole[..., BLOCK // 2 :] << 4
