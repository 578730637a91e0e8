"""The executor's kinds of products, compiled and called on their own."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import stemma.executor

HERE = Path(stemma.executor.__path__[0])
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-march=native", "-fopenmp-simd")
KINDS = ("F32", "BF16", "F16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "INT8", "NF4", "BLOCKS")  # `kinds` of product.h
INT, POINTER = ctypes.c_int64, ctypes.c_void_p


class Matrix(ctypes.Structure):
    _fields_ = (
        *((name, INT) for name in ("kind", "out", "in")),
        ("data", POINTER), ("stride", INT), ("scales", POINTER), ("extra", POINTER),
    )  # fmt: skip


class Kind(ctypes.Structure):
    _fields_ = (
        ("tile", INT),
        ("prepared", ctypes.CFUNCTYPE(INT, INT)),
        ("prepare", ctypes.CFUNCTYPE(None, POINTER, INT, POINTER)),
        ("product", ctypes.CFUNCTYPE(None, POINTER, POINTER, INT, INT, INT, POINTER, INT)),
        ("row", ctypes.CFUNCTYPE(None, POINTER, INT, POINTER)),
    )


def compiled(folder: Path, *flags: str) -> ctypes.CDLL:
    """The kinds, compiled with further flags."""
    out = folder / f"kinds{''.join(flags)}.so"
    files = [str(HERE / name) for name in ("products.c", "panels.c", "quant.c", "stored.c")]
    subprocess.run(["cc", *FLAGS, *flags, *files, "-o", str(out)], check=True, capture_output=True)
    return ctypes.CDLL(str(out))


def kind_of(library: ctypes.CDLL, name: str) -> Kind:
    return (ctypes.POINTER(Kind) * len(KINDS)).in_dll(library, "product_kinds")[KINDS.index(name)].contents


def matrix(
    name: str, data: Tensor, out: int, width: int, stride: int, scales: Tensor | None = None, extra: Any = 0
) -> Matrix:
    return Matrix(
        KINDS.index(name), out, width, data.data_ptr(), stride, 0 if scales is None else scales.data_ptr(), extra
    )


def times(library: ctypes.CDLL, w: Matrix, x: Tensor, ranges: int = 1) -> Tensor:
    """`x w^T`, the rows of `w` in so many ranges: M D -> M E."""
    kind, count, width = kind_of(library, KINDS[w.kind]), *x.shape
    given, where = x, x.data_ptr()
    if kind.prepared:
        size = kind.prepared(width)
        given = torch.zeros(count * size + 64, dtype=torch.uint8)
        where = -(-given.data_ptr() // 64) * 64
        for m in range(count):
            kind.prepare(x[m].data_ptr(), width, where + m * size)
    y, tiles = torch.full((count, w.out), float("nan")), -(-w.out // kind.tile)
    for n in range(ranges):
        first, last = (min(w.out, tiles * i // ranges * kind.tile) for i in (n, n + 1))
        kind.product(ctypes.addressof(w), where, count, first, last, y.data_ptr(), w.out)
    return y


def row(library: ctypes.CDLL, w: Matrix, number: int) -> Tensor:
    to = torch.empty(getattr(w, "in"))
    kind_of(library, KINDS[w.kind]).row(ctypes.addressof(w), number, to.data_ptr())
    return to
