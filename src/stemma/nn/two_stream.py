"""Two-stream attention with a memory of segments: XLNet (Yang et al. 2019, arXiv:1906.08237, section 2.3).

The content stream is an ordinary encoder; a permutation says which tokens see each other. The query stream has a vector
for each place to be predicted. It reads the content stream's keys and values with the same weights, but never its own
token. The hidden states of earlier segments come before the present keys (Dai et al. 2019, section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.attention import Attention, CacheWrite, PositionInputs, Rotate
from stemma.nn.cache import Cache
from stemma.nn.functional import dropout
from stemma.nn.inputs import StackInputs, StreamInputs
from stemma.nn.masks import AttnMask
from stemma.nn.mixed import cast
from stemma.nn.relative_sinusoidal import RelativeSinusoidal, Terms
from stemma.nn.stack import Block, Stack, State


class TwoStreams(Stack):
    """A stack with a content stream, and a query stream beside it where a call predicts with queries."""

    def __init__(self, arch: parts.Arch, dims: parts.Dims, layers: int, *, mask: parts.Mask, cross: bool) -> None:
        super().__init__(arch, dims, layers, mask=mask, cross=cross)
        assert arch.streams is not None
        self.streams = arch.streams
        self.query = nn.Parameter(torch.zeros(dims.d_model))  # every query before the first block

    def forward(self, inputs: StackInputs) -> State:
        """As `Stack.forward`. `hidden` is the query stream (B K D) where there are queries, else content (B T D)."""
        cache, given = inputs.cache, inputs.streams or StreamInputs()
        h = self.enter(inputs.x, inputs.positions)
        given.check(h.shape[0], h.shape[1], len(self.order), h.shape[2])
        if given.mems is not None and inputs.documents is not None:
            raise UsageError("documents of a packed row have no memory: give either mems or documents")
        if cache is None:
            content, queries, g, wave = self.terms(h, inputs, given)
        else:
            content, queries, g, wave = self.cached_terms(h, inputs, cache, given)
        g = None if g is None else cast(g, h)
        weight = None if given.target_mapping is None else given.target_mapping.sum(-1, keepdim=True).to(h.dtype)
        for at, (number, _) in enumerate(self.order):
            block: Block = self.blocks[number]  # type: ignore[assignment]
            attention = block.attention
            past = None if given.mems is None else given.mems[at]
            if cache is None:
                given.new_mems.append(self.keep(h, past))
            if wave is not None:
                r = attention.split(attention.relative.r(wave))  # type: ignore[union-attr,operator]
                content, queries = content._replace(r=r), queries._replace(r=r)
            kept: list[tuple[Tensor, Tensor]] = []
            write = _recorded(attention, cache, at, past, kept)
            if g is not None and at == len(self.order) - 1:
                write(*attention.keys(h), None)  # nothing reads the last block's content
            else:
                h = block(h, AttnMask(), PositionInputs(relative=content), write)
            if g is not None:
                g = _query(block, g, kept[0], queries, weight)
        hidden = dropout(h if g is None else g, self.rates.final, self.training)
        content_inputs = PositionInputs(relative=content)
        return State(hidden, h, inputs.positions, inputs.is_arange, AttnMask(), content_inputs)

    def keep(self, h: Tensor, past: Tensor | None) -> Tensor:
        """The memory of one layer after this segment: B T D, B M D -> B M D."""
        new = h.detach()[:, : self.streams.reuse]
        if past is not None:
            new = torch.cat([past.to(new), new], 1)
        return new if self.streams.memory is None else new[:, -self.streams.memory :]

    def start(self, rows: int, number: int) -> Tensor:
        """The query stream before the first block: B K D."""
        return dropout(self.query.expand(rows, number, -1), self.rates.embed, self.training)

    def terms(
        self, h: Tensor, inputs: StackInputs, given: StreamInputs
    ) -> tuple[Terms, Terms, Tensor | None, Tensor | None]:
        """`Terms` of the content stream and of queries, the query stream (B K D), and the waves of all distances
        (1|B R D)."""
        rows, length = h.shape[:2]
        before = 0 if given.mems is None else given.mems[0].shape[1]
        hidden, own = self._hidden(h, inputs, given, before)
        different = None
        if given.segments is not None:
            keys = torch.nn.functional.pad(given.segments, (before, 0))  # the memory is of segment 0
            different = (given.segments[:, :, None] != keys[:, None, :]).to(h.dtype)
        wave = waves = None
        scheme: RelativeSinusoidal = self.position  # type: ignore[assignment]
        if inputs.is_arange:
            line = torch.arange(before + length - 1, -length, -1, device=h.device)[None]
            if given.backward is not None:
                line = line * (1 - 2 * given.backward[:, None])
            wave = dropout(scheme.waves(line, h.dtype), self.rates.embed, self.training)
        else:
            if before:
                raise UsageError("position_ids do not go with mems, whose tokens have no positions")
            waves = scheme.waves(inputs.positions.expand(rows, -1), h.dtype)
        content = Terms(None, None, None if waves is None else (waves, waves), different, own)
        if given.target_mapping is None:
            return content, Terms(), None, wave
        at = given.target_mapping.to(torch.int64).argmax(-1)  # B K

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.gather(1, at[..., None].expand(-1, -1, x.shape[2]))

        there = None if waves is None else (pick(waves), waves)
        queries = Terms(None, length - 1 - at[..., None], there, pick(different), pick(hidden))  # type: ignore[arg-type]
        return content, queries, self.start(rows, at.shape[1]), wave

    def _hidden(
        self, h: Tensor, inputs: StackInputs, given: StreamInputs, before: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Keys hidden from queries, and keys hidden from content, which sees its own token: B T M+T each, or None."""
        rows, length = h.shape[:2]
        not_padding, documents = inputs.not_padding, inputs.documents
        hidden = _either(
            None if given.perm_mask is None else given.perm_mask.bool(),
            None if not_padding is None else ~not_padding[:, None],
        )
        if documents is not None:
            hidden = _either(hidden, documents[:, :, None] != documents[:, None, :])
        if hidden is None and given.absent is not None:
            hidden = torch.zeros(1, 1, 1, dtype=torch.bool, device=h.device)
        if hidden is None:
            return None, None
        hidden = hidden.expand(rows, length, length)
        own = hidden & ~torch.eye(length, dtype=torch.bool, device=h.device)
        return _with_memory(hidden, before, given.absent), _with_memory(own, before, given.absent)

    def cached_terms(
        self, h: Tensor, inputs: StackInputs, cache: Cache, given: StreamInputs
    ) -> tuple[Terms, Terms, Tensor | None, Tensor | None]:
        """As `terms`, for new tokens after those of a cache. A query sees the keys before its place."""
        first, order = cache.length == 0, inputs.order  # at first, tokens and slots are both numbered 0, 1, ...
        cache.begin(order, inputs.not_padding)
        plan = cache.plan(0)
        scheme: RelativeSinusoidal = self.position  # type: ignore[assignment]
        kpos = plan.kpos.expand(h.shape[0], -1)
        seen = plan.attn_mask.mask
        hidden = None if seen is None else ~seen[:, 0].expand(h.shape[0], -1, -1)
        there = scheme.waves(kpos, h.dtype)
        wave = None
        if first:
            line = torch.arange(h.shape[1] - 1, -kpos.shape[1], -1, device=h.device)[None]
            wave, content = scheme.waves(line, h.dtype), Terms(hidden=hidden)
        else:
            content = Terms(waves=(scheme.waves(order.expand(h.shape[0], -1), h.dtype), there), hidden=hidden)
        if given.places is None:
            return content, Terms(), None, wave
        unseen = kpos[:, None, :] >= given.places[:, :, None]
        queries = Terms(waves=(scheme.waves(given.places, h.dtype), there), hidden=unseen)
        return content, queries, self.start(*given.places.shape), wave


