"""The matrices of a model's modules, in the kinds that products.c and its neighbours multiply with."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from stemma.executor.assemble import NotLowered, Tape, number, struct
from stemma.nn.mixed import Linear
from stemma.quantize import native, packing
from stemma.rewrites.lora import LoRALinear
from stemma.rewrites.nf4 import NF4Linear
from stemma.rewrites.weight_only import Stored


def matrix_of(tape: Tape, module: nn.Module | Tensor) -> tuple[Any, Any]:
    """The matrix and the bias of a module; of a tensor or an embedding, its rows. Raises NotLowered for what has no
    kind."""
    if isinstance(module, Tensor):
        return tape.matrix(module), tape.vector(None)
    if isinstance(module, Stored):
        return stored(tape, module), tape.vector(module.bias)
    if isinstance(module, NF4Linear):
        return four_bits(tape, module), tape.vector(module.bias)
    weight = getattr(module, "weight", None)
    if type(module) is nn.Embedding:
        return tape.matrix(module.weight), tape.vector(None)
    if type(module) in (Linear, nn.Linear) and isinstance(weight, Tensor):
        return tape.matrix(weight), tape.vector(module.bias)  # type: ignore[arg-type]
    raise NotLowered(f"the tape has no kind of product for {type(module).__name__}")


def stored(tape: Tape, module: Stored) -> Any:
    """The matrix of a module that stores it in fewer bits, read where it lies."""
    codes = tape.plain(module.codes)
    out, width = module.shapes["weight"]
    shape = {"out": out, "in": width, "data": codes.data_ptr()}
    if module.packed:
        return struct("matrix", kind=number(module.kind), **shape, stride=codes.shape[1] // packing.ROWS)
    if module.scaled:
        scale = tape.plain(module.scale.float().contiguous())
        return struct("matrix", kind=number("INT8"), **shape, stride=width, scales=scale.data_ptr())
    if module.kind in native.BLOCKS:
        place = native.BLOCKS.index(module.kind)
        return struct("matrix", kind=number("BLOCKS"), **shape, stride=codes.shape[1], extra=place)
    if module.kind:
        raise NotLowered(f"the tape has no kind of product for blocks of {module.kind}")
    return tape.matrix(codes)


def four_bits(tape: Tape, module: NF4Linear) -> Any:
    """The matrix of a module that keeps it in NF4."""
    found = module.quantized.matrix
    out, width = module.shapes["weight"]
    if width % found.block:
        raise NotLowered("the rows of a matrix in NF4 are no whole blocks")
    for part in (found.codes, found.absmax, found.absmax2, found.offset, found.levels, found.dynamic):
        if part is not None:
            tape.plain(part)
    read = found.struct()
    tape.kept.append(read)
    shape = {"out": out, "in": width, "data": found.codes.data_ptr()}
    return struct("matrix", kind=number("NF4"), **shape, extra=ctypes.addressof(read))


def adapters_of(module: nn.Module) -> tuple[nn.Module, list[LoRALinear]]:
    """A module without the low-rank adapters around it, and those of them that take part."""
    found: list[LoRALinear] = []
    while type(module) is LoRALinear:
        if module.shares is not None:
            raise NotLowered("rows of a batch have adapters of their own")
        if module.strength != 0:
            found.append(module)
        if module.length is not None:
            raise NotLowered("the tape has no instruction for the lengths of DoRA")
        module = module.base
    return module, found


def width_of(module: nn.Module) -> int:
    """How many numbers a matrix gives."""
    return int(module.matrix()[0] if isinstance(module, LoRALinear) else module.out_features)  # type: ignore[arg-type]


def marks(model: nn.Module) -> list[Any]:
    """Changes when what is read of a rewritten model lies elsewhere, or adapters take part otherwise."""
    found: list[Any] = []
    for module in model.modules():
        if isinstance(module, Stored | NF4Linear):
            found += [b.data_ptr() for b in module.buffers(recurse=False) if isinstance(b, Tensor)]
        elif isinstance(module, LoRALinear):
            found.append((module.strength, module.spec.scale, module.shares is None))
    return found


def dtype_of(table: nn.Module) -> torch.dtype:
    """What a table of embeddings computes in."""
    return table.dtype if isinstance(table, Stored) else table.weight.dtype  # type: ignore[return-value]
