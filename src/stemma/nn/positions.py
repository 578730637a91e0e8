"""How a stack knows the order of its tokens: one object a stack, with hooks.

`embed(x, pos)` adds to the embeddings, `turn(pos)` turns queries and keys, `bias(qpos, kpos)` adds to the scores, and
`relative(qpos, kpos)` is what each layer's own part (`layer`, an `attention.Relative`) needs to do so. Each scheme uses
one hook and leaves the others as they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from stemma.nn import parts
from stemma.nn.attention import BucketTable, Relative, Rotate


class Position(nn.Module):
    """The hooks, each doing nothing. `pos` is B T, or B T C where a scheme counts in C ways at once."""

    limit: int | None = None  # longest text that this scheme can number
    zero_padding = False  # whether padding is zero among the embeddings, and sees nothing
    segments = False  # whether it reads the segments of tokens too
    length_dependent = False  # whether a token more changes what all before it are told: then nothing can be kept
    columns = 1  # in how many ways it counts
    first = 0  # the number of a text's first token

    def number(self, ids: Tensor, start: int = 0) -> Tensor:  # B T -> 1|B T
        """The position of every token of `ids`, of which the first stands at `start`."""
        return torch.arange(start, start + ids.shape[1], device=ids.device)[None]

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:  # B T D, B T -> B T D
        return x

    def rotation(self, pos: Tensor, dtype: torch.dtype) -> Rotate | None:
        return None

    def bias(self, qpos: Tensor, kpos: Tensor) -> Tensor | None:  # B T, B S -> B H T S
        return None

    def relative(self, qpos: Tensor, kpos: Tensor, is_arange: bool) -> Any:
        """`plain`: queries and keys are known to stand at 0..T-1."""
        return None

    def layer(self) -> Relative | None:
        """The part of this scheme that one layer's attention owns."""
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

    def __init__(self, width: int, context: int, spec: parts.Rotary) -> None:
        super().__init__()
        self.width, self.context, self.spec = int(width * spec.share), context, spec
        self.length_dependent = isinstance(spec.scaling, parts.DynamicScaling)

    def frequencies(self, device: torch.device, length: Tensor | None = None) -> Tensor:
        """Radians a position turns each pair, after scaling: `D/2` values. `length` (1|B 1): tokens of the text; with a
        scaling that goes by it the result is `1|B 1 D/2`."""
        i = torch.arange(0, self.width, 2, dtype=torch.int64, device=device).float() / self.width
        free = 1.0 / (self.spec.base**i)
        pairs = self.width // 2
        match self.spec.scaling:
            case parts.LinearScaling(factor):
                return free / factor
            case parts.NTKScaling(factor):
                return 1.0 / (self.spec.base * factor ** (self.width / (self.width - 2))) ** i
            case parts.DynamicScaling(factor) if length is not None:
                grown = (factor * length / self.context - (factor - 1)) ** (self.width / (self.width - 2))
                grown = torch.where(length > self.context, grown, 1.0)  # 1|B 1
                return 1.0 / ((self.spec.base * grown)[..., None] ** i)
            case parts.YarnScaling() as yarn:
                ramp = self.yarn_ramp(yarn, device)
                return free / yarn.factor * ramp + free * (1 - ramp)
            case parts.Llama3Scaling(factor, low, high, context):
                turns = context * free / (2 * math.pi)  # full turns within the original context
                ramp = ((turns - low) / (high - low)).clamp(0, 1)
                return (1 - ramp) * free / factor + ramp * free
            case parts.TruncatedScaling(context):
                cut = 2 * math.pi / context
                return torch.where(free >= cut, free, torch.where(free >= cut / 8, cut / 16, 0.0))
            case parts.PowerScaling(power):
                return free * (1 - torch.arange(pairs, device=device) / pairs) ** power
        return free

    def yarn_ramp(self, yarn: parts.YarnScaling, device: torch.device) -> Tensor:
        """How far each of the D/2 pairs is interpolated: 0 for the short waves, 1 for the long ones."""

        def pair(turns: float) -> float:  # the pair that makes so many turns within the original context
            waves = math.log(yarn.context / (turns * 2 * math.pi))
            return self.width * waves / (2 * math.log(self.spec.base))

        low, high = pair(yarn.fast), pair(yarn.slow)
        if yarn.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.width - 1)
        high += 0.001 if low == high else 0.0
        return ((torch.arange(self.width // 2, dtype=torch.float32, device=device) - low) / (high - low)).clamp(0, 1)

    def rotation(self, pos: Tensor, dtype: torch.dtype) -> Rotate:
        free = self.frequencies(pos.device, pos.amax(-1, keepdim=True) + 1)
        angle = pos[:, None, :, None].float() * (free if free.ndim == 1 else free[:, None])  # 1|B 1 T D/2
        cos, sin = angle.cos(), angle.sin()
        if isinstance(self.spec.scaling, parts.YarnScaling):
            size = yarn_attention(self.spec.scaling)
            cos, sin = cos * size, sin * size
        cos, sin = cos.to(dtype), sin.to(dtype)
        pairs = rotate_neighbours if self.spec.interleaved else rotate

        def rotate_share(x: Tensor) -> Tensor:
            if self.width == x.shape[-1]:
                return pairs(x, cos, sin)
            return torch.cat([pairs(x[..., : self.width], cos, sin), x[..., self.width :]], -1)

        return rotate_share


def yarn_attention(spec: parts.YarnScaling) -> float:
    """What YaRN multiplies queries and keys by."""

    def size(weight: float) -> float:
        return 0.1 * weight * math.log(spec.factor) + 1.0 if spec.factor > 1 else 1.0

    if spec.attention is not None:
        return spec.attention
    return size(spec.mscale) / size(spec.mscale_all) if spec.mscale and spec.mscale_all else size(1.0)


class Blanks(Position):
    """Places are pairs: in the text, where all that fills a blank has the place of the blank, and in the blank, from 1
    on (0 outside). A text without blanks is numbered 0, 1, ... and 0."""

    columns = 2

    def number(self, ids: Tensor, start: int = 0) -> Tensor:  # B T -> 1 T 2
        place = super().number(ids, start)
        return torch.stack([place, torch.zeros_like(place)], -1)


class BlankLearned(Blanks):
    """A table for each of the two."""

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.limit = context + 1
        self.table = nn.Embedding(self.limit, width)
        self.blanks = nn.Embedding(self.limit, width)

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:  # B T D, B T 2 -> B T D
        return x + (self.table(pos[..., 0]) + self.blanks(pos[..., 1]))


class BlankRotary(Blanks):
    """The first half of a head turns with the place in the text, the second with the place in the blank."""

    def __init__(self, width: int, context: int, spec: parts.BlankRotary) -> None:
        super().__init__()
        self.rotary = Rotary(width // 2, context, parts.Rotary(spec.base))

    def rotation(self, pos: Tensor, dtype: torch.dtype) -> Rotate:
        rotations = [self.rotary.rotation(pos[..., i], dtype) for i in range(2)]
        return lambda x: torch.cat([f(half) for f, half in zip(rotations, x.chunk(2, -1), strict=True)], -1)


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

    def layer(self) -> BucketTable:
        return BucketTable(self.spec.buckets, self.heads)
