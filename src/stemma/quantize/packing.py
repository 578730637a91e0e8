"""Matrices in the blocks of GGUF files, packed for processors with wide registers: the same bytes in another order.

The blocks of one place in 16 rows come together, and of each field of the block first the first unit of all 16 rows,
then the second, and so on. Nothing is rounded: `rows` gives the file's bytes again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 16  # rows that are packed together


class Field(NamedTuple):
    """Bytes of a block that are packed alike: where they begin, how many they are, and how many stay together."""

    start: int
    bytes: int
    unit: int
    flip: bool = False  # of signed codes the sign bit is flipped, which makes them 128 higher


class Layout(NamedTuple):
    columns: int  # weights of a block
    bytes: int  # of a block
    fields: tuple[Field, ...]  # in the order in which they are packed


LAYOUTS = {  # the blocks' structs are in `stemma.formats.gguf.quants`
    "Q8_0": Layout(32, 34, (Field(2, 32, 4, flip=True), Field(0, 2, 2))),
    "Q4_0": Layout(32, 18, (Field(2, 16, 4), Field(0, 2, 2))),
    "Q4_1": Layout(32, 20, (Field(4, 16, 4), Field(0, 2, 2), Field(2, 2, 2))),
    "Q4_K": Layout(256, 144, (Field(0, 2, 2), Field(2, 2, 2), Field(4, 12, 1), Field(16, 128, 4))),
    "Q6_K": Layout(256, 210, (Field(0, 128, 4), Field(128, 64, 4), Field(192, 16, 1), Field(208, 2, 2))),
}
UNITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def packed(kind: str, data: Tensor) -> Tensor:
    """Rows of blocks (N bytes) packed: N/16, rounded up, times 16 * bytes. Rows that are missing are zero."""
    layout = LAYOUTS[kind]
    blocks, width = -(-len(data) // ROWS), data.shape[1]
    full = data
    if len(data) % ROWS:
        full = data.new_zeros(blocks * ROWS, width)
        full[: len(data)] = data
    each = full.view(blocks, ROWS, width // layout.bytes, layout.bytes)
    out = data.new_empty(blocks, width // layout.bytes, ROWS * layout.bytes)
    at = 0
    for field in layout.fields:
        part = each[..., field.start : field.start + field.bytes]
        part = (part ^ 128 if field.flip else part.contiguous()).view(UNITS[field.unit])
        size = ROWS * field.bytes
        out[..., at : at + size] = part.permute(0, 2, 3, 1).contiguous().flatten(2).view(torch.uint8)
        at += size
    return out.view(blocks, ROWS * width)


def rows(kind: str, data: Tensor, count: int, ids: Tensor | None = None) -> Tensor:
    """The `count` rows of blocks that were packed (N bytes), or those of them that `ids` (N) names."""
    layout = LAYOUTS[kind]
    each = data.unflatten(1, (-1, ROWS * layout.bytes))
    if ids is not None:
        each, lane = each[ids // ROWS], (ids % ROWS)[:, None]
    out = data.new_empty(*each.shape[:1], 1 if ids is not None else ROWS, each.shape[1], layout.bytes)
    at = 0
    for field in layout.fields:
        size = ROWS * field.bytes
        part = each[..., at : at + size].contiguous().view(UNITS[field.unit]).unflatten(2, (-1, ROWS))  # N P U 16
        part = part.permute(0, 3, 1, 2)
        if ids is not None:
            part = part[torch.arange(len(ids), device=ids.device)[:, None], lane]
        part = part.clone(memory_format=torch.contiguous_format).view(torch.uint8)  # one unit wide, its stride is free
        out[..., field.start : field.start + field.bytes] = part ^ 128 if field.flip else part
        at += size
    return out.flatten(2).flatten(0, 1)[: count if ids is None else len(ids)]


def shape(kind: str, count: int, width: int) -> tuple[int, int]:
    """The shape of so many rows of `width` weights, packed."""
    layout = LAYOUTS[kind]
    return -(-count // ROWS), width // layout.columns * layout.bytes * ROWS
