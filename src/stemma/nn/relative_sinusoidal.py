"""Relative sinusoidal positions (Transformer-XL: Dai et al. 2019, arXiv:1901.02860, section 3.3) and relative segments
(XLNet: Yang et al. 2019, arXiv:1906.08237, section 2.5).

With R_d the sinusoidal embedding of distance d = i - j, and s the embedding of "same segment" or "another",

    score(i, j) = ((q_i + u) k_j + (q_i + v) W R_d + (q_i + w) s) / sqrt(width)
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.attention import Attention, Relative
from stemma.nn.mixed import Linear, cast
from stemma.nn.positions import Position

HIDDEN = -1e30  # the bias of a key that is not seen, as in the reference: a query that sees nothing weighs all alike
HIDDEN_HALF = -65500.0  # the same in fp16, near its least number


class Terms(NamedTuple):
    """What the scores of Q queries and S keys read beside content.

    `r`: 1|B H R D, `W R_d` for all distances, largest first
    `first`: B Q 1, key j of a query uses row `first + j` of `r`; None: `first` is Q-1, Q-2, ..., 0
    `waves`: in place of `r`, sines and cosines of the queries' and of the keys' positions, B Q D and B S D
    `different`: B Q S, 1 where query and key are in different segments
    `hidden`: B Q S, True where a key is not seen"""

    r: Tensor | None = None
    first: Tensor | None = None
    waves: tuple[Tensor, Tensor] | None = None
    different: Tensor | None = None
    hidden: Tensor | None = None


class RelativeSinusoidalLayer(Relative):
    """A layer's parameters: W is `r`, u is `content`, v is `distance`, w is `segment`; `segments` holds s for the same
    segment and for another."""

    parameter_uses: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("content", "distance", "segment"), "vector"),
        "segments": "table",
    }

    def __init__(self, dims: parts.Dims) -> None:
        super().__init__()
        self.r = Linear(dims.d_model, dims.heads * dims.width, bias=False)
        self.content = nn.Parameter(torch.zeros(dims.heads, dims.width))
        self.distance = nn.Parameter(torch.zeros(dims.heads, dims.width))
        self.segment = nn.Parameter(torch.zeros(dims.heads, dims.width))
        self.segments = nn.Parameter(torch.zeros(2, dims.heads, dims.width))

    def forward(self, attention: Attention, q: Tensor, k: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        bias = self.by_distance((q + cast(self.distance, q)[:, None]) * attention.scale, k.shape[2], terms)
        if terms.different is not None:
            # a softmax ignores what all keys share, so only the difference between the two segments counts
            step = cast(self.segments[1] - self.segments[0], q) * attention.scale
            jump = ((q + cast(self.segment, q)[:, None]) * step[:, None]).sum(-1, keepdim=True)
            bias = torch.addcmul(bias, jump, terms.different[:, None])
        if terms.hidden is not None:
            bias = bias.masked_fill(terms.hidden[:, None], HIDDEN_HALF if bias.dtype == torch.float16 else HIDDEN)
        return q + cast(self.content, q)[:, None], bias

    def by_distance(self, q: Tensor, keys: int, terms: Terms) -> Tensor:
        """`q W R_d` for the distances to S = `keys` keys: B H Q D -> B H Q S."""
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
        # query i starts one row of `r` before query i-1: the same numbers, read in rows shorter by one
        flat = products.flatten(-2)[..., length - 1 : length * wide - 1]
        return flat.unflatten(-1, (length, wide - 1))[..., :keys]

    def by_waves(self, q: Tensor, here: Tensor, there: Tensor) -> Tensor:
        """The same for any positions, by `sin(a - b)` and `cos(a - b)` of the angles of a query and a key."""
        u = torch.einsum("bhqd,hdw->bhqw", q, cast(self.r.weight, q).unflatten(0, (q.shape[1], -1)))
        (u_sin, u_cos), (sin, cos) = u.chunk(2, -1), here[:, None].chunk(2, -1)
        turned = torch.cat([u_cos * sin - u_sin * cos, u_sin * sin + u_cos * cos], -1)
        # all heads share the waves of keys: one product a row of the batch
        return (turned.flatten(1, 2) @ there.transpose(-1, -2)).unflatten(1, q.shape[1:3])


class RelativeSinusoidal(Position):
    """Sinusoidal embeddings of distances; each layer projects them."""

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

    def layer(self) -> RelativeSinusoidalLayer:
        return RelativeSinusoidalLayer(self.dims)
