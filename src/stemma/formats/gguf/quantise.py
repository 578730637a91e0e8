"""Quantisation: float32 to the blocks that `quants` reads.

The K types are made here, the older ones and the ternary ones by the `gguf` package. A block of Q4_K or Q5_K has 8
groups of 32 weights, each with a scale and a minimum: `w = d*scale*q - dmin*least`. One of Q6_K has 16 groups of 16,
each with a signed scale: `w = d*scale*(q - 32)`. The parameters of a group are those with the smallest sum of squared
errors among a few widths of its range, each with the least-squares fit to the codes that it gives; then the scales
themselves are rounded, and the factors of the whole block are fitted once more.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.errors import UsageError
from stemma.formats.gguf import quants
from stemma.formats.gguf.quants import Array

# steps by which the range of a group is wider than its codes: wider ranges clip the ends
AFFINE = (-2.0, -1.6, -1.2, -0.9, -0.6, -0.3, 0.0, 0.3, 0.6)
SIGNED = (-9.0, -7.5, -6.0, -4.5, -3.0, -1.5, 0.0, 1.0)
FITS = 2  # of the factors of a block
LARGEST = 1e12  # above what any type holds, and below what sums of squares overflow of


def quantise(matrix: Tensor, kind: int, library: ModuleType) -> Array:
    """The bytes of a matrix (... D, D whole blocks) as the quantised type number `kind`: rows of bytes, some rows at a
    time in each thread. `library`: the `gguf` package. Raises UsageError for values that are not finite, or too large
    for the type."""
    weights, size = quants.SIZES[kind]
    rows = matrix.reshape(-1, matrix.shape[-1])
    out = np.empty((len(rows), rows.shape[1] // weights * size), np.uint8)
    step = max(1, quants.CHUNK // rows.shape[1])

    def some(at: int) -> None:
        out[at : at + step] = _rows(rows[at : at + step].float().contiguous(), kind, library)

    threads = torch.get_num_threads()
    try:  # hundreds of small operations: on a busy machine, threads that meet after each of them would wait for ever
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(some, range(0, len(rows), step)):
                pass
    finally:
        torch.set_num_threads(threads)
    return out.reshape(*matrix.shape[:-1], -1)


def _rows(part: Tensor, kind: int, library: ModuleType) -> Array:
    """The bytes of a few float32 rows."""
    if not bool(part.isfinite().all()):
        raise UsageError(f"{quants.NAMES[kind]} cannot hold inf or nan, and this tensor has some")
    if part.numel() and float(part.abs().max()) > LARGEST:
        raise _too_large(kind)
    if kind in MADE:
        made = _packed(part, kind).reshape(len(part), -1)
    else:
        with np.errstate(over="ignore"):
            made = library.quants.quantize(part.numpy(), library.GGMLQuantizationType(kind))
    _check_scales(made, kind)
    return made


def _check_scales(data: Array, kind: int) -> None:
    struct = quants.QUANTISED[kind][1]
    blocks = data.reshape(-1).view(struct)
    for name in ("d", "m", "dmin"):
        if name in (struct.names or ()) and not np.isfinite(blocks[name]).all():
            raise _too_large(kind)


def _too_large(kind: int) -> UsageError:
    return UsageError(f"this tensor has values too large for the half-precision scales of {quants.NAMES[kind]}")


# ---------------------------------------------------------------- scale and minimum


def _sums(x: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of q, q*q and x*q over the last axis."""
    return q.sum(-1), torch.linalg.vecdot(q, q), torch.linalg.vecdot(x, q)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, 0 where b is 0."""
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


def _affine(x: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Scale and minimum of groups (... D) for codes from 0 to `top`, both at least 0: x ~ scale*q - least."""
    low = x.amin(-1).clamp_max(0)
    span = x.amax(-1) - low
    above, total, n = x - low[..., None], x.sum(-1), x.shape[-1]
    best = torch.full_like(low, float("inf"))
    scale, least = torch.zeros_like(low), torch.zeros_like(low)
    for wider in AFFINE:
        q = (above * _ratio(torch.full_like(span, top + wider), span)[..., None]).round_().clamp_(0, top)
        s, ss, xs = _sums(x, q)
        spread = n * ss - s * s
        a = _ratio(n * xs - total * s, spread)
        b = torch.where(spread == 0, low, _ratio(ss * total - s * xs, spread))
        alone = (b >= 0) | ((spread == 0) & (s > 0))  # no minimum below 0: the scale alone
        a, b = torch.where(alone, _ratio(xs, ss), a), torch.where(alone, 0.0, b)
        error = a * a * ss + n * b * b + 2 * (a * b * s - a * xs - b * total)  # but for the sum of x*x
        better = error < best
        best, scale, least = (torch.where(better, *pair) for pair in ((error, best), (a, scale), (-b, least)))
    return scale.clamp_min(0), least


def _half(x: Tensor) -> Tensor:
    """Rounded to half precision."""
    return x.half().float()


def _factor(x: Tensor) -> Tensor:
    """A block's factor: half precision, rounded up where it is subnormal, so that no scale is past its bits."""
    return _half(torch.where(x.abs() < 2**-14, x + x.sign() * 2**-25, x))


def _codes(x: Tensor, scale: Tensor, least: Tensor, top: int) -> Tensor:
    return ((x + least[..., None]) * _ratio(torch.ones_like(scale), scale)[..., None]).round_().clamp_(0, top)


