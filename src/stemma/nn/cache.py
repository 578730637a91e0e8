"""Keys and values of what was read, *with their positions*: masks see positions, so nothing else is special.

A row of the batch may stand at any length. In a layer with a sliding window the buffer is a ring of `window`
slots, position p in slot p mod window; elsewhere position p is in slot p.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stemma.nn import parts
from stemma.nn.attention import Rotate
from stemma.nn.masks import AttnMask, MaskInputs, build_mask, layer_mask

Kind = tuple[int, parts.LayerMask]  # slots, mask
EMPTY = 2**40  # position of a slot that holds nothing: after every query, so that no causal mask sees it


class Cache:
    """State of decoding for one decoder: rings or buffers of each layer, and the keys of the encoder's output.

    `rows` sequences of at most `capacity` tokens. `even=True` promises that all rows always have the same length
    and no padding: then slots are slices, and a single token needs no mask. `mask`: of the decoding, where it is not
    the arch's.
    """

    def __init__(
        self,
        arch: parts.Arch,
        layers: int,
        rows: int,
        capacity: int,
        even: bool,
        mask: parts.Mask | None = None,
    ) -> None:
        masks = [layer_mask(mask or arch.mask, i) for i in range(layers)]
        sizes = [min(m.window, capacity) if isinstance(m, parts.Sliding) else capacity for m in masks]
        self.kinds = list(zip(sizes, masks, strict=True))  # layers of one kind share their plan
        self.rows, self.even = rows, even
        self.length = 0  # tokens read so far (with padding, where rows differ)
        self.prefix: Tensor | None = None  # B 1: tokens at the beginning that see each other whole
        self.chosen: parts.LayerMask | None = None  # the mask that stands for an open one
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.held: dict[Kind, Tensor] = {}  # B S+1: the position that each slot holds
        self.plans: dict[Kind, Plan] = {}
        self.cross: list[tuple[Tensor, Tensor] | None] = [None] * layers  # keys and values of the encoder's output
        self.memory_real: Tensor | None = None  # B S: which of the encoder's tokens are no padding

    def begin(self, pos: Tensor, real: Tensor | None) -> None:
        """Plan one step: tokens at the places `pos` (1|B T) of their rows, of which those where `real` (B T) is False
        are padding.

        An even cache goes on from where it stands and ignores both.
        """
        self.plans = {kind: Plan(self, kind, pos, real) for kind in dict.fromkeys(self.kinds)}
        self.length += pos.shape[-1]

    def plan(self, layer: int) -> Plan:
        """The step's plan for one layer."""
        return self.plans[self.kinds[layer]]

    def write(self, layer: int, k: Tensor, v: Tensor, turn: Rotate | None) -> tuple[Tensor, Tensor]:
        """Keep new keys and values (B H T D) of `layer`; returns all that its plan's mask speaks of, keys turned."""
        if turn is not None:
            k = turn(k)
        if self.keys[layer] is None:
            shape = (self.rows, k.shape[1], self.kinds[layer][0] + 1, k.shape[3])  # one slot more, for padding
            self.keys[layer], self.values[layer] = k.new_zeros(shape), v.new_zeros(shape)
        keys, values = self.keys[layer], self.values[layer]
        assert keys is not None and values is not None
        return self.plan(layer).write(keys, k), self.plan(layer).write(values, v)

    def forget(self, pos: Tensor) -> None:
        """Give up the newest token of every row, which stood at `pos` (B 1): its slots are free again."""
        for (size, _), held in self.held.items():
            held.scatter_(1, pos % size, EMPTY)
        self.length -= 1

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was (beam search)."""

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.index_select(0, rows)

        self.keys, self.values = [pick(k) for k in self.keys], [pick(v) for v in self.values]
        self.cross = [
            None if c is None else (c[0].index_select(0, rows), c[1].index_select(0, rows)) for c in self.cross
        ]
        self.memory_real, self.prefix = pick(self.memory_real), pick(self.prefix)
        self.held = {kind: held.index_select(0, rows) for kind, held in self.held.items()}
        self.rows = len(rows)


class Plan:
    """One step of one kind of layer: where new keys go, which are read, what each query may see."""

    def __init__(self, cache: Cache, kind: Kind, pos: Tensor, real: Tensor | None) -> None:
        self.size, mask = kind
        size, length, start = self.size, pos.shape[-1], cache.length
        end = start + length
        if kind not in cache.held:
            cache.held[kind] = torch.full((cache.rows, size + 1), EMPTY, device=pos.device)
        held = cache.held[kind]
        self.run: slice | None = None  # where the new keys stand side by side, and all before them
        self.chunk = False  # the new keys are read beside the ring, before it turns
        if cache.even and (end <= size or length == 1):
            self.run = slice(start % size, start % size + length)
            qpos = torch.arange(start, end, device=pos.device)
            held[:, self.run] = qpos
            self.read = slice(0, min(end, size))
            self.qpos, self.kpos = qpos[None], held[:1, self.read]
            newest = length == 1  # one token sees all that is kept
            facts = MaskInputs(self.qpos, self.kpos, is_arange=start == 0, prefix=cache.prefix, chosen=cache.chosen)
            self.attn_mask = AttnMask() if newest else build_mask(mask, facts)
            return
        self.qpos = pos = pos.expand(cache.rows, -1)
        keep = torch.ones_like(pos, dtype=torch.bool) if real is None else real
        kept = keep & (pos > torch.where(keep, pos, -1).amax(1, keepdim=True) - size)  # of a long text, its end
        self.at = torch.where(kept, pos % size, size)  # B T; the rest goes to the spare slot
        # what a ring overwrites is still to be read; where there is no window, a slot is its position for good
        self.chunk = isinstance(mask, parts.Sliding) and length > 1 and (start > 0 or length > size)
        cache.held[kind] = held.scatter(1, self.at, torch.where(kept, pos, EMPTY))
        self.kpos = (
            torch.cat([held[:, :size], torch.where(keep, pos, EMPTY)], 1) if self.chunk else cache.held[kind][:, :size]
        )
        facts = MaskInputs(pos, self.kpos, is_arange=False, prefix=cache.prefix, chosen=cache.chosen)
        seen = build_mask(mask, facts).mask
        assert seen is not None
        if real is not None:  # padding sees the first slot, so that its row is defined
            seen[:, 0, :, 0] |= ~real
        self.attn_mask = AttnMask(mask=seen)

    def write(self, buffer: Tensor, new: Tensor) -> Tensor:
        """Put `new` (B H T D) into the buffer; returns the keys or values at `kpos`."""
        if self.run is not None:
            buffer[:, :, self.run] = new
            return buffer[:, :, self.read]
        before = buffer[:, :, : self.size].clone() if self.chunk else None
        buffer.scatter_(2, self.at[:, None, :, None].expand_as(new), new)
        return buffer[:, :, : self.size] if before is None else torch.cat([before, new], 2)
