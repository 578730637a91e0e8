"""Scores that know the distance of two tokens (Dai et al. 2019, section 3.3), and whether they share a segment (Yang et
al. 2019, section 2.5)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.attention import Attention, Relative
from stemma.nn.positions import Position

FAR = -1e30  # added to the score of what is not seen: a query that sees nothing at all weighs every key alike
FAR_HALF = -65500.0  # the most that fp16 holds: there such a query weighs by what little shows of its scores


class Terms(NamedTuple):
    """What a layer's scores are told beside content.

    Distances: by `r` (1|B H R D), the layer's keys of all distances from the largest down, of which that of key 0 is at
    `first` (B Q 1) and that of every further key one place further; without `first` the queries are Q tokens in a row,
    and it is at Q - 1, Q - 2, ..., 0. Or else by `waves` of the queries' and the keys' own positions (B Q D, B S D).
    `different` (B Q S): 1 where query and key stand in different segments; `hidden` (B Q S): True where a key is not
    seen."""

    r: Tensor | None = None
    first: Tensor | None = None
    waves: tuple[Tensor, Tensor] | None = None
    different: Tensor | None = None
    hidden: Tensor | None = None


class Distances(Relative):
    """A layer's part: a projection of the waves of distances, and what stands in for the query where a score asks for
    content, distance and segment alone (u, v of Dai et al. 2019; s of Yang et al. 2019). One row of `segments` is for
    the same segment, one for another."""

    def __init__(self, dims: parts.Dims) -> None:
        super().__init__()
        self.r = nn.Linear(dims.d_model, dims.heads * dims.width, bias=False)
        self.content = nn.Parameter(torch.zeros(dims.heads, dims.width))
        self.distance = nn.Parameter(torch.zeros(dims.heads, dims.width))
        self.segment = nn.Parameter(torch.zeros(dims.heads, dims.width))
        self.segments = nn.Parameter(torch.zeros(2, dims.heads, dims.width))

    def forward(self, attention: Attention, q: Tensor, k: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        bias = self.by_distance((q + self.distance[:, None]) * attention.scale, k.shape[2], terms)
        if terms.different is not None:
            # what a query gives to its own segment it gives to all keys alike, but for the difference to another one
            step = (self.segments[1] - self.segments[0]) * attention.scale
            jump = ((q + self.segment[:, None]) * step[:, None]).sum(-1, keepdim=True)
            bias = torch.addcmul(bias, jump, terms.different[:, None])
        if terms.hidden is not None:
            bias = bias.masked_fill(terms.hidden[:, None], FAR_HALF if bias.dtype == torch.float16 else FAR)
        return q + self.content[:, None], bias

    def by_distance(self, q: Tensor, keys: int, terms: Terms) -> Tensor:
        """The products of queries (B H Q D) with their distances to `keys` keys: B H Q S."""
        if terms.waves is not None:
            return self.by_waves(q, *terms.waves)
        assert terms.r is not None
        products = q @ terms.r.transpose(-1, -2)  # B H Q R
        length, wide = products.shape[-2:]
        if terms.first is not None:
            at = terms.first + torch.arange(keys, device=q.device)  # B Q S
            return products.gather(3, at[:, None].expand(-1, q.shape[1], -1, -1))
        if length == 1:
            return products
        # row i begins one place before row i - 1: the same numbers, read in rows that are shorter by one
        flat = products.flatten(-2)[..., length - 1 : length * wide - 1]
        return flat.unflatten(-1, (length, wide - 1))[..., :keys]

    def by_waves(self, q: Tensor, here: Tensor, there: Tensor) -> Tensor:
        """The same for queries and keys at any positions, by the sines and cosines of a difference of angles."""
        u = torch.einsum("bhqd,hdw->bhqw", q, self.r.weight.unflatten(0, (q.shape[1], -1)))
        (u_sin, u_cos), (sin, cos) = u.chunk(2, -1), here[:, None].chunk(2, -1)
        turned = torch.cat([u_cos * sin - u_sin * cos, u_sin * sin + u_cos * cos], -1)
        # all heads meet the same waves: one product a row of the batch
        return (turned.flatten(1, 2) @ there.transpose(-1, -2)).unflatten(1, q.shape[1:3])


class RelativeSinusoidal(Position):
    """Waves of distances, which each layer's `Distances` projects."""

    segments = True

    def __init__(self, dims: parts.Dims) -> None:
        super().__init__()
        if dims.d_model % 2:
            raise UsageError(f"sines and cosines of distances need an even dims.d_model, not {dims.d_model}")
        self.dims = dims

    def waves(self, pos: Tensor, dtype: torch.dtype) -> Tensor:
        """Sines in the first half of the width, cosines in the second: ... -> ... D."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        width = self.dims.d_model
        step = torch.arange(0, width, 2, dtype=torch.int64, device=pos.device).to(wide) / width
        angle = pos[..., None].to(wide) * (1.0 / torch.pow(10000.0, step))
        return torch.cat([angle.sin(), angle.cos()], -1).to(dtype)

    def layer(self) -> Distances:
        return Distances(self.dims)
