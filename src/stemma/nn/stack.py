"""Blocks, and the stack of them that is an encoder or a decoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from stemma.nn import parts
from stemma.nn.attention import Attention, Places, Relative, Store
from stemma.nn.cache import Cache
from stemma.nn.masks import Facts, Visible, layer_mask, visible
from stemma.nn.mlp import activation, dropped, feed_forward
from stemma.nn.norms import norm
from stemma.nn.positions import Position
from stemma.nn.schemes import position

Branch = Callable[[Tensor], Tensor]


class Block(nn.Module):
    """Self-attention, attention to `memory` where the block has it, MLP; each a branch beside the residual stream.

    How a branch joins the stream is what subclasses say."""

    def __init__(self, arch: parts.Arch, dims: parts.Dims, cross: bool, relative: Relative | None) -> None:
        super().__init__()
        self.rate = arch.dropout.residual
        self.attention_norm = norm(arch.norm, dims.d_model)
        self.attention = Attention(arch.attention, dims, arch.dropout.attention, relative)
        self.cross_norm = norm(arch.norm, dims.d_model) if cross else None
        self.cross = Attention(arch.attention, dims, arch.dropout.attention) if cross else None
        self.mlp_norm: nn.Module | None = norm(arch.norm, dims.d_model)
        self.mlp = feed_forward(arch.mlp, dims, arch.dropout.inner)

    def drop(self, branch: Tensor) -> Tensor:
        return dropped(branch, self.rate, self.training)

    def join(self, x: Tensor, name: str, branch: Branch) -> Tensor:
        """The stream after a branch whose norm is `{name}_norm`."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        seen: Visible,
        places: Places,
        store: Store | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
        memory_seen: Visible = Visible(),
    ) -> Tensor:
        """`memory`: keys and values of the encoder's output for this block. B T D -> B T D."""
        x = self.join(x, "attention", lambda y: self.attention(y, seen, places, store))
        if (cross := self.cross) is not None:
            x = self.join(x, "cross", lambda y: cross(y, memory_seen, known=memory))
        return self.join(x, "mlp", self.mlp)

    def reread(self, x: Tensor, source: Tensor, seen: Visible, places: Places) -> Tensor:
        """The block with queries and stream `x`, over keys and values of `source`, which it read before."""
        known = self.attention.keys(source)
        x = self.join(x, "attention", lambda y: self.attention(y, seen, places, known=known))
        return self.join(x, "mlp", self.mlp)


class PostBlock(Block):
    def join(self, x: Tensor, name: str, branch: Branch) -> Tensor:
        return getattr(self, f"{name}_norm")(x + self.drop(branch(x)))


class PreBlock(Block):
    def join(self, x: Tensor, name: str, branch: Branch) -> Tensor:
        return x + self.drop(branch(getattr(self, f"{name}_norm")(x)))


class SandwichBlock(Block):
    def __init__(self, arch: parts.Arch, dims: parts.Dims, cross: bool, relative: Relative | None) -> None:
        super().__init__(arch, dims, cross, relative)
        self.attention_out_norm = norm(arch.norm, dims.d_model)
        self.cross_out_norm = norm(arch.norm, dims.d_model) if cross else None
        self.mlp_out_norm = norm(arch.norm, dims.d_model)

    def join(self, x: Tensor, name: str, branch: Branch) -> Tensor:
        y = branch(getattr(self, f"{name}_norm")(x))
        return x + self.drop(getattr(self, f"{name}_out_norm")(y))


class DeepBlock(Block):
    def __init__(self, arch: parts.Arch, dims: parts.Dims, cross: bool, relative: Relative | None) -> None:
        super().__init__(arch, dims, cross, relative)
        self.alpha = (2 * dims.layers) ** 0.5

    def join(self, x: Tensor, name: str, branch: Branch) -> Tensor:
        return getattr(self, f"{name}_norm")(self.alpha * x + self.drop(branch(x)))


class ParallelBlock(Block):
    """One norm, whose output all branches read."""

    def __init__(self, arch: parts.Arch, dims: parts.Dims, cross: bool, relative: Relative | None) -> None:
        super().__init__(arch, dims, cross, relative)
        self.cross_norm, self.mlp_norm = None, None

    def forward(
        self,
        x: Tensor,
        seen: Visible,
        places: Places,
        store: Store | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
        memory_seen: Visible = Visible(),
    ) -> Tensor:
        y = self.attention_norm(x)
        x = x + self.drop(self.attention(y, seen, places, store))
        if self.cross is not None:
            x = x + self.drop(self.cross(y, memory_seen, known=memory))
        return x + self.drop(self.mlp(y))


BLOCKS: dict[type[parts.Residual], type[Block]] = {
    parts.PostNorm: PostBlock,
    parts.PreNorm: PreBlock,
    parts.Sandwich: SandwichBlock,
    parts.DeepNorm: DeepBlock,
    parts.Parallel: ParallelBlock,
}


