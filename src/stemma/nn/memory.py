"""Reading in windows, with a memory of earlier ones (LongLLaMA).

A memory layer keeps keys before they are rotated: an unrotated key is a key at position 0, whatever its window.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.attention import Rotate
from stemma.nn.cache import Cache
from stemma.nn.masks import AttnMask, layer_mask

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class MemoryCache(Cache):
    """The keys and values of one window, and in memory layers those of all windows before it.

    All rows have one length and no padding, so rows of other texts cannot join (`admit` raises UsageError). Positions
    count from 0 in every window."""

    def __init__(self, arch: parts.Arch, dims: parts.Dims, rows: int) -> None:
        assert isinstance(arch.mask, parts.Memory)
        super().__init__(arch, dims.layers, rows, max(dims.context, arch.mask.last), even=True)
        self.dtype = DTYPES[arch.mask.dtype]
        self.window = dims.context
        self.layers = [i for i in range(dims.layers) if isinstance(layer_mask(arch.mask, i), parts.Recall)]
        self.unrotated: dict[int, list[Tensor]] = {i: [] for i in self.layers}
        self.memory: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def remembered(self) -> int:
        """Tokens in memory."""
        return next((k.shape[2] for k, _ in self.memory.values()), 0)

    def roll(self) -> None:
        """End the window: its keys and values in memory layers become memory, all others are dropped."""
        for i in self.layers:
            values = self.values[i]
            assert values is not None
            new = torch.cat(self.unrotated[i], 2), values[:, :, : self.length]
            kept = self.memory.get(i)
            pairs = zip(kept, new, strict=True) if kept is not None else [(None, x) for x in new]
            k, v = (y.to(self.dtype) if x is None else torch.cat([x, y.to(self.dtype)], 2) for x, y in pairs)
            self.memory[i] = k, v
            self.unrotated[i] = []
        self.keys, self.values = [None] * len(self.keys), [None] * len(self.values)
        self.held, self.length = {}, 0

    def begin(self, pos: Tensor, real: Tensor | None) -> None:
        super().begin(pos, real)
        if self.remembered:
            for mask, plan in self.plans.items():
                if isinstance(mask, parts.Recall):
                    plan.attn_mask = self.with_memory(plan.attn_mask, pos.shape[-1], pos.device)

    def with_memory(self, seen: AttnMask, length: int, device: torch.device) -> AttnMask:
        """All of the memory, and behind it the visible part of the window."""
        mask = seen.mask
        if seen.causal:
            mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
        if mask is None:
            return seen
        return AttnMask(mask=torch.nn.functional.pad(mask, (self.remembered, 0), value=True))

    def write(self, layer: int, k: Tensor, v: Tensor, rotate: Rotate | None) -> tuple[Tensor, Tensor]:
        if layer in self.unrotated:
            self.unrotated[layer].append(k)
        keys, values = super().write(layer, k, v, rotate)
        if layer not in self.memory:
            return keys, values
        old_keys, old_values = self.memory[layer]
        return torch.cat([old_keys.to(k.dtype), keys], 2), torch.cat([old_values.to(v.dtype), values], 2)

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.unrotated = {i: [k.index_select(0, rows) for k in keys] for i, keys in self.unrotated.items()}
        self.memory = {i: (k.index_select(0, rows), v.index_select(0, rows)) for i, (k, v) in self.memory.items()}

    def admit(self, other: Cache) -> None:
        raise UsageError("rows with a memory cannot join a batch: their windows end at different tokens")


def in_windows(
    read: Callable[[Tensor, MemoryCache], Tensor], ids: Tensor, arch: parts.Arch, dims: parts.Dims
) -> tuple[Tensor, MemoryCache]:
    """Read texts (B T): all but the mask's `last` tokens in windows of `dims.context`, then the last ones.
    `read(ids, cache)` gives hidden states. Returns those of all tokens (B T D), and the cache after them."""
    assert isinstance(arch.mask, parts.Memory)
    cache = MemoryCache(arch, dims, ids.shape[0])
    early = max(ids.shape[1] - arch.mask.last, 0)
    hidden = []
    for window in ids[:, :early].split(dims.context, 1) if early else ():
        hidden.append(read(window, cache))
        cache.roll()
    hidden.append(read(ids[:, early:], cache))
    return torch.cat(hidden, 1), cache
