"""Blocks, and the stack of them that is an encoder or a decoder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from stemma.nn import parts
from stemma.nn.attention import Attention, Store
from stemma.nn.cache import Cache
from stemma.nn.masks import Facts, Visible, layer_mask, visible
from stemma.nn.mlp import MLP
from stemma.nn.norms import norm
from stemma.nn.positions import position


class Block(nn.Module):
    """Self-attention, attention to `memory` where the block has it, MLP; each a branch beside the residual stream."""

    def __init__(self, arch: parts.Arch, dims: parts.Dims, cross: bool) -> None:
        super().__init__()
        rates = arch.dropout
        self.pre = isinstance(arch.residual, parts.PreNorm)
        self.rate = rates.residual
        self.attention_norm = norm(arch.norm, dims.d_model)
        self.attention = Attention(arch.attention, dims, rates.attention)
        self.cross_norm = norm(arch.norm, dims.d_model) if cross else None
        self.cross = Attention(arch.attention, dims, rates.attention) if cross else None
        self.mlp_norm = norm(arch.norm, dims.d_model)
        self.mlp = MLP(arch.mlp, dims, rates.inner)

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + (F.dropout(branch, self.rate, True) if self.training and self.rate else branch)

    def forward(
        self,
        x: Tensor,
        seen: Visible,
        angles: tuple[Tensor, Tensor] | None,
        bias: Tensor | None,
        store: Store | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
        memory_seen: Visible = Visible(),
    ) -> Tensor:
        """`memory`: keys and values of the encoder's output for this block. B T D -> B T D."""
        if self.pre:
            x = self.add(x, self.attention(self.attention_norm(x), seen, angles, bias, store))
            if self.cross is not None and self.cross_norm is not None:
                x = self.add(x, self.cross(self.cross_norm(x), memory_seen, known=memory))
            return self.add(x, self.mlp(self.mlp_norm(x)))
        x = self.attention_norm(self.add(x, self.attention(x, seen, angles, bias, store)))
        if self.cross is not None and self.cross_norm is not None:
            x = self.cross_norm(self.add(x, self.cross(x, memory_seen, known=memory)))
        return self.mlp_norm(self.add(x, self.mlp(x)))


class Stack(nn.Module):
    """Positions, the norm and dropout of the embeddings, blocks, and the norm after them."""

    def __init__(self, arch: parts.Arch, dims: parts.Dims, layers: int, *, mask: parts.Mask, cross: bool) -> None:
        super().__init__()
        self.masks = [layer_mask(mask, i) for i in range(layers)]
        self.rates = arch.dropout
        self.position = position(arch.position, dims, both=isinstance(mask, parts.Full))
        self.embed_norm = norm(arch.norm, dims.d_model) if arch.embed_norm else None
        self.blocks = nn.ModuleList(Block(arch, dims, cross) for _ in range(layers))
        self.norm = norm(arch.norm, dims.d_model) if isinstance(arch.residual, parts.PreNorm) else None

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        *,
        plain: bool,
        real: Tensor | None = None,
        documents: Tensor | None = None,
        memory: Tensor | None = None,
        memory_seen: Visible = Visible(),
        cache: Cache | None = None,
    ) -> Tensor:
        """`x` (B T D) embedded tokens at positions `pos` (1|B T); `plain`: these are known to be 0..T-1; `real` (B T):
        False for padding; `documents` (B T): a token sees its own only; `memory` (B S D): the encoder's output."""
        x = self.position.embed(x, pos)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        x = self.drop(x, self.rates.embed)
        angles = self.position.angles(pos, x.dtype)
        if cache is not None:
            cache.begin(pos, real)
            seen = {mask: plan.visible for (_, mask), plan in cache.plans.items()}
            biases = {m: self.position.bias(plan.qpos, plan.kpos) for (_, m), plan in cache.plans.items()}
        else:
            facts = Facts(pos, pos, plain, real, documents, documents)
            seen = {mask: visible(mask, facts) for mask in dict.fromkeys(self.masks)}
            bias = self.position.bias(pos, pos)
            biases = dict.fromkeys(self.masks, bias)
        for i, (block, mask) in enumerate(zip(self.blocks, self.masks, strict=True)):
            store = None if cache is None else _store(cache, i)
            known = None
            if memory is not None:
                known = block.cross.keys(memory)  # type: ignore[union-attr,operator]
                if cache is not None:
                    cache.cross[i] = known
            elif cache is not None:
                known = cache.cross[i]
            x = block(x, seen[mask], angles, biases[mask], store, known, memory_seen)
        if self.norm is not None:
            x = self.norm(x)
        return self.drop(x, self.rates.final)

    def drop(self, x: Tensor, rate: float) -> Tensor:
        return F.dropout(x, rate, True) if self.training and rate else x


def _store(cache: Cache, layer: int) -> Store:
    def store(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return cache.write(layer, k, v)

    return store
