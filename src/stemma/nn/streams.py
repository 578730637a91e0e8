"""Two streams and a memory: the parts of a network that learns to predict tokens in any order (Yang et al. 2019).

The content stream is an ordinary encoder whose tokens see what a permutation lets them see. The query stream stands at
the places to be predicted and reads the same keys with the same weights, but never its own token. The hidden states of
earlier segments are keys before those of the present one (Dai et al. 2019, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.attention import Attention, Places, Store, Turn
from stemma.nn.cache import Cache
from stemma.nn.distances import RelativeSinusoidal, Terms
from stemma.nn.masks import Visible
from stemma.nn.mlp import dropped
from stemma.nn.stack import Block, Stack, State


@dataclass
class Request:
    """What a call asks of two streams, beside tokens, and what it gets. `segments` (B T); `hidden` (B T T): 1 where
    token i does not see token j; `mapping` (B K T): a 1 at the place of each prediction (a row of zeros asks nothing);
    `past`: the memory, B M D of each layer, of which places with a 1 in `absent` (B M) hold nothing; `backward` (B): 1
    for texts written from their end, whose distances count the other way; `places` (B K): where queries stand, in
    decoding with a cache, whose place may be past the last token. `kept`: the new memory, filled by the call."""

    segments: Tensor | None = None
    hidden: Tensor | None = None
    mapping: Tensor | None = None
    past: Sequence[Tensor] | None = None
    absent: Tensor | None = None
    backward: Tensor | None = None
    places: Tensor | None = None
    kept: list[Tensor] = field(default_factory=list)

    def check(self, rows: int, length: int, layers: int, width: int) -> None:
        """Refuse what does not fit a batch of `rows` texts of `length` tokens."""
        if self.hidden is not None and tuple(self.hidden.shape) != (rows, length, length):
            raise UsageError(f"perm_mask must be {rows} {length} {length}, not {' '.join(map(str, self.hidden.shape))}")
        if self.mapping is not None:
            if self.mapping.ndim != 3 or self.mapping.shape[0] != rows or self.mapping.shape[2] != length:
                raise UsageError(
                    f"target_mapping must be {rows} K {length}, not {' '.join(map(str, self.mapping.shape))}"
                )
            if not torch.compiler.is_compiling() and self.mapping.device.type != "meta":
                ones = (self.mapping == 1) | (self.mapping == 0)
                if not bool(ones.all()) or bool((self.mapping.sum(-1) > 1).any() | (self.mapping.sum(1) > 1).any()):
                    raise UsageError("target_mapping must hold at most one 1 in a row and in a column, and zeros else")
        if self.past is not None:
            if len(self.past) != layers:
                raise UsageError(f"mems must hold one tensor a layer: {layers}, not {len(self.past)}")
            if wrong := [m for m in self.past if m.ndim != 3 or m.shape[0] != rows or m.shape[2] != width]:
                raise UsageError(f"mems must be {rows} M {width}, not {' '.join(map(str, wrong[0].shape))}")


class TwoStreams(Stack):
    """A stack that runs content, and queries beside it where a request has any."""

    def __init__(self, arch: parts.Arch, dims: parts.Dims, layers: int, *, mask: parts.Mask, cross: bool) -> None:
        super().__init__(arch, dims, layers, mask=mask, cross=cross)
        assert arch.streams is not None
        self.streams = arch.streams
        self.query = nn.Parameter(torch.zeros(dims.d_model))  # what every query begins as

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        order: Tensor,
        *,
        plain: bool,
        real: Tensor | None = None,
        documents: Tensor | None = None,
        prefix: Tensor | None = None,
        memory: Tensor | None = None,
        memory_seen: Visible = Visible(),
        cache: Cache | None = None,
        chosen: parts.LayerMask | None = None,
        request: Request | None = None,
    ) -> State:
        """As `Stack.forward`. Returns the query stream (B K D) where the request has queries, else content (B T D)."""
        asked = Request() if request is None else request
        h = self.enter(x, pos)
        asked.check(h.shape[0], h.shape[1], len(self.order), h.shape[2])
        if asked.past is not None and documents is not None:
            raise UsageError("documents of a packed row have no memory: give either mems or documents")
        if cache is None:
            content, queries, g, wave = self.terms(h, pos, plain, real, documents, asked)
        else:
            content, queries, g, wave = self.cached_terms(h, order, real, cache, asked)
        weight = None if asked.mapping is None else asked.mapping.sum(-1, keepdim=True).to(h.dtype)
        for at, (number, _) in enumerate(self.order):
            block: Block = self.blocks[number]  # type: ignore[assignment]
            attention = block.attention
            if cache is None:
                asked.kept.append(self.keep(h, None if asked.past is None else asked.past[at]))
            if wave is not None:
                r = attention.split(attention.relative.r(wave))  # type: ignore[union-attr,operator]
                content, queries = content._replace(r=r), queries._replace(r=r)
            kept: list[tuple[Tensor, Tensor]] = []
            store = _store(attention, cache, at, None if asked.past is None else asked.past[at], kept)
            if g is not None and at == len(self.order) - 1:
                store(*attention.keys(h), None)  # nothing reads the last content
            else:
                h = block(h, Visible(), Places(relative=content), store)
            if g is not None:
                g = _ask(block, g, kept[0], queries, weight)
        hidden = dropped(h if g is None else g, self.rates.final, self.training)
        return State(hidden, h, pos, plain, Visible(), Places(relative=content))

    def keep(self, h: Tensor, past: Tensor | None) -> Tensor:
        """The memory after this segment, of one layer: B M D."""
        new = h.detach()[:, : self.streams.reuse]
        if past is not None:
            new = torch.cat([past.to(new), new], 1)
        return new if self.streams.memory is None else new[:, -self.streams.memory :]

    def start(self, rows: int, number: int) -> Tensor:
        """Queries before the first layer: B K D."""
        return dropped(self.query.expand(rows, number, -1), self.rates.embed, self.training)

    def terms(
        self,
        h: Tensor,
        pos: Tensor,
        plain: bool,
        real: Tensor | None,
        documents: Tensor | None,
        asked: Request,
    ) -> tuple[Terms, Terms, Tensor | None, Tensor | None]:
        """What content and queries are told, the queries, and the waves (1|B R D) of all distances in the row."""
        rows, length = h.shape[:2]
        before = 0 if asked.past is None else asked.past[0].shape[1]
        hidden = _either(
            None if asked.hidden is None else asked.hidden.bool(), None if real is None else ~real[:, None]
        )
        if documents is not None:
            hidden = _either(hidden, documents[:, :, None] != documents[:, None, :])
        own = None  # content sees its own token whatever is hidden
        if hidden is None and asked.absent is not None:
            hidden = torch.zeros(1, 1, 1, dtype=torch.bool, device=h.device)
        if hidden is not None:
            hidden = hidden.expand(rows, length, length)
            own = hidden & ~torch.eye(length, dtype=torch.bool, device=h.device)
            hidden, own = _beside(hidden, before, asked.absent), _beside(own, before, asked.absent)
        different = None
        if asked.segments is not None:
            with_memory = torch.nn.functional.pad(asked.segments, (before, 0))  # the memory is of segment 0
            different = (asked.segments[:, :, None] != with_memory[:, None, :]).to(h.dtype)
        wave = waves = None
        scheme: RelativeSinusoidal = self.position  # type: ignore[assignment]
        if plain:
            line = torch.arange(before + length - 1, -length, -1, device=h.device)[None]
            if asked.backward is not None:
                line = line * (1 - 2 * asked.backward[:, None])
            wave = dropped(scheme.waves(line, h.dtype), self.rates.embed, self.training)
        else:
            if before:
                raise UsageError("position_ids do not go with mems, whose tokens have no positions")
            waves = scheme.waves(pos.expand(rows, -1), h.dtype)
        content = Terms(None, None, None if waves is None else (waves, waves), different, own)
        if asked.mapping is None:
            return content, Terms(), None, wave
        at = asked.mapping.to(torch.int64).argmax(-1)  # B K

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.gather(1, at[..., None].expand(-1, -1, x.shape[2]))

        there = None if waves is None else (pick(waves), waves)
        queries = Terms(None, length - 1 - at[..., None], there, pick(different), pick(hidden))  # type: ignore[arg-type]
        return content, queries, self.start(rows, at.shape[1]), wave

    def cached_terms(
        self, h: Tensor, order: Tensor, real: Tensor | None, cache: Cache, asked: Request
    ) -> tuple[Terms, Terms, Tensor | None, Tensor | None]:
        """The same for new tokens at the places `order` after those of a cache; queries see what stands before them."""
        first = cache.length == 0  # then tokens are at 0, 1, ... of every row, as keys are in their slots
        cache.begin(order, real)
        plan = cache.plan(0)
        scheme: RelativeSinusoidal = self.position  # type: ignore[assignment]
        kpos = plan.kpos.expand(h.shape[0], -1)
        seen = plan.visible.mask
        hidden = None if seen is None else ~seen[:, 0].expand(h.shape[0], -1, -1)
        there = scheme.waves(kpos, h.dtype)
        wave = None
        if first:
            line = torch.arange(h.shape[1] - 1, -kpos.shape[1], -1, device=h.device)[None]
            wave, content = scheme.waves(line, h.dtype), Terms(hidden=hidden)
        else:
            content = Terms(waves=(scheme.waves(order.expand(h.shape[0], -1), h.dtype), there), hidden=hidden)
        if asked.places is None:
            return content, Terms(), None, wave
        unseen = kpos[:, None, :] >= asked.places[:, :, None]
        queries = Terms(waves=(scheme.waves(asked.places, h.dtype), there), hidden=unseen)
        return content, queries, self.start(*asked.places.shape), wave


def _ask(block: Block, g: Tensor, keys: tuple[Tensor, Tensor], terms: Terms, weight: Tensor | None) -> Tensor:
    """A block's query stream; `weight` (B K 1) is 0 for a query that asks nothing."""

    def attend(y: Tensor) -> Tensor:
        y = block.attention(y, Visible(), Places(relative=terms), known=keys)
        return y if weight is None else y * weight

    return block.join(block.join(g, "attention", attend), "mlp", block.mlp)


def _store(
    attention: Attention, cache: Cache | None, layer: int, past: Tensor | None, kept: list[tuple[Tensor, Tensor]]
) -> Store:
    """Takes a layer's new keys and values; gives all there are, and notes them for the queries."""

    def store(k: Tensor, v: Tensor, turn: Turn | None = None) -> tuple[Tensor, Tensor]:
        if cache is not None:
            k, v = cache.write(layer, k, v, turn)
        elif past is not None:
            before = attention.keys(past.to(k.dtype))
            k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        kept.append((k, v))
        return k, v

    return store


def _either(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a | b


def _beside(hidden: Tensor, before: int, absent: Tensor | None) -> Tensor:
    """With the tokens of a memory before the row's own, all seen but those that are `absent` (B M)."""
    if absent is not None:
        return torch.cat([absent.bool()[:, None].expand(-1, hidden.shape[1], -1), hidden], -1)
    return torch.nn.functional.pad(hidden, (before, 0)) if before else hidden
