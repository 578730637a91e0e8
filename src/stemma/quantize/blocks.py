"""Rows of weights in the blocks of GGUF's types: floats are rounded to Q8_0, Q4_0 and Q4_1, and these and others are
made floats again.

A block of Q8_0, Q4_0 and Q4_1 has 32 weights: a scale `d` in half precision, of Q4_1 a minimum `m` too, then the codes,
`w = d*q` (Q8_0), `d*(q - 8)`, or `d*q + m`. Codes and scales are those that the `gguf` package makes, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stemma.errors import UsageError

BLOCK = 32
ROUNDED = ("Q8_0", "Q4_0", "Q4_1")  # the types that floats can be rounded to


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
    """Rows of weights from rows of bytes, on any device and within compiled graphs: ... K, fp32. `kind`: of `READ`."""
    size, read = READ[kind]
    return read(rows.reshape(-1, size)).view(*rows.shape[:-1], -1)


def inverse(d: Tensor) -> Tensor:
    return torch.where(d == 0, 0.0, 1 / d)


def halves(d: Tensor) -> Tensor:
    return d.to(torch.float16).view(torch.uint8)


def nibbles(codes: Tensor) -> Tensor:
    """Codes 0 to 15, the first half of a block in the low bits of the bytes."""
    whole = codes.clamp(0, 15).to(torch.uint8)
    return whole[..., : BLOCK // 2] | whole[..., BLOCK // 2 :] << 4


# ---------------------------------------------------------------- weights of blocks: N bytes -> N K
# the structs of `stemma.formats.gguf.quants`, and its operations one by one, so that results are the same bit for bit


def _half(block: Tensor, at: int) -> Tensor:
    return block[:, at : at + 2].contiguous().view(torch.float16).float()


def _signed(block: Tensor) -> Tensor:
    return block.contiguous().view(torch.int8).float()


def _bits(packed: Tensor, width: int, bits: int) -> Tensor:
    """Unsigned integers of `bits` bits: each run of `width` bytes gives first its lowest bits, then the next ones."""
    runs = packed.unflatten(-1, (-1, width))
    return torch.stack([(runs >> k) & ((1 << bits) - 1) for k in range(0, 8, bits)], 2).flatten(1)


def _five(high: Tensor, low: Tensor) -> Tensor:
    return (_bits(low, 16, 4) | _bits(high, 1, 1) << 4).float()


def _groups(q: Tensor, scale: Tensor, least: Tensor | None = None) -> Tensor:
    """`scale*q - least`, scale and least once a group: N 256, N G -> N 256."""
    out = scale[..., None] * q.float().unflatten(-1, (scale.shape[1], -1))
    return (out if least is None else out - least[..., None]).flatten(1)


def _scales_and_minima(block: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K: eight each, of six bits."""
    a, b, c = block[:, 4:16].chunk(3, -1)
    scales = torch.cat([a & 63, (c & 15) | (a >> 6 << 4)], -1)
    minima = torch.cat([b & 63, (c >> 4) | (b >> 6 << 4)], -1)
    return _half(block, 0) * scales.float(), _half(block, 2) * minima.float()


def _q4_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_bits(b[:, 2:], 16, 4).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b, 0) * _bits(b[:, 4:], 16, 4).float() + _half(b, 2)


def _q5_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_five(b[:, 2:6], b[:, 6:]) - 16)


def _q5_1(b: Tensor) -> Tensor:
    return _half(b, 0) * _five(b[:, 4:8], b[:, 8:]) + _half(b, 2)


def _q8_0(b: Tensor) -> Tensor:
    return _signed(b[:, 2:]) * _half(b, 0)


def _q2_k(b: Tensor) -> Tensor:
    scale, least = _half(b, 80) * (b[:, :16] & 15).float(), _half(b, 82) * (b[:, :16] >> 4).float()
    return _groups(_bits(b[:, 16:80], 32, 2), scale, least)


def _q3_k(b: Tensor) -> Tensor:
    six = _bits(b[:, 96:104], 8, 4) | _bits(b[:, 104:108], 4, 2) << 4
    low, high = _bits(b[:, 32:96], 32, 2).float(), _bits(b[:, :32], 32, 1).float()
    return _groups(low + 4 * high - 4, _half(b, 108) * (six.float() - 32))


def _q4_k(b: Tensor) -> Tensor:
    return _groups(_bits(b[:, 16:], 32, 4), *_scales_and_minima(b))


def _q5_k(b: Tensor) -> Tensor:
    return _groups(_bits(b[:, 48:], 32, 4) | _bits(b[:, 16:48], 32, 1) << 4, *_scales_and_minima(b))


def _q6_k(b: Tensor) -> Tensor:
    q = _bits(b[:, :128], 64, 4) | _bits(b[:, 128:192], 32, 2) << 4
    return _groups(q.float() - 32, _half(b, 208) * _signed(b[:, 192:208]))


READ: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {  # bytes of a block, and what reads it
    "Q4_0": (18, _q4_0), "Q4_1": (20, _q4_1), "Q5_0": (22, _q5_0), "Q5_1": (24, _q5_1), "Q8_0": (34, _q8_0),
    "Q2_K": (84, _q2_k), "Q3_K": (110, _q3_k), "Q4_K": (144, _q4_k), "Q5_K": (176, _q5_k), "Q6_K": (210, _q6_k),
}  # fmt: skip