def _query(block: Block, g: Tensor, kv: tuple[Tensor, Tensor], terms: Terms, weight: Tensor | None) -> Tensor:
    """A block applied to the query stream; `weight` (B K 1) is 0 for a query that predicts nothing."""

    def attend(y: Tensor) -> Tensor:
        y = block.attention(y, AttnMask(), PositionInputs(relative=terms), kv=kv)
        return y if weight is None else y * weight

    return block.join(block.join(g, "attention", attend), "mlp", block.mlp)


def _recorded(
    attention: Attention, cache: Cache | None, layer: int, past: Tensor | None, kept: list[tuple[Tensor, Tensor]]
) -> CacheWrite:
    """A cache write that prepends the cache or the memory, and appends the result to `kept` for the query stream."""

    def write(k: Tensor, v: Tensor, rotate: Rotate | None = None) -> tuple[Tensor, Tensor]:
        if cache is not None:
            k, v = cache.write(layer, k, v, rotate)
        elif past is not None:
            before = attention.keys(past.to(k.dtype))
            k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        kept.append((k, v))
        return k, v

    return write


def _either(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a | b


def _with_memory(hidden: Tensor, before: int, absent: Tensor | None) -> Tensor:
    """`hidden` (B T T) with columns for a memory of `before` tokens, all seen but `absent` ones (B M): B T M+T."""
    if absent is not None:
        return torch.cat([absent.bool()[:, None].expand(-1, hidden.shape[1], -1), hidden], -1)
    return torch.nn.functional.pad(hidden, (before, 0)) if before else hidden