class Convolution(nn.Module):
    """A convolution over the input of the first block, which joins its output (see `parts.Convolution`)."""

    def __init__(self, arch: parts.Arch, spec: parts.Convolution, dims: parts.Dims) -> None:
        super().__init__()
        self.rate, self.act = arch.dropout.residual, activation(spec.act)
        self.conv = nn.Conv1d(dims.d_model, dims.d_model, spec.kernel, padding=spec.kernel // 2)
        self.norm = norm(arch.norm, dims.d_model)

    def forward(self, x: Tensor, beside: Tensor, real: Tensor | None, documents: Tensor | None) -> Tensor:
        """`x`: the block's input; `beside`: its output, B T D. Padding and other documents count as nothing."""
        if real is not None:
            x = x * real[..., None]
        reach = self.conv.kernel_size[0] // 2
        near = F.pad(x, (0, 0, reach, reach)).unfold(1, 2 * reach + 1, 1)  # B T D K
        if documents is not None:
            other = F.pad(documents, (reach, reach)).unfold(1, 2 * reach + 1, 1) != documents[..., None]
            near = near.masked_fill(other[:, :, None], 0.0)
        y = F.linear(near.flatten(2), self.conv.weight.flatten(1), self.conv.bias)
        y = dropped(y, self.rate, self.training)
        if real is None:
            return self.norm(beside + self.act(y))
        return self.norm(beside + self.act(y * real[..., None])) * real[..., None]


class State(NamedTuple):
    """What a stack leaves: its last hidden state (B T D), the input of its last block (B T D), the positions (1|B T),
    whether they are known to be 0..T-1, and what the last block saw and was told of positions."""

    hidden: Tensor
    before: Tensor
    pos: Tensor
    plain: bool
    seen: Visible
    places: Places


class Stack(nn.Module):
    """Positions, the norm and dropout of the embeddings, blocks, and the norm after them."""

    def __init__(self, arch: parts.Arch, dims: parts.Dims, layers: int, *, mask: parts.Mask, cross: bool) -> None:
        super().__init__()
        self.masks = [layer_mask(mask, i) for i in range(layers)]
        self.rates = arch.dropout
        self.position = position(arch.position, arch, dims, both=isinstance(mask, parts.Full))
        self.local = position(arch.local, arch, dims, both=False) if arch.local is not None else None
        self.embed_norm = norm(arch.norm, dims.embed_width) if arch.embed_norm else None
        self.project = nn.Linear(dims.embed, dims.d_model) if dims.embed is not None else None
        groups = dims.groups if dims.groups is not None else layers
        block = BLOCKS[type(arch.residual)]
        self.blocks = nn.ModuleList(block(arch, dims, cross, self.position.layer()) for _ in range(groups * dims.inner))
        # which block runs, and under which layer's mask
        self.order = [(i * groups // layers * dims.inner + j, i) for i in range(layers) for j in range(dims.inner)]
        self.convolution = Convolution(arch, arch.convolution, dims) if arch.convolution is not None else None
        last = isinstance(arch.residual, parts.PreNorm | parts.Sandwich | parts.Parallel)
        self.norm = norm(arch.norm, dims.d_model) if last else None

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
    ) -> State:
        """`x` (B T E) embedded tokens at positions `pos` (1|B T, or B T C) and places `order` (1|B T) of their rows;
        `plain`: both are known to be 0..T-1; `real` (B T): False for padding; `documents` (B T): a token sees its own
        only; `prefix` (B 1 or B T): so many tokens see each other whole; `memory` (B S D): the encoder's output;
        `chosen`: the mask that stands for an open one."""
        x = self.enter(x, pos, real)
        kinds = list(dict.fromkeys(self.masks))
        if cache is not None:
            cache.chosen = chosen
            cache.begin(order, real)
            plans = cache.plans
            seen = {mask: plans[mask].visible for mask in kinds}
            alike = list({id(plan): plan for plan in plans.values()}.values())
            spans = {mask: (alike.index(plans[mask]), plans[mask].qpos, plans[mask].kpos) for mask in kinds}
        else:
            facts = Facts(order, order, plain, real, documents, documents, prefix, self.position.blank, chosen)
            seen = {mask: visible(mask, facts) for mask in kinds}
            spans = {mask: (0, pos, pos) for mask in kinds}
        places = self.places(kinds, pos, spans, x, plain)
        start = before = x
        for at, (number, layer) in enumerate(self.order):
            block, mask = self.blocks[number], self.masks[layer]
            store = None if cache is None else partial(cache.write, at)
            known = None
            if memory is not None:
                known = block.cross.keys(memory)  # type: ignore[union-attr,operator]
                if cache is not None:
                    cache.cross[at] = known
            elif cache is not None:
                known = cache.cross[at]
            before = x
            x = block(x, seen[mask], places[mask], store, known, memory_seen)
            if at == 0 and self.convolution is not None:
                x = self.convolution(start, x, real, documents)
        if self.norm is not None:
            x = self.norm(x)
        return State(dropped(x, self.rates.final, self.training), before, pos, plain, seen[mask], places[mask])

    def enter(self, x: Tensor, pos: Tensor, real: Tensor | None = None) -> Tensor:
        """What the first block reads: B T E -> B T D."""
        x = self.position.embed(x, pos)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        if real is not None and self.position.blank:
            x = x * real[..., None]
        x = dropped(x, self.rates.embed, self.training)
        return x if self.project is None else self.project(x)

    def places(
        self,
        kinds: list[parts.LayerMask],
        pos: Tensor,
        spans: dict[parts.LayerMask, tuple[int, Tensor, Tensor]],
        x: Tensor,
        plain: bool,
    ) -> dict[parts.LayerMask, Places]:
        """What each kind of layer is told of positions: `spans` are those of its queries and keys, with a number that
        equal ones share (the tensors themselves must not be compared: a compiled graph would be bound to them)."""
        schemes: dict[parts.LayerMask, Position] = {
            m: self.local if self.local is not None and isinstance(m, parts.Sliding) else self.position for m in kinds
        }
        turns = {scheme: scheme.turn(pos, x.dtype) for scheme in dict.fromkeys(schemes.values())}
        known: dict[tuple[Position, int], tuple[Tensor | None, object]] = {}  # layers of equal spans share a bias
        out = {}
        for mask, scheme in schemes.items():
            number, queries, keys = spans[mask]
            key = (scheme, number)
            if key not in known:
                known[key] = scheme.bias(queries, keys), scheme.relative(queries, keys, plain)
            out[mask] = Places(turns[scheme], *known[key])
        return out
