"""How a stack knows the order of its tokens: one object a stack, with hooks.

`embed(x, pos)` adds to the embeddings, `turn(pos)` turns queries and keys, `bias(qpos, kpos)` adds to the scores, and
`relative(qpos, kpos)` is what each layer's own part (`layer`, an `attention.Relative`) needs to do so. Each scheme uses
one hook and leaves the others as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import parts


class Places(NamedTuple):
    """What a position scheme says to the attention of one layer: how queries and keys turn (B H T D -> B H T D), what
    is added to the scores (1|B H T S), and what the layer's own part works with."""

    turn: Callable[[Tensor], Tensor] | None = None
    bias: Tensor | None = None
    relative: Any = None


class Position(nn.Module):
    """The hooks, each doing nothing. `pos` is B T, or B T C where a scheme counts in C ways at once."""

    limit: int | None = None  # longest text that this scheme can number
    first = 0  # the number of a text's first token

    def number(self, ids: Tensor, start: int = 0) -> Tensor:  # B T -> 1|B T
        """The position of every token of `ids`, of which the first stands at `start`."""
        return torch.arange(start, start + ids.shape[1], device=ids.device)[None]

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:  # B T D, B T -> B T D
        return x

    def turn(self, pos: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
        return None

    def bias(self, qpos: Tensor, kpos: Tensor) -> Tensor | None:  # B T, B S -> B H T S
        return None

    def relative(self, qpos: Tensor, kpos: Tensor) -> Any:
        return None

    def layer(self) -> Any:
        """The part of this scheme that one layer's attention owns (an `attention.Relative`), or None."""
        return None


class Learned(Position):
    """A table of positions. With `padding`, ids equal to it are skipped in the count (RoBERTa); `offset` rows at its
    beginning are not in use (BART)."""

    def __init__(self, context: int, width: int, padding: int | None, offset: int) -> None:
        super().__init__()
        self.padding, self.offset = padding, offset
        self.limit = context
        self.first = 0 if padding is None else padding + 1
        self.table = nn.Embedding(context + offset + self.first, width)

    def number(self, ids: Tensor, start: int = 0) -> Tensor:
        if self.padding is None:
            return super().number(ids, start)
        real = (ids != self.padding).long()
        return (real.cumsum(1) + start) * real + self.padding

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        return x + self.table(pos + self.offset if self.offset else pos)


class Sinusoidal(Position):
    """Sines in the first half of the width, cosines in the second (the order of tensor2tensor)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.waves = d_model // 2

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        step = torch.arange(self.waves, device=x.device, dtype=torch.float32) / max(self.waves - 1, 1)
        angle = pos[..., None].float() * torch.exp(step * -math.log(10000.0))
        wave = torch.cat([angle.sin(), angle.cos()], -1).to(x.dtype)
        return x + torch.nn.functional.pad(wave, (0, x.shape[-1] - wave.shape[-1]))


class Rotary(Position):
    """Rotation of pairs by `pos / base**(2i/D)`, frequencies in fp32; D is the part of a head's width that turns."""

    def __init__(self, width: int, spec: parts.Rotary) -> None:
        super().__init__()
        self.width, self.spec = int(width * spec.share), spec

    def frequencies(self, device: torch.device) -> Tensor:
        """Radians a position turns each pair, after scaling: `D/2` values."""
        i = torch.arange(0, self.width, 2, dtype=torch.int64, device=device).float()
        free = 1.0 / (self.spec.base ** (i / self.width))
        match self.spec.scaling:
            case parts.LinearScaling(factor):
                return free / factor
            case parts.Llama3Scaling(factor, low, high, context):
                turns = context * free / (2 * math.pi)  # full turns within the original context
                ramp = ((turns - low) / (high - low)).clamp(0, 1)
                return (1 - ramp) * free / factor + ramp * free
        return free

    def turn(self, pos: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        angle = pos[:, None, :, None].float() * self.frequencies(pos.device)  # B 1 T D/2
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        pairs = rotate_neighbours if self.spec.interleaved else rotate

        def turn(x: Tensor) -> Tensor:
            if self.width == x.shape[-1]:
                return pairs(x, cos, sin)
            return torch.cat([pairs(x[..., : self.width], cos, sin), x[..., self.width :]], -1)

        return turn


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # B H T D
    """`x` with its halves turned by angles (B 1 T D/2)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def rotate_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # B H T D
    """`x` with pairs of neighbours turned by angles (B 1 T D/2)."""
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


class Buckets(Position):
    """T5's table of biases by bucketed distance; `both`: keys on either side are seen."""

    def __init__(self, heads: int, both: bool, spec: parts.Buckets) -> None:
        super().__init__()
        self.spec, self.both = spec, both
        self.table = nn.Embedding(spec.buckets, heads)

    def bucket(self, offset: Tensor) -> Tensor:
        """The bucket of each `offset` (key position minus query position)."""
        n = self.spec.buckets // 2 if self.both else self.spec.buckets
        side = (offset > 0).long() * n if self.both else torch.zeros_like(offset)
        far = offset.abs() if self.both else (-offset).clamp(min=0)
        exact = n // 2
        grown = torch.log(far.clamp(min=1).float() / exact) / math.log(self.spec.distance / exact) * (n - exact)
        return side + torch.where(far < exact, far, (exact + grown.long()).clamp(max=n - 1))

    def bias(self, qpos: Tensor, kpos: Tensor) -> Tensor | None:
        biases = self.table(self.bucket(kpos[:, None, :] - qpos[:, :, None]))
        return biases.permute(0, 3, 1, 2).contiguous()  # every layer reads it


class LayerBuckets(Buckets):
    """The same with a table in every layer and none of the stack's own."""

    def __init__(self, heads: int, both: bool, spec: parts.Buckets) -> None:
        super().__init__(heads, both, spec)
        self.heads = heads
        del self.table

    def bias(self, qpos: Tensor, kpos: Tensor) -> Tensor | None:
        return None

    def relative(self, qpos: Tensor, kpos: Tensor, *_: Any) -> Tensor:  # B T, B S -> B T S
        return self.bucket(kpos[:, None, :] - qpos[:, :, None])

    def layer(self) -> Any:
        from stemma.nn.attention import BucketTable  # which works with what this module says

        return BucketTable(self.spec.buckets, self.heads)


def position(spec: parts.Position, dims: parts.Dims, both: bool) -> Position:
    """The module of a position spec for one stack; `both`: its tokens see to both sides."""
    match spec:
        case parts.Learned(padding, offset):
            return Learned(dims.context, dims.embed_width, padding, offset)
        case parts.Sinusoidal():
            return Sinusoidal(dims.embed_width)
        case parts.Rotary(share=share):
            if int(dims.width * share) % 2 or int(dims.width * share) == 0:
                raise UsageError(
                    f"rotary positions turn pairs: the part of a head that turns must be even, not "
                    f"{int(dims.width * share)} of {dims.width}"
                )
            return Rotary(dims.width, spec)
        case parts.LayerBuckets():
            return LayerBuckets(dims.heads, both, spec)
        case parts.Buckets():
            return Buckets(dims.heads, both, spec)
