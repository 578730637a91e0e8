"""Multi-head attention over a sequence, its cache, or another sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.nn import parts
from stemma.nn.masks import Visible
from stemma.nn.mlp import capped
from stemma.nn.norms import head_norm

Turn = Callable[[Tensor], Tensor]
Store = Callable[[Tensor, Tensor, Turn | None], tuple[Tensor, Tensor]]


class Places(NamedTuple):
    """What a position scheme says to the attention of one layer: how queries and keys turn (B H T D -> B H T D), what
    is added to the scores (1|B H T S), and what the layer's own part works with."""

    turn: Turn | None = None
    bias: Tensor | None = None
    relative: Any = None


class Relative(nn.Module):
    """What a position scheme adds to a layer's attention: parameters of its own, and a term of the scores.

    A subclass maps (attention, q, k, what `Position.relative` gave) to the queries to multiply with the keys and the
    bias (1|B H T S) to add to the scores. `terms`: how many products a score is the sum of, for its scale."""

    terms = 1


class BucketTable(Relative):
    """A bias by bucketed distance (T5's), of one layer."""

    def __init__(self, buckets: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(buckets, heads)

    def forward(self, attention: nn.Module, q: Tensor, k: Tensor, bucket: Tensor) -> tuple[Tensor, Tensor]:
        """`bucket`: 1|B T S."""
        return q, self.table(bucket).permute(0, 3, 1, 2)


SHORT = 1024  # rows up to this long train faster on a CPU with plain products than with torch's fused kernel
BLOCK = 128  # queries that are taken together, so that a causal row multiplies with few keys that it may not see


class Attention(nn.Module):
    """Queries from `x`; keys and values from `x` (self) or from elsewhere (cross); `heads / kv_heads` queries a key.

    `relative`: what the position scheme of the stack adds to each of its layers (see `stemma.nn.positions`)."""

    def __init__(
        self, spec: parts.Attention, dims: parts.Dims, dropout: float, relative: Relative | None = None
    ) -> None:
        super().__init__()
        self.width, self.shared, self.dropout, self.softcap = dims.width, dims.heads // dims.kv, dropout, spec.softcap
        terms = 1 if relative is None else relative.terms  # scores are sums of as many products
        self.scale = ((spec.scale_width or dims.width) * terms) ** -0.5 if spec.scaled else 1.0
        self.relative = relative
        self.q_norm = head_norm(spec.qk_norm, dims.heads, dims.width) if spec.qk_norm is not None else None
        self.k_norm = head_norm(spec.qk_norm, dims.kv, dims.width) if spec.qk_norm is not None else None
        self.q = nn.Linear(dims.d_model, dims.heads * dims.width, spec.bias)
        self.k = nn.Linear(dims.d_model, dims.kv * dims.width, spec.bias and spec.key_bias)
        self.v = nn.Linear(dims.d_model, dims.kv * dims.width, spec.bias)
        self.o = nn.Linear(dims.heads * dims.width, dims.d_model, spec.out_bias)

    def split(self, x: Tensor) -> Tensor:  # B T H*D -> B H T D
        return x.unflatten(-1, (-1, self.width)).transpose(1, 2)

    def queries(self, x: Tensor, places: Places) -> Tensor:
        """Queries of `x`, turned: B T D -> B H T D."""
        q = self.split(self.q(x))
        q = q if self.q_norm is None else self.q_norm(q)
        return q if places.turn is None else places.turn(q)

    def told(self, q: Tensor, k: Tensor, places: Places) -> tuple[Tensor, Tensor | None]:
        """The queries to multiply with the keys, and what positions add to the scores."""
        if self.relative is None or places.relative is None:
            return q, places.bias
        told: tuple[Tensor, Tensor] = self.relative(self, q, k, places.relative)
        return told

    def keys(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `source`: B S D -> B H S D, twice."""
        k = self.split(self.k(source))
        return k if self.k_norm is None else self.k_norm(k), self.split(self.v(source))

    def forward(
        self,
        x: Tensor,
        visible: Visible,
        places: Places = Places(),
        store: Store | None = None,
        known: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """`store` takes new keys and values, and how keys turn, and returns all there are (a cache), the keys turned;
        `known` are keys and values that stand already (cross-attention). B T D -> B T D."""
        q = self.queries(x, places)
        k, v = known if known is not None else self.keys(x)
        if store is not None:
            k, v = store(k, v, places.turn)
        elif places.turn is not None:
            k = places.turn(k)
        q, bias = self.told(q, k, places)
        return self.o(self.attend(q, k, v, visible, bias).transpose(1, 2).flatten(2))

    def scores(self, x: Tensor, visible: Visible, places: Places = Places()) -> tuple[Tensor, Tensor]:
        """What a softmax over keys makes weights of, in fp32 and minus infinity where nothing is seen (B H T T), and
        the values (B H T D): for those who look at the attention itself. `x`: B T D."""
        q, (k, v) = self.queries(x, places), self.keys(x)
        if places.turn is not None:
            k = places.turn(k)
        q, bias = self.told(q, k, places)
        if self.shared > 1:
            k, v = (y.repeat_interleave(self.shared, 1) for y in (k, v))
        found = (q * self.scale @ k.transpose(-1, -2)).float()
        if self.softcap is not None:
            found = capped(found, self.softcap)
        if bias is not None:
            found = found + bias
        if visible.causal:
            found = found.masked_fill(~torch.ones_like(found[0, 0], dtype=torch.bool).tril(), float("-inf"))
        elif visible.mask is not None:
            found = found.masked_fill(~visible.mask, float("-inf"))
        return found, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Visible, bias: Tensor | None) -> Tensor:
        mask, causal = visible
        if bias is not None:
            if causal:
                mask, causal = q.new_ones(q.shape[2], k.shape[2]).tril().bool(), False
            # the least number, not minus infinity: a row that sees nothing then has equal weights, and is defined
            mask = bias if mask is None else bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
        batch, heads, length, width = q.shape
        rate = self.dropout if self.training else 0.0
        if self.softcap is not None or (self.training and q.device.type == "cpu" and length * k.shape[2] <= SHORT**2):
            return self.attend_plainly(q, k, v, mask, causal, rate)
        if self.shared > 1 and length == 1 and (mask is None or mask.shape[1] == 1):
            # one query a head: the heads that share a key become its queries, and no key is copied
            y = F.scaled_dot_product_attention(
                q.view(batch, -1, self.shared, width), k, v, attn_mask=mask, dropout_p=rate, scale=self.scale
            )
            return y.view(batch, heads, 1, width)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, dropout_p=rate, scale=self.scale, enable_gqa=self.shared > 1
        )

    def attend_plainly(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, rate: float) -> Tensor:
        """The same by plain matrix products: memory goes with length squared, but on a CPU the backward pass of the
        fused kernel is the slower one. Causal rows go in blocks, each against the keys up to its end only."""
        if self.shared > 1:
            k, v = (x.repeat_interleave(self.shared, 1) for x in (k, v))
        q = q * self.scale
        if not causal:
            return self.weighted(q, k, v, mask, rate)
        length = q.shape[2]
        # added, not filled in: where a row sees itself the numbers are the same, and a vector of floats is read at once
        # where a compiled graph would pick booleans one by one
        before = q.new_full((length, length), float("-inf")).triu(1)
        blocks = [
            self.weighted(q[:, :, i:end], k[:, :, :end], v[:, :, :end], before[i:end, :end], rate)
            for i in range(0, length, BLOCK)
            for end in (min(i + BLOCK, length),)
        ]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)

    def weighted(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float) -> Tensor:
        """`softmax(q k + mask) v`; `mask` is True where seen, or what is added."""
        scores = q @ k.transpose(-1, -2)
        if self.softcap is not None:
            scores = capped(scores, self.softcap)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        weights = scores.softmax(-1)
        return F.dropout(weights, rate).to(v.dtype) @ v if rate else weights.to(v.dtype) @ v
