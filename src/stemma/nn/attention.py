"""Multi-head attention over a sequence, its cache, or another sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.nn import blocks, cpu, crossbatch, parts
from stemma.nn.functional import softcap
from stemma.nn.masks import AttnMask, MaskInputs, MaskRule
from stemma.nn.mixed import Linear, cast
from stemma.nn.norms import head_norm

Rotate = Callable[[Tensor], Tensor]  # B H T D -> B H T D
# (new k, new v, rotate) -> all keys, rotated, and all values: B H S D each
CacheWrite = Callable[[Tensor, Tensor, Rotate | None], tuple[Tensor, Tensor]]


class PositionInputs(NamedTuple):
    """What a position scheme gives to the attention of one layer.

    `rotate`: a function of queries and of keys, B H T D -> B H T D; `rotate_keys`: of keys, where it is another one
    `exact`: scores are fp32
    `bias`: added to the scores, 1|B H T S
    `relative`: read by the layer's own `Relative`"""

    rotate: Rotate | None = None
    bias: Tensor | None = None
    relative: Any = None
    rotate_keys: Rotate | None = None
    exact: bool = False

    @property
    def of_keys(self) -> Rotate | None:
        """The rotation of keys."""
        return self.rotate if self.rotate_keys is None else self.rotate_keys


class Relative(nn.Module):
    """The part of a position scheme that each layer owns: parameters, and a term of the scores.

    `forward(attention, q, k, relative) -> (q, bias)`, where `relative` comes from `Position.relative`, the returned
    queries multiply the keys, and the bias (1|B H T S) is added to the scores. `terms`: the number of products that a
    score sums, which divides its scale."""

    terms = 1


