"""Keys and values of what was read, *with their positions*: masks see positions, so nothing else is special.

A row of the batch may have any length. In a layer with a sliding window the buffer is a ring of `window` slots,
position p in slot p mod window; elsewhere position p is in slot p. So rows of one cache may join another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.attention import Rotate
from stemma.nn.masks import AttnMask, MaskInputs, build_mask, layer_mask

EMPTY = 2**40  # position of an empty slot: after every query, so that no causal mask sees it
SPARE = 64  # slots beyond what is held that `admit` leaves in the buffers of a cache that was much longer


class Layout(NamedTuple):
    """Where the keys and values of one layer lie: slot s of row b in page `pages[b, s // page_slots]`, the token at
    place p of its row in slot `p % slots`. Strides are numbers, from page to page and from head to head in a page; a
    slot's numbers stand side by side, and so do the slots of a head in a page."""

    keys: Tensor
    values: Tensor
    page_stride: int
    head_stride: int
    page_slots: int
    slots: int
    pages: Tensor  # B P, int64


class Cache:
    """State of decoding for one stack: rings or buffers of each layer, and the keys of the encoder's output.

    `rows` sequences; buffers begin with place for `capacity` tokens a row and grow when a row becomes longer.
    `even=True` promises that all rows always have the same length and no padding: then slots are slices, and a single
    token needs no mask. `mask`: of the decoding, where it is not the arch's.
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
        self.masks = [layer_mask(mask or arch.mask, i) for i in range(layers)]  # layers of one mask share their plan
        self.rows, self.capacity, self.even = rows, capacity, even
        self.length = 0  # tokens of the longest row, or more where rows differ
        self.front = 0  # of them, what stands in front of every text
        self.prefix: Tensor | None = None  # B 1: tokens at the beginning that see each other whole
        self.chosen: parts.LayerMask | None = None  # the mask that stands for an open one
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self._held: dict[parts.LayerMask, Tensor] = {}
        self._newest: tuple[Sequence[int], int] = (), 0  # steps that `held` does not show yet: first places, how many
        self.plans: dict[parts.LayerMask, CachePlan] = {}
        self.journal: list[dict[parts.LayerMask, CachePlan]] | None = None  # of each step since `mark`, its plans
        self.cross: list[tuple[Tensor, Tensor] | None] = [None] * layers  # keys and values of the encoder's output
        self.encoder_mask: Tensor | None = None  # B S: which of the encoder's tokens are no padding
        self.lease: object = None  # kept alive as long as the buffers, where they are somebody else's

    @property
    def held(self) -> dict[parts.LayerMask, Tensor]:
        """B S+1: the position that each slot holds."""
        (first, steps), self._newest = self._newest, ((), 0)
        if steps:
            for mask, held in self._held.items():
                size = self.slots(mask)
                new = torch.arange(max(0, steps - size), steps, device=held.device)
                at = torch.tensor(first, device=held.device)[:, None] + new
                self._held[mask] = held.scatter(1, at % size, at)
        return self._held

    @held.setter
    def held(self, held: dict[parts.LayerMask, Tensor]) -> None:
        self._held, self._newest = held, ((), 0)

    # ------------------------------------------------------------ reading

    def begin(self, pos: Tensor, real: Tensor | None) -> None:
        """Plan one step: tokens at the places `pos` (1|B T) of their rows; where `real` (B T) is False they are
        padding. An even cache goes on from its length and ignores both."""
        if self.journal is not None and self.ring is not None and pos.shape[-1] > self.ring:
            raise UsageError(f"{pos.shape[-1]} tokens at once cannot be taken back: a window has {self.ring}")
        if self.length + pos.shape[-1] > self.capacity:
            self.make_room(pos.shape[-1])
        self.plans = {mask: CachePlan(self, mask, pos, real) for mask in dict.fromkeys(self.masks)}
        if self.journal is not None:
            self.journal.append(self.plans)
        self.length += pos.shape[-1]

    def advance(self, order: Sequence[int]) -> None:
        """Note one token a row, at the places `order` (B) of their rows, whose keys and values somebody else writes
        into the buffers (`layout`)."""
        if self.length + 1 > self.capacity:
            self.make_room(1)
        first, steps = self._newest
        self._newest = first or order, steps + 1
        self.length += 1

    def retract(self) -> None:
        """Take back the last `advance`."""
        first, steps = self._newest
        self._newest = first if steps > 1 else (), steps - 1
        self.length -= 1

    def take_in(self, counts: Sequence[int]) -> list[int]:
        """Note `counts` more tokens of each row, whose keys and values somebody else writes. Returns the places of the
        first ones."""
        starts = [int(n) for n in self.ends()]
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        if max(ends) > self.capacity:
            self.resize(max(max(ends), self.capacity + self.capacity // 2))
        for mask in dict.fromkeys(self.masks):
            size = self.slots(mask)
            held = self.held.setdefault(mask, torch.full((self.rows, size + 1), EMPTY))
            for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
                at = torch.arange(max(start, end - size), end)
                held[row, at % size] = at
        self.length = max(ends)
        return starts

    def ends(self) -> Sequence[int]:
        """Tokens of each row."""
        if not self.held or self.even:
            return [self.length] * self.rows
        held = next(iter(self.held.values()))
        found: list[int] = (torch.where(held == EMPTY, -1, held).amax(1) + 1).tolist()
        return found

    def make(self, layer: int, like: Tensor) -> None:
        """Have buffers for keys and values like these (B H T D) of `layer`."""
        if self.keys[layer] is None:
            shape = (
                self.rows,
                like.shape[1],
                self.slots(self.masks[layer]) + 1,
                like.shape[3],
            )  # one more, for padding
            self.keys[layer], self.values[layer] = like.new_zeros(shape), like.new_zeros(shape)

    def layout(self, layer: int, pages: Tensor) -> Layout:
        """Where the keys and values of `layer` lie. `pages`: B 1, the numbers of the rows."""
        k, v = self.keys[layer], self.values[layer]
        assert k is not None and v is not None
        return Layout(k, v, k.stride(0), k.stride(1), k.shape[2], self.slots(self.masks[layer]), pages)

    def tables(self) -> list[Tensor]:
        """The tensors of page numbers in `layout` that change while rows come and go, if there are such."""
        return []

    def plan(self, layer: int) -> CachePlan:
        """The step's plan for one layer."""
        return self.plans[self.masks[layer]]

    def write(self, layer: int, k: Tensor, v: Tensor, rotate: Rotate | None) -> tuple[Tensor, Tensor]:
        """Keep new keys and values (B H T D) of `layer`. Returns the keys (rotated) and values at its plan's `kpos`."""
        if rotate is not None:
            k = rotate(k)
        self.make(layer, k)
        keys, values = self.keys[layer], self.values[layer]
        assert keys is not None and values is not None
        return self.plan(layer).write(keys, k), self.plan(layer).write(values, v)

    def mark(self) -> None:
        """From here on `forget` may cut every row back. Rings keep what they overwrite until then, and read at most as
        many tokens at once as they hold (UsageError)."""
        self.journal = []

    @property
    def ring(self) -> int | None:
        """Tokens that the smallest ring holds, if there is one."""
        return min((mask.window for mask in self.masks if isinstance(mask, parts.Sliding)), default=None)

    def forget(self, lengths: Tensor) -> None:
        """Cut every row back to its first `lengths` (B) tokens. A ring (a layer with a sliding window) goes back to the
        last `mark` at most: what it overwrote before is gone, and only its newest token may be dropped without a mark.
        """
        ends = lengths[:, None] + self.front
        for plans in reversed(self.journal or []):
            for mask, plan in plans.items():
                plan.undo(self.held[mask], ends)
        self.journal = None
        for held in self.held.values():
            held.masked_fill_(held >= ends, EMPTY)
        low, high = (int(n) + self.front for n in lengths.aminmax())
        self.even = self.even and low == high
        self.length = high

    def put(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Begin with keys and values of each layer (H N D) that every row reads."""
        self.begin(torch.arange(pairs[0][0].shape[1], device=pairs[0][0].device)[None], None)
        for layer, (k, v) in enumerate(pairs):
            self.write(layer, k.expand(self.rows, -1, -1, -1), v.expand(self.rows, -1, -1, -1), None)

    # ------------------------------------------------------------ rows that join and leave

    def keep(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was. A row that is not named is released; one may be named twice."""

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.index_select(0, rows)

        self.keys, self.values = [pick(k) for k in self.keys], [pick(v) for v in self.values]
        self.cross = [
            None if c is None else (c[0].index_select(0, rows), c[1].index_select(0, rows)) for c in self.cross
        ]
        self.encoder_mask, self.prefix = pick(self.encoder_mask), pick(self.prefix)
        self.held = {mask: held.index_select(0, rows) for mask, held in self.held.items()}
        self.rows = len(rows)

    def admit(self, other: Cache) -> None:
        """Take the rows of `other`, a cache of the same model, behind the own ones. `other` is of no use afterwards."""
        if not self.rows:
            vars(self).update(vars(other))
            return
        even = self.even and other.even and self.length == other.length
        self.length = max(self.reach(), other.reach())
        capacity = max(self.length + SPARE, other.capacity)
        if self.capacity <= 2 * capacity:  # else long rows have left, and their place is given back
            capacity = max(capacity, self.capacity)
        self.resize(capacity)
        other.resize(capacity)
        self.even = even
        self.keys = [_stacked(a, b) for a, b in zip(self.keys, other.keys, strict=True)]
        self.values = [_stacked(a, b) for a, b in zip(self.values, other.values, strict=True)]
        self.held = {mask: torch.cat([held, other.held[mask]]) for mask, held in self.held.items()}
        self.prefix = _stacked(self.prefix, other.prefix)
        self._admit_cross(other)
        self.rows += other.rows

    def _admit_cross(self, other: Cache) -> None:
        """Texts of the encoder may have other lengths: the shorter ones get padding."""
        if self.cross[0] is None or other.cross[0] is None:
            return
        size, more = self.cross[0][0].shape[2], other.cross[0][0].shape[2]
        longest = max(size, more)
        if size != more or self.encoder_mask is not None or other.encoder_mask is not None:
            device = self.cross[0][0].device
            real = [
                torch.ones(c.rows, n, dtype=torch.bool, device=device) if c.encoder_mask is None else c.encoder_mask
                for c, n in ((self, size), (other, more))
            ]
            self.encoder_mask = torch.cat([F.pad(r, (0, longest - r.shape[1])) for r in real])
        for layer, (own, theirs) in enumerate(zip(self.cross, other.cross, strict=True)):
            assert own is not None and theirs is not None
            k, v = (
                torch.cat([F.pad(a, (0, 0, 0, longest - size)), F.pad(b, (0, 0, 0, longest - more))])
                for a, b in zip(own, theirs, strict=True)
            )
            self.cross[layer] = k, v

    # ------------------------------------------------------------ room

    def slots(self, mask: parts.LayerMask) -> int:
        """Slots a row of a layer's buffer."""
        return min(mask.window, self.capacity) if isinstance(mask, parts.Sliding) else self.capacity

    def reach(self) -> int:
        """Tokens of the longest row."""
        if self.even or not self.held:
            return self.length
        held = next(iter(self.held.values()))
        return int(torch.where(held == EMPTY, -1, held).amax()) + 1

    def make_room(self, new: int) -> None:
        """Let every row become longer by `new` tokens."""
        self.length = self.reach()  # long rows may have left
        if self.length + new > self.capacity:
            self.resize(max(self.length + new, self.capacity + self.capacity // 2))

    def resize(self, capacity: int) -> None:
        """Make the buffers `capacity` long, at least as long as any row. Only a ring of full size has wrapped, and that
        one keeps its size; so every position stays in its slot."""
        before = {mask: self.slots(mask) for mask in self.masks}
        self.capacity = capacity
        for mask, old in before.items():
            new = self.slots(mask)
            if new == old or mask not in self.held:
                continue
            self.held[mask] = _refitted(self.held[mask], 1, min(old, new), new + 1, EMPTY)
            for layer, own in enumerate(self.masks):
                k, v = self.keys[layer], self.values[layer]
                if own == mask and k is not None and v is not None:
                    self.keys[layer], self.values[layer] = (_refitted(x, 2, min(old, new), new + 1, 0) for x in (k, v))


def _refitted(x: Tensor, dim: int, kept: int, size: int, fill: int) -> Tensor:
    """The first `kept` entries of a dimension, then `fill` up to `size`."""
    shape = list(x.shape)
    shape[dim] = size
    out = x.new_full(shape, fill)
    out.narrow(dim, 0, kept).copy_(x.narrow(dim, 0, kept))
    return out


def _stacked(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else torch.cat([a, b])


class CachePlan:
    """One step of the layers with one mask: where new keys go, which are read, what each query may see."""

    def __init__(self, cache: Cache, mask: parts.LayerMask, pos: Tensor, real: Tensor | None) -> None:
        self.size = size = cache.slots(mask)
        self.before: Tensor | None = None  # B T: the positions that new ones replace, where they can be taken back
        self.replaced: list[tuple[Tensor, Tensor]] = []  # buffers, and the keys or values that were replaced
        length, start = pos.shape[-1], cache.length
        end = start + length
        if mask not in cache.held:
            cache.held[mask] = torch.full((cache.rows, size + 1), EMPTY, device=pos.device)
        held = cache.held[mask]
        self.run: slice | None = None  # where the new keys stand side by side, and all before them
        self.chunk = False  # the new keys are read beside the ring, before it turns
        kept_back = cache.journal is not None and isinstance(mask, parts.Sliding)
        if cache.even and (end <= size or (length == 1 and not kept_back)):
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
        if kept_back:
            self.before = held.gather(1, self.at)
        cache.held[mask] = held.scatter(1, self.at, torch.where(kept, pos, EMPTY))
        self.kpos = (
            torch.cat([held[:, :size], torch.where(keep, pos, EMPTY)], 1) if self.chunk else cache.held[mask][:, :size]
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
        if self.before is not None:
            self.replaced.append((buffer, buffer.gather(2, self.at[:, None, :, None].expand_as(new))))
        before = buffer[:, :, : self.size].clone() if self.chunk else None
        buffer.scatter_(2, self.at[:, None, :, None].expand_as(new), new)
        return buffer[:, :, : self.size] if before is None else torch.cat([before, new], 2)

    def undo(self, held: Tensor, ends: Tensor) -> None:
        """Put back what tokens at or after `ends` (B 1) have replaced. `held`: the positions of slots now (B S+1)."""
        if self.before is None:
            return
        dropped = self.qpos >= ends
        spare = held.shape[1] - 1  # where what stays is written to
        held.scatter_(1, torch.where(dropped, self.at, spare), torch.where(dropped, self.before, EMPTY))
        at = torch.where(dropped, self.at, self.size)
        for buffer, old in self.replaced:
            buffer.scatter_(2, at[:, None, :, None].expand_as(old), old)
