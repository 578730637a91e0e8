"""A cache for one traced step: a token a row, and tensors whose shapes do not change from step to step.

Nothing here depends on a number that Python reads of a tensor, so torch traces the step as one graph. The keys and
values are those of a `Cache` or of the pools of a `PagedCache`, and are written in place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stemma.nn import parts
from stemma.nn.attention import Rotate
from stemma.nn.cache import Cache, CachePlan
from stemma.nn.masks import AttnMask, MaskInputs, build_mask


class Buffers(NamedTuple):
    """What a step reads and writes. `held` and `tables` have an entry for each kind of layer, in the masks' order.

    `keys`, `values`: of each layer, `page head slot dim`; without pages of its own, a row is one page
    `held`: R S+1, the position in each slot, written in place; none where rows have pages
    `tables`: R N, the pages of each row; none where rows have no pages
    `cross`: keys and values of the encoder's output, R H S D
    `encoder_mask`: R S, which of the encoder's tokens are no padding
    `prefix`: R 1, as in `Cache`"""

    keys: list[Tensor]
    values: list[Tensor]
    held: list[Tensor]
    tables: list[Tensor]
    cross: list[tuple[Tensor, Tensor]]
    encoder_mask: Tensor | None
    prefix: Tensor | None


class StaticCache(Cache):
    """The cache of one step over `Buffers`, made within the traced function."""

    def __init__(self, arch: parts.Arch, buffers: Buffers, rows: int) -> None:
        super().__init__(arch, len(buffers.keys), rows, 0, even=False)
        self.buffers = buffers
        self.length = 1  # it has begun
        self.keys, self.values = [*buffers.keys], [*buffers.values]
        if buffers.cross:
            self.cross = [*buffers.cross]
        self.encoder_mask, self.prefix = buffers.encoder_mask, buffers.prefix

    def begin(self, pos: Tensor, real: Tensor | None) -> None:
        """Plan the step: one token a row, at the places `pos` (R 1)."""
        kind = PageStep if self.buffers.tables else SlotStep
        self.plans = {mask: kind(self, at, mask, pos) for at, mask in enumerate(dict.fromkeys(self.masks))}

    def write(self, layer: int, k: Tensor, v: Tensor, rotate: Rotate | None) -> tuple[Tensor, Tensor]:
        k = k if rotate is None else rotate(k)
        plan = self.plan(layer)
        return plan.write(self.buffers.keys[layer], k), plan.write(self.buffers.values[layer], v)


class SlotStep(CachePlan):
    """One step of the layers with one mask, where each row has a ring or a buffer."""

    def __init__(self, cache: StaticCache, at: int, mask: parts.LayerMask, pos: Tensor) -> None:
        held = cache.buffers.held[at]
        self.size = held.shape[1] - 1
        self.page, self.slot = torch.arange(len(pos), device=pos.device)[:, None], pos % self.size
        held[self.page, self.slot] = pos
        self.qpos, self.kpos = pos, held[:, : self.size]
        self.attn_mask = _seen(cache, mask, self.qpos, self.kpos)

    def write(self, buffer: Tensor, new: Tensor) -> Tensor:
        buffer[self.page, :, self.slot] = new.transpose(1, 2)
        return buffer[:, :, : self.size]


class PageStep(CachePlan):
    """One step of the layers of one pool. Of a window, the pages are read that it may reach into."""

    def __init__(self, cache: StaticCache, at: int, mask: parts.LayerMask, pos: Tensor) -> None:
        table = cache.buffers.tables[at]
        slots = cache.buffers.keys[0].shape[2]
        self.page, self.slot = table.gather(1, pos // slots), pos % slots
        columns = torch.arange(table.shape[1], device=pos.device)[None]
        if isinstance(mask, parts.Sliding):
            reach = min((mask.window + slots - 2) // slots + 1, table.shape[1])
            columns = (pos - mask.window + 1).clamp(min=0) // slots + columns[:, :reach]
        columns = columns.expand(len(pos), -1)
        self.pages = table.gather(1, columns.clamp(max=table.shape[1] - 1))
        self.qpos = pos
        self.kpos = (columns[:, :, None] * slots + torch.arange(slots, device=pos.device)).flatten(1)
        self.attn_mask = _seen(cache, mask, self.qpos, self.kpos)

    def write(self, buffer: Tensor, new: Tensor) -> Tensor:
        buffer[self.page, :, self.slot] = new.transpose(1, 2).to(buffer.dtype)
        return buffer[self.pages].transpose(1, 2).flatten(2, 3).to(new.dtype)


def _seen(cache: StaticCache, mask: parts.LayerMask, qpos: Tensor, kpos: Tensor) -> AttnMask:
    seen = build_mask(mask, MaskInputs(qpos, kpos, is_arange=False, prefix=cache.prefix))
    assert seen.mask is not None, f"{mask} shows slots that hold nothing"
    return seen