class BucketTable(Relative):
    """T5's bias by bucketed distance, with a table in each layer."""

    def __init__(self, buckets: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(buckets, heads)

    def forward(self, attention: nn.Module, q: Tensor, k: Tensor, bucket: Tensor) -> tuple[Tensor, Tensor]:
        """`bucket`: 1|B T S."""
        return q, cast(self.table(bucket), q).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head attention with `heads / kv_heads` query heads to a key head. Keys and values come from `x`
    (self-attention) or from elsewhere (cross-attention). `relative`: see `Relative`."""

    def __init__(
        self, spec: parts.Attention, dims: parts.Dims, dropout: float, relative: Relative | None = None
    ) -> None:
        super().__init__()
        self.width, self.shared, self.dropout, self.softcap = dims.width, dims.heads // dims.kv, dropout, spec.softcap
        terms = 1 if relative is None else relative.terms
        self.scale = ((spec.scale_width or dims.width) * terms) ** -0.5 if spec.scaled else 1.0
        self.relative = relative
        self.q_norm = head_norm(spec.qk_norm, dims.heads, dims.width) if spec.qk_norm is not None else None
        self.k_norm = head_norm(spec.qk_norm, dims.kv, dims.width) if spec.qk_norm is not None else None
        self.q = Linear(dims.d_model, dims.heads * dims.width, spec.bias)
        self.k = Linear(dims.d_model, dims.kv * dims.width, spec.bias and spec.key_bias)
        self.v = Linear(dims.d_model, dims.kv * dims.width, spec.bias)
        self.o = Linear(dims.heads * dims.width, dims.d_model, spec.out_bias)

    def split(self, x: Tensor) -> Tensor:  # B T H*D -> B H T D
        return x.unflatten(-1, (-1, self.width)).transpose(1, 2)

    def queries(self, x: Tensor, position: PositionInputs) -> Tensor:
        """Rotated queries: B T D -> B H T D."""
        q = self.split(self.q(x))
        q = q if self.q_norm is None else self.q_norm(q)
        return q if position.rotate is None else position.rotate(q)

    def position_bias(self, q: Tensor, k: Tensor, position: PositionInputs) -> tuple[Tensor, Tensor | None]:
        """The queries that multiply the keys, and what positions add to the scores (1|B H T S)."""
        if self.relative is None or position.relative is None:
            return q, position.bias
        found: tuple[Tensor, Tensor] = self.relative(self, q, k, position.relative)
        return found

    def keys(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, not yet rotated, and values: B S D -> B H S D each."""
        k = self.split(self.k(source))
        return k if self.k_norm is None else self.k_norm(k), self.split(self.v(source))

    def forward(
        self,
        x: Tensor,
        attn_mask: AttnMask,
        position: PositionInputs = PositionInputs(),
        write: CacheWrite | None = None,
        kv: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """B T D -> B T D. `write` stores new keys and values in a cache and returns all of them; `kv`: keys and values
        that exist already (cross-attention)."""
        q = self.queries(x, position)
        k, v = kv if kv is not None else self.keys(x)
        if attn_mask.contexts is not None:
            y = crossbatch.attend(self, q, k, v, position.of_keys, attn_mask.contexts)
            return self.o(y.transpose(1, 2).flatten(2))
        turn = position.of_keys
        if write is not None:
            k, v = write(k, v, turn)
        elif turn is not None:
            k = turn(k)
        q, bias = self.position_bias(q, k, position)
        if position.exact:
            with torch.autocast(q.device.type, enabled=False):
                y = self.attend(q.float(), k.float(), v.float(), attn_mask, bias).to(x.dtype)
            return self.o(y.transpose(1, 2).flatten(2))
        return self.o(self.attend(q, k, v, attn_mask, bias).transpose(1, 2).flatten(2))

    def scores(
        self, x: Tensor, attn_mask: AttnMask, position: PositionInputs = PositionInputs()
    ) -> tuple[Tensor, Tensor]:
        """Attention scores before the softmax (B H T T, fp32, -inf where masked) and values (B H T D) of `x` (B T D);
        distillation of attention reads them."""
        q, (k, v) = self.queries(x, position), self.keys(x)
        if (turn := position.of_keys) is not None:
            k = turn(k)
        q, bias = self.position_bias(q, k, position)
        if self.shared > 1:
            k, v = (y.repeat_interleave(self.shared, 1) for y in (k, v))
        found = (q * self.scale @ k.transpose(-1, -2)).float()
        if self.softcap is not None:
            found = softcap(found, self.softcap)
        if bias is not None:
            found = found + bias
        if attn_mask.causal:
            found = found.masked_fill(~torch.ones_like(found[0, 0], dtype=torch.bool).tril(), float("-inf"))
        elif (mask := attn_mask.dense()) is not None:
            found = found.masked_fill(~mask, float("-inf"))
        return found, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: AttnMask, bias: Tensor | None) -> Tensor:
        """`softmax(scale q k + bias) v` over the keys that the mask shows: B H T D, B K S D -> B H T D."""
        rate = self.dropout if self.training else 0.0
        if bias is None and (rule := self.rule_of_blocks(q, k, attn_mask, rate)) is not None:
            return blocks.attend(q, k, v, rule, self.scale, self.softcap, rate)
        mask, causal = attn_mask.dense(), attn_mask.causal
        if bias is not None:
            if causal:
                mask, causal = q.new_ones(q.shape[2], k.shape[2]).tril().bool(), False
            # the least number, not -inf: a row that sees nothing gets equal weights instead of NaN
            mask = bias if mask is None else bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
        batch, heads, length, width = q.shape
        short = self.training and q.device.type == "cpu" and length * k.shape[2] <= cpu.SHORT**2
        if self.softcap is not None or short:
            return self.attend_plainly(q, k, v, mask, causal, rate)
        if self.shared > 1 and length == 1 and (mask is None or mask.shape[1] == 1):
            # one query: the heads that share a key become its queries, so no key is copied
            y = F.scaled_dot_product_attention(
                q.view(batch, -1, self.shared, width), k, v, attn_mask=mask, dropout_p=rate, scale=self.scale
            )
            return y.view(batch, heads, 1, width)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, dropout_p=rate, scale=self.scale, enable_gqa=self.shared > 1
        )

    def rule_of_blocks(self, q: Tensor, k: Tensor, attn_mask: AttnMask, rate: float) -> MaskRule | None:
        """The mask of rows that are taken in blocks; None for rows that are taken whole."""
        if attn_mask.rule is not None:
            return attn_mask.rule
        length, width = q.shape[2], k.shape[2]
        whole = not self.training or (not rate and self.softcap is None)  # torch's kernel needs no T x S either
        if whole or not blocks.long(q, length, width):
            return None
        at = torch.arange(max(length, width), device=q.device)[None]
        given = None if attn_mask.mask is None else attn_mask.mask[:, 0]
        inputs = MaskInputs(at[:, :length], at[:, :width], is_arange=True, given=given)
        return MaskRule(parts.Causal() if attn_mask.causal else parts.Full(), inputs)

    def attend_plainly(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, rate: float) -> Tensor:
        """The same by matrix products (`cpu.attend`): for short rows on a CPU, and for capped scores, which torch's
        fused kernel does not have."""
        if self.shared > 1:
            k, v = (x.repeat_interleave(self.shared, 1) for x in (k, v))
        return cpu.attend(q * self.scale, k, v, mask, causal, rate, self.softcap)
