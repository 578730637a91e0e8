"""Products of packed matrices with the vectors of a prompt, which PyTorch reads module after module."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stemma.executor.assemble import number, struct
from stemma.executor.native import library, wanted
from stemma.executor.onednn import WideProducts, better
from stemma.quantize import native, packing
from stemma.rewrites import frozen
from stemma.rewrites.weight_only import Stored

FEW = 16  # vectors up to which plain C beats PyTorch with the weights made whole


@contextlib.contextmanager
def fast_linear() -> Iterator[None]:
    """Within this, linear layers run on the faster kernels for this CPU, outside of autograd: quantised weights
    multiply with activations that are rounded to int8, as in a step of the executor (where there is a C compiler), and
    fp32 weights by oneDNN where it beats MKL (`onednn`). A row of the result does not depend on the number of rows."""
    before = frozen.PRODUCT.set(product if wanted() else None)
    try:
        with WideProducts() if wanted() and better() else contextlib.nullcontext():
            yield
    finally:
        frozen.PRODUCT.reset(before)


def product(module: Any, x: Tensor) -> Tensor | None:
    """`x w^T` for the matrix of a module, ... D -> ... E in the dtype of `x`; None where it is not for here."""
    if not isinstance(module, Stored) or not module.packed:
        return None
    rows = x.numel() // max(1, x.shape[-1])
    found = library() if native.few(x, max(rows, 1)) and native.readable(module.codes, x) else None
    if found is None or (rows > FEW and found.code.packed_tile() == 1):
        return None
    wide = x.reshape(-1, x.shape[-1]).float().contiguous()
    out, width = module.shapes["weight"]
    y, codes = torch.empty(len(wide), out), module.codes
    stride = codes.shape[1] // packing.ROWS
    w = struct("matrix", kind=number(module.kind), out=out, data=codes.data_ptr(), stride=stride, **{"in": width})
    fields = {"count": rows, "threads": torch.get_num_threads(), "x": wide.data_ptr(), "y": y.data_ptr()}
    asked = struct("many", w=w, **fields)
    room = torch.empty(found.code.many_size(ctypes.byref(asked)), dtype=torch.uint8)
    asked.workspace = room.data_ptr()
    found.code.many_run(ctypes.byref(asked))
    return y.view(*x.shape[:-1], out).to(x.dtype)
