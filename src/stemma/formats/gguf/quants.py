"""Dequantisation: blocks of small integers with shared scales, back to float32.

A block of the older types has 32 weights, one half-precision scale `d` and, where the name ends in `_1`, a minimum `m`:
`w = d*q` or `w = d*q + m`. A block of the K types has 256 weights in groups of 16 or 32, whose scales (and minima) are
small integers themselves, times `d` (and `dmin`): `w = d*scale*q - dmin*min`. Where a q has more than 4 bits, the upper
ones are in a mask of their own. IQ4 has a table of 16 values in place of evenly spaced ones. The types of 1 to 3 bits
whose codes name vectors of a grid, the ternary ones and the four-bit floats are read with the tables of the `gguf`
package. Layouts after the structs of `ggml-common.h` (ggml project); the order of operations is the reference's, so
that results are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch

from stemma.errors import require

Array = np.ndarray[Any, np.dtype[Any]]

# Types that this file can name. Those in SIZES can be read.
NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
PLAIN = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
CHUNK = 1 << 18  # weights made at a time, so that what lies between stays in the cache


def _bits(packed: Array, width: int, bits: int) -> Array:
    """Unsigned integers of `bits` bits from bytes: each run of `width` bytes gives first its lowest bits, then the next
    ones, and so on. n B -> n (B * 8 / bits)."""
    runs = packed.reshape(len(packed), -1, width)
    out = np.empty((len(packed), runs.shape[1], 8 // bits, width), np.uint8)
    for k in range(8 // bits):
        out[:, :, k] = (runs >> np.uint8(k * bits)) & np.uint8((1 << bits) - 1)
    return out.reshape(len(packed), -1)


def _f32(values: Array) -> Array:
    return values.astype(np.float32)


def _five(block: Array) -> Array:
    """q of the five-bit types: four bits in `qs`, the fifth of weight j as bit j of `qh`."""
    return _bits(block["qs"], 16, 4) | (np.unpackbits(block["qh"], axis=-1, bitorder="little") << np.uint8(4))


def _q4_0(block: Array) -> Array:
    return _f32(block["d"])[:, None] * (_f32(_bits(block["qs"], 16, 4)) - 8)


def _q4_1(block: Array) -> Array:
    return _f32(block["d"])[:, None] * _f32(_bits(block["qs"], 16, 4)) + _f32(block["m"])[:, None]


def _q5_0(block: Array) -> Array:
    return _f32(block["d"])[:, None] * (_f32(_five(block)) - 16)


def _q5_1(block: Array) -> Array:
    return _f32(block["d"])[:, None] * _f32(_five(block)) + _f32(block["m"])[:, None]


def _q8_0(block: Array) -> Array:
    return _f32(block["qs"]) * _f32(block["d"])[:, None]


def _groups(q: Array, scale: Array, least: Array | None = None) -> Array:
    """`scale*q - least`, scale and least once a group: n 256, n G -> n 256."""
    n, groups = scale.shape
    out = scale[..., None] * _f32(q).reshape(n, groups, -1)
    if least is not None:
        out -= least[..., None]
    return out.reshape(n, -1)


def _q2_k(block: Array) -> Array:
    scale = _f32(block["d"])[:, None] * _f32(block["scales"] & 15)
    least = _f32(block["dmin"])[:, None] * _f32(block["scales"] >> 4)
    return _groups(_bits(block["qs"], 32, 2), scale, least)


def _q3_k(block: Array) -> Array:
    packed = block["scales"]  # 16 of six bits: the low four of each in 8 bytes, the high two in 4
    six = _bits(packed[:, :8], 8, 4) | (_bits(packed[:, 8:], 4, 2) << np.uint8(4))
    scale = _f32(block["d"])[:, None] * (_f32(six) - 32)
    low, high = _bits(block["qs"], 32, 2), _bits(block["hmask"], 32, 1)  # a high bit that is set means 4 more
    return _groups(_f32(low) + 4 * _f32(high) - 4, scale)


def _scales_and_minima(block: Array) -> tuple[Array, Array]:
    """Of Q4_K and Q5_K, eight each of six bits in 12 bytes: four scales, four minima, and the low four bits of the
    other four of both, whose high two bits top the first eight bytes."""
    a, b, c = np.split(block["scales"], 3, axis=-1)
    scales = np.concatenate([a & 63, (c & 15) | (a >> 6 << 4)], -1)
    minima = np.concatenate([b & 63, (c >> 4) | (b >> 6 << 4)], -1)
    return _f32(block["d"])[:, None] * _f32(scales), _f32(block["dmin"])[:, None] * _f32(minima)


def _q4_k(block: Array) -> Array:
    return _groups(_bits(block["qs"], 32, 4), *_scales_and_minima(block))


def _q5_k(block: Array) -> Array:
    q = _bits(block["qs"], 32, 4) | (_bits(block["qh"], 32, 1) << np.uint8(4))
    return _groups(q, *_scales_and_minima(block))


def _q6_k(block: Array) -> Array:
    q = _bits(block["ql"], 64, 4) | (_bits(block["qh"], 32, 2) << np.uint8(4))
    return _groups(_f32(q) - 32, _f32(block["d"])[:, None] * _f32(block["scales"]))


IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def _iq4_nl(block: Array) -> Array:
    return _f32(block["d"])[:, None] * IQ4[_bits(block["qs"], 16, 4)]


def _iq4_xs(block: Array) -> Array:
    six = _bits(block["scales"], 1, 4) | (_bits(block["high"], 1, 2) << np.uint8(4))  # eight, low and high bits
    return _groups(IQ4[_bits(block["qs"], 16, 4)], _f32(block["d"])[:, None] * (_f32(six) - 32))


def _struct(*fields: tuple[str, str, int]) -> np.dtype[Any]:
    """A packed struct of (name, type, count); a count of 0 is a single value."""
    return np.dtype([(n, t, (c,)) if c else (n, t) for n, t, c in fields])


D, M, DMIN = ("d", "<f2", 0), ("m", "<f2", 0), ("dmin", "<f2", 0)
# by type: weights in a block, its struct, its reader
QUANTISED: dict[int, tuple[int, np.dtype[Any], Callable[[Array], Array]]] = {
    2: (32, _struct(D, ("qs", "u1", 16)), _q4_0),
    3: (32, _struct(D, M, ("qs", "u1", 16)), _q4_1),
    6: (32, _struct(D, ("qh", "u1", 4), ("qs", "u1", 16)), _q5_0),
    7: (32, _struct(D, M, ("qh", "u1", 4), ("qs", "u1", 16)), _q5_1),
    8: (32, _struct(D, ("qs", "i1", 32)), _q8_0),
    10: (256, _struct(("scales", "u1", 16), ("qs", "u1", 64), D, DMIN), _q2_k),
    11: (256, _struct(("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), D), _q3_k),
    12: (256, _struct(D, DMIN, ("scales", "u1", 12), ("qs", "u1", 128)), _q4_k),
    13: (256, _struct(D, DMIN, ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)), _q5_k),
    14: (256, _struct(("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), D), _q6_k),
    20: (32, _struct(D, ("qs", "u1", 16)), _iq4_nl),
    23: (256, _struct(D, ("high", "u1", 2), ("scales", "u1", 4), ("qs", "u1", 128)), _iq4_xs),
}
# by type: weights in a block, bytes of a block
BY_LIBRARY = {
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 21: (256, 110), 22: (256, 82), 29: (256, 56),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36),
}  # fmt: skip
# by type: weights in a block, bytes of a block
SIZES = {t: (1, kind.itemsize) for t, kind in PLAIN.items()} | {
    t: (weights, struct.itemsize) for t, (weights, struct, _) in QUANTISED.items()
}
SIZES |= BY_LIBRARY


def library(kinds: Iterable[int]) -> ModuleType:
    """The `gguf` package, for tensors of these types. Raises ResourceError, naming them, where it is not installed."""
    names = ", ".join(sorted(NAMES[kind] for kind in kinds))
    require("gguf", f"reading GGUF tensors of type {names}", "'stemma-lm[gguf]'")
    import gguf

    return gguf


def dequantise(raw: Array, kind: int) -> Array:
    """The float32 weights in the bytes `raw` (whole blocks) of the quantised type number `kind`, in one row."""
    weights, size = SIZES[kind]
    read: Callable[[Array], Array]
    if kind in BY_LIBRARY:
        package = library([kind])
        read = partial(package.quants.dequantize, qtype=package.GGMLQuantizationType(kind))
        blocks = raw.reshape(-1, size)
    else:
        _, struct, read = QUANTISED[kind]
        blocks = raw.view(struct)
    out = np.empty((len(blocks), weights), np.float32)
    step = CHUNK // weights
    with np.errstate(invalid="ignore", over="ignore"):  # scales that are not finite give weights that are not
        for at in range(0, len(blocks), step):
            out[at : at + step] = read(blocks[at : at + step])
    return out.reshape(-1)
