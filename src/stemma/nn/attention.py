"""Multi-head attention over a sequence, its cache, or another sequence."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from stemma.nn import parts
from stemma.nn.masks import Visible
from stemma.nn.positions import rotate

Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Attention(nn.Module):
    """Queries from `x`; keys and values from `x` (self) or from elsewhere (cross); `heads / kv_heads` queries a key."""

    def __init__(self, spec: parts.Attention, dims: parts.Dims, dropout: float) -> None:
        super().__init__()
        self.width, self.shared, self.dropout = dims.width, dims.heads // dims.kv, dropout
        self.scale = dims.width**-0.5 if spec.scaled else 1.0
        self.q = nn.Linear(dims.d_model, dims.heads * dims.width, spec.bias)
        self.k = nn.Linear(dims.d_model, dims.kv * dims.width, spec.bias)
        self.v = nn.Linear(dims.d_model, dims.kv * dims.width, spec.bias)
        self.o = nn.Linear(dims.heads * dims.width, dims.d_model, spec.out_bias)

    def split(self, x: Tensor) -> Tensor:  # B T H*D -> B H T D
        return x.unflatten(-1, (-1, self.width)).transpose(1, 2)

    def keys(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `source`: B S D -> B H S D, twice."""
        return self.split(self.k(source)), self.split(self.v(source))

    def forward(
        self,
        x: Tensor,
        visible: Visible,
        angles: tuple[Tensor, Tensor] | None = None,
        bias: Tensor | None = None,
        store: Store | None = None,
        known: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """`store` takes new keys and values and returns all there are (a cache); `known` are keys and values that
        stand already (cross-attention). B T D -> B T D."""
        q = self.split(self.q(x))
        k, v = known if known is not None else self.keys(x)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if store is not None:
            k, v = store(k, v)
        return self.o(self.attend(q, k, v, visible, bias).transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Visible, bias: Tensor | None) -> Tensor:
        mask, causal = visible
        if bias is not None:
            if causal:
                mask, causal = q.new_ones(q.shape[2], k.shape[2]).tril().bool(), False
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        batch, heads, length, width = q.shape
        rate = self.dropout if self.training else 0.0
        if self.shared > 1 and length == 1 and (mask is None or mask.shape[1] == 1):
            # one query a head: the heads that share a key become its queries, and no key is copied
            y = F.scaled_dot_product_attention(
                q.view(batch, -1, self.shared, width), k, v, attn_mask=mask, dropout_p=rate, scale=self.scale
            )
            return y.view(batch, heads, 1, width)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, dropout_p=rate, scale=self.scale, enable_gqa=self.shared > 1
        )
