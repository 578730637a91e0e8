"""Disentangled attention (DeBERTa: He et al. 2020, arXiv:2006.03654, section 3.1).

With d = i - j, and K', Q' the keys and queries that a layer projects from an embedding of distances,

    score(i, j) = (q_i k_j + q_i K'_d + k_j Q'_d) / sqrt(width * number of products)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.attention import Attention, Relative
from stemma.nn.functional import dropout
from stemma.nn.mixed import Linear, cast
from stemma.nn.norms import norm
from stemma.nn.positions import Position


class DistanceRows(NamedTuple):
    """Embedded distances. `rows`: R D; `which`: 1|B T S, the row of each query and key. With `which` None the rows are
    the distances T-1, ..., 0, ..., -T."""

    rows: Tensor
    which: Tensor | None


class Disentangled(Position):
    """A stack's table of distances, `span` rows for each sign; where the spec says so, a table of absolute positions
    beside it."""

    zero_padding = True
    adds_scores = True

    def __init__(self, spec: parts.Disentangled, arch: parts.Arch, dims: parts.Dims) -> None:
        super().__init__()
        if dims.kv != dims.heads:
            raise UsageError(
                f"disentangled positions need a key for every head: dims.kv_heads={dims.kv_heads} is not "
                f"dims.heads={dims.heads}"
            )
        self.spec, self.arch, self.dims = spec, arch, dims
        self.span = spec.distance if spec.buckets is None else spec.buckets
        self.table = nn.Embedding(2 * self.span, dims.d_model)
        self.norm = norm(arch.norm, dims.d_model) if spec.norm else None
        self.absolute = nn.Embedding(dims.context, dims.embed_width) if spec.absolute else None
        self.limit = dims.context if spec.absolute else None

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        return x if self.absolute is None else x + self.absolute(pos)

    def bucket(self, far: Tensor) -> Tensor:
        """The bucket of each distance: exact up to half of the buckets, then logarithmic (DeBERTa v2)."""
        if self.spec.buckets is None:
            return far
        near = self.spec.buckets // 2
        size = far.abs()
        grown = torch.log(size.clamp(min=near) / near) / torch.log(torch.tensor((self.spec.distance - 1) / near))
        return torch.where(size <= near, far, far.sign() * (torch.ceil(grown * (near - 1)).long() + near))

    def row(self, far: Tensor) -> Tensor:
        """The table's row for each distance, clamped at the ends."""
        return (self.bucket(far) + self.span).clamp(0, 2 * self.span - 1)

    def relative(self, qpos: Tensor, kpos: Tensor, is_arange: bool) -> DistanceRows:
        table = self.table.weight if self.norm is None else self.norm(self.table.weight)
        length = qpos.shape[1]
        if is_arange and length <= self.span:  # no distance is clamped: the rows are a range
            far = torch.arange(length - 1, -length - 1, -1, device=qpos.device)
            return DistanceRows(table[self.row(far)], None)
        return DistanceRows(table, self.row(qpos[:, :, None] - kpos[:, None, :]))

    def layer(self) -> Relative:
        return DisentangledLayer(self.spec, self.arch, self.dims)


class DisentangledLayer(Relative):
    """The position terms of one layer's scores. `k` and `q` project distances; without them (`spec.shared`) the
    attention's own projections do. They have biases where those do."""

    def __init__(self, spec: parts.Disentangled, arch: parts.Arch, dims: parts.Dims) -> None:
        super().__init__()
        self.terms = 1 + spec.c2p + spec.p2c
        self.c2p, self.p2c, self.rate = spec.c2p, spec.p2c, arch.dropout.embed
        wide, bias = dims.heads * dims.width, arch.attention.bias
        own = not spec.shared
        self.k = Linear(dims.d_model, wide, bias and arch.attention.key_bias) if own and spec.c2p else None
        self.q = Linear(dims.d_model, wide, bias) if own and spec.p2c else None

    def forward(self, attention: Attention, q: Tensor, k: Tensor, distances: DistanceRows) -> tuple[Tensor, Tensor]:
        """Queries and keys, B H T D, -> the queries, and the bias of the scores, B H T S."""
        rows, which = distances
        rows = dropout(cast(rows, q), self.rate, self.training)
        bias = None
        if self.c2p:
            keys = (self.k if self.k is not None else attention.k)(rows) * attention.scale
            bias = pick(q, keys, which, q.shape[2] - 1)
        if self.p2c:
            queries = (self.q if self.q is not None else attention.q)(rows) * attention.scale
            turned = None if which is None else which.transpose(1, 2)
            met = pick(k, queries if which is not None else queries.flip(0), turned, k.shape[2]).transpose(2, 3)
            bias = met if bias is None else bias + met
        assert bias is not None
        return q, bias


def pick(x: Tensor, rows: Tensor, which: Tensor | None, first: int) -> Tensor:
    """`y[t, s] = x[t] . rows[which[t, s]]`: B H T D, R H*D, 1|B T S -> B H T S. Without `which`, the row is
    `first - t + s`, R = 2 T and S = T."""
    batch, heads, length, width = x.shape
    # heads outside, all texts together: the rows are not copied for each text
    flat = x.transpose(0, 1).reshape(heads, batch * length, width)
    y = flat @ rows.unflatten(-1, (heads, width)).permute(1, 2, 0)
    y = y.view(heads, batch, length, -1).transpose(0, 1)  # B H T R
    if which is not None:
        return y.gather(3, which[:, None].expand(batch, heads, -1, -1))
    # token t starts one row earlier than token t-1: rows of 2T-1 numbers turn the diagonals into columns
    return y.flatten(2).narrow(2, first, length * (2 * length - 1)).unflatten(2, (length, -1))[..., :length]