def _affine_block(x: Tensor, top: int) -> dict[str, Tensor]:
    """Blocks n 8 32: the factors `d` and `dmin` (n), `scales` and `minima` from 0 to 63 (n 8), and the codes `q`."""
    scale, least = _affine(x, top)
    d, dmin = (_factor(v.amax(-1) / 63) for v in (scale, least))
    scales = _ratio(scale, d[:, None].expand_as(scale)).round().clamp(0, 63)
    minima = _ratio(least, dmin[:, None].expand_as(least)).round().clamp(0, 63)
    best: dict[str, Tensor] = {}
    error = torch.full_like(d, float("inf"))
    for _ in range(FITS + 1):
        q = _codes(x, d[:, None] * scales, dmin[:, None] * minima, top)
        a, b = (scales[..., None] * q).flatten(1), minima[..., None].expand_as(q).flatten(1)
        flat = x.flatten(1)
        off = (d[:, None] * a - dmin[:, None] * b - flat).square_().sum(-1)
        better = off < error
        error = torch.where(better, off, error)
        found = {"d": d, "dmin": dmin, "q": q}
        best = {k: torch.where(better.view(-1, *[1] * (v.ndim - 1)), v, best.get(k, v)) for k, v in found.items()}
        dot = torch.linalg.vecdot
        aa, bb, ab, xa, xb = dot(a, a), dot(b, b), dot(a, b), dot(flat, a), dot(flat, b)
        spread = aa * bb - ab * ab
        alone = spread <= 1e-6 * aa * bb
        d = _half(torch.where(alone, _ratio(xa + dmin * ab, aa), _ratio(xa * bb - xb * ab, spread)))
        dmin = _half(torch.where(alone, dmin, _ratio(xa * ab - xb * aa, spread)))
    return best | {"scales": scales, "minima": minima}


# ---------------------------------------------------------------- signed scale


def _signed(x: Tensor) -> Tensor:
    """The scale of groups (... D) for codes from -32 to 31: the entry of the largest size is near -32."""
    peak = x.gather(-1, x.abs().argmax(-1, keepdim=True)).squeeze(-1)
    best, scale = torch.full_like(peak, -1.0), torch.zeros_like(peak)
    for wider in SIGNED:
        q = (x * _ratio(torch.full_like(peak, -32 - wider / 10), peak)[..., None]).round_().clamp_(-32, 31)
        _, ss, xs = _sums(x, q)
        a = _ratio(xs, ss)
        gain = a * xs  # of the sum of squares, what the codes take away
        better = gain > best
        best, scale = torch.where(better, gain, best), torch.where(better, a, scale)
    return scale


def _signed_block(x: Tensor) -> dict[str, Tensor]:
    """Blocks n 16 16: the factor `d` (n), `scales` from -128 to 127 (n 16), and the codes `q` from 0 to 63."""
    scale = _signed(x)
    peak = scale.gather(-1, scale.abs().argmax(-1, keepdim=True)).squeeze(-1)
    d = _factor(peak / -128)
    scales = _ratio(scale, d[:, None].expand_as(scale)).round().clamp(-128, 127)
    best: dict[str, Tensor] = {}
    error = torch.full_like(d, float("inf"))
    flat = x.flatten(1)
    for _ in range(FITS + 1):
        inverse = _ratio(torch.ones_like(scales), d[:, None] * scales)
        q = (x * inverse[..., None]).round_().clamp_(-32, 31)
        a = (scales[..., None] * q).flatten(1)
        off = (d[:, None] * a - flat).square_().sum(-1)
        better = off < error
        error = torch.where(better, off, error)
        found = {"d": d, "q": q + 32}
        best = {k: torch.where(better.view(-1, *[1] * (v.ndim - 1)), v, best.get(k, v)) for k, v in found.items()}
        d = _half(_ratio(torch.linalg.vecdot(flat, a), torch.linalg.vecdot(a, a)))
    return best | {"scales": scales}


# ---------------------------------------------------------------- bytes


def _bytes(values: Array, width: int, bits: int) -> Array:
    """The inverse of `quants._bits`: n W -> n (W * bits / 8)."""
    runs = values.reshape(len(values), -1, 8 // bits, width)
    shifts = (np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)).reshape(1, 1, -1, 1)
    joined: Array = np.bitwise_or.reduce(runs << shifts, axis=2)
    return joined.reshape(len(values), -1)


def _integers(values: Tensor, kind: Any = np.uint8) -> Array:
    return values.flatten(1).numpy().astype(kind)


def _packed(rows: Tensor, kind: int) -> Array:
    """Blocks of a K type from float32 rows of whole blocks, as their struct."""
    weights, struct, _ = quants.QUANTISED[kind]
    blocks = rows.reshape(-1, weights)
    out = np.zeros(len(blocks), struct)
    if kind == Q6_K:
        found = _signed_block(blocks.view(-1, 16, 16))
        q = _integers(found["q"])
        out["ql"], out["qh"] = _bytes(q & 15, 64, 4), _bytes(q >> 4, 32, 2)
        out["scales"] = _integers(found["scales"], np.int8)
    else:
        found = _affine_block(blocks.view(-1, 8, 32), 15 if kind == Q4_K else 31)
        q, s, m = (_integers(found[name]) for name in ("q", "scales", "minima"))
        a, b = (v[:, :4] | (v[:, 4:] >> 4 << 6) for v in (s, m))
        out["scales"] = np.concatenate([a, b, (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4], -1)
        out["qs"] = _bytes(q & 15, 32, 4)
        if kind == Q5_K:
            out["qh"] = _bytes(q >> 4, 32, 1)
        out["dmin"] = found["dmin"].numpy()
    out["d"] = found["d"].numpy()
    return out.view(np.uint8)


Q4_K, Q5_K, Q6_K = MADE = (12, 13, 14)
