"""Position encodings: one module a stack, with hooks that do nothing unless a scheme overrides them.

`embed(x, pos)` adds to the embeddings; `rotation(pos, dtype)` returns a function that rotates queries and keys;
`bias(qpos, kpos)` is added to the scores; `relative(qpos, kpos)` is passed to the part that each layer owns (`layer()`,
an `attention.Relative`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from stemma.nn import parts
from stemma.nn.attention import BucketTable, Relative, Rotate
from stemma.nn.functional import rows_of
from stemma.nn.mixed import cast


class Position(nn.Module):
    """A scheme without effect. `pos` is B T, or B T C where a scheme has C positions a token."""

    limit: int | None = None  # longest text that has positions
    zero_padding = False  # padding is zero in the embeddings, and sees nothing
    segments = False  # segments are read by attention, not added to the embeddings
    length_dependent = False  # one more token changes the rotation of all earlier ones: nothing can be cached
    columns = 1  # positions a token
    adds_scores = False  # it adds a number for each query and key to the scores, so attention takes rows whole
    first = 0  # position of a text's first token
    exact = False  # scores are fp32 whatever the precision

    def number(self, ids: Tensor, start: int = 0) -> Tensor:  # B T -> 1|B T
        """Positions of `ids`, the next tokens of a text after `start` others."""
        return torch.arange(start, start + ids.shape[1], device=ids.device)[None]

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:  # B T D, B T -> B T D
        return x

    def rotation(self, pos: Tensor, dtype: torch.dtype) -> Rotate | None:
        return None

    def rotations(self, pos: Tensor, dtype: torch.dtype, rows: int) -> tuple[Rotate | None, Rotate | None]:
        """The rotation of queries, and that of keys where it is another one. `rows`: of the batch, of positions that
        differ by row."""
        return self.rotation(pos, dtype), None

    def bias(self, qpos: Tensor, kpos: Tensor) -> Tensor | None:  # B T, B S -> B H T S
        return None

    def relative(self, qpos: Tensor, kpos: Tensor, is_arange: bool) -> Any:
        """The input of `layer()`. `is_arange`: queries and keys are known to be at 0..T-1."""
        return None

    def layer(self) -> Relative | None:
        """The part that the attention of one layer owns."""
        return None


class Learned(Position):
    """A learned table. With `padding`, ids equal to it are not counted, and positions begin after it (RoBERTa). The
    first `offset` rows are unused (BART)."""

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
        return x + cast(rows_of(self.table, pos, "position_ids", self.offset), x)


class Sinusoidal(Position):
    """Sines in the first half of the width, cosines in the second, as in tensor2tensor."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.waves = d_model // 2

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        step = torch.arange(self.waves, device=x.device, dtype=torch.float32) / max(self.waves - 1, 1)
        angle = pos[..., None].float() * torch.exp(step * -math.log(10000.0))
        wave = torch.cat([angle.sin(), angle.cos()], -1).to(x.dtype)
        return x + torch.nn.functional.pad(wave, (0, x.shape[-1] - wave.shape[-1]))


class Rotary(Position):
    """Rotary embeddings: pair i of a head turns by `pos / base**(2i/D)`, in fp32. D: the rotated part of a head's
    width."""

    def __init__(self, width: int, context: int, spec: parts.Rotary) -> None:
        super().__init__()
        self.width, self.context, self.spec = int(width * spec.share), context, spec
        self.length_dependent = isinstance(spec.scaling, parts.DynamicScaling)
        self.exact = isinstance(spec.scaling, parts.XPosScaling)
        self.falling: float | None = spec.scaling.first if isinstance(spec.scaling, parts.XPosScaling) else None

    def at_step(self, step: float, steps: float) -> None:
        """Say how much of a training is over; xPos's base falls by it."""
        if isinstance(self.spec.scaling, parts.XPosScaling):
            self.falling = self.spec.scaling.at(step, steps)

    def frequencies(self, device: torch.device, length: Tensor | None = None) -> Tensor:
        """Radians a position for each pair, after scaling: D/2. Dynamic scaling depends on the text's `length` (1|B 1):
        1|B 1 D/2."""
        i = torch.arange(0, self.width, 2, dtype=torch.int64, device=device).float() / self.width
        free = 1.0 / (self.spec.base**i)
        pairs = self.width // 2
        match self.spec.scaling:
            case parts.LinearScaling(factor) | parts.RandomScaling(factor):
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
                turns = context * free / (2 * math.pi)  # rotations within the original context
                ramp = ((turns - low) / (high - low)).clamp(0, 1)
                return (1 - ramp) * free / factor + ramp * free
            case parts.TruncatedScaling(context):
                cut = 2 * math.pi / context
                return torch.where(free >= cut, free, torch.where(free >= cut / 8, cut / 16, 0.0))
            case parts.PowerScaling(power):
                return free * (1 - torch.arange(pairs, device=device) / pairs) ** power
        return free

    def yarn_ramp(self, yarn: parts.YarnScaling, device: torch.device) -> Tensor:
        """Share of interpolation of each of the D/2 pairs: 0 for high frequencies, 1 for low ones (Peng et al.
        2023)."""

        def pair(turns: float) -> float:  # the pair with this many rotations within the original context
            waves = math.log(yarn.context / (turns * 2 * math.pi))
            return self.width * waves / (2 * math.log(self.spec.base))

        low, high = pair(yarn.fast), pair(yarn.slow)
        if yarn.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.width - 1)
        high += 0.001 if low == high else 0.0
        return ((torch.arange(self.width // 2, dtype=torch.float32, device=device) - low) / (high - low)).clamp(0, 1)

    def rotations(self, pos: Tensor, dtype: torch.dtype, rows: int) -> tuple[Rotate, Rotate | None]:
        match self.spec.scaling:
            case parts.RandomScaling() if self.training:
                return self.rotation(random_positions(pos.expand(rows, -1)), dtype), None
            case parts.XPosScaling() as spec:
                grown = self.growth(spec, pos)
                return self._rotation(pos, torch.float32, grown), self._rotation(pos, torch.float32, 1 / grown)
        return self.rotation(pos, dtype), None

    def growth(self, spec: parts.XPosScaling, pos: Tensor) -> Tensor:
        """xPos's factor of queries, whose inverse is that of keys: 1|B T -> 1|B 1 T D/2."""
        i = torch.arange(0, self.width, 2, dtype=torch.float32, device=pos.device)
        base = self.falling if self.training and self.falling is not None else spec.base
        power = (pos[:, None, :, None].float() - self.context // 2) / base
        return ((i + 0.4 * self.width) / (1.4 * self.width)) ** power

    def rotation(self, pos: Tensor, dtype: torch.dtype) -> Rotate:
        return self._rotation(pos, dtype)

    def cos_sin(self, pos: Tensor, grown: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cosines and sines of each pair (1|B 1 T D/2, fp32), times YaRN's factor and what `growth` gave."""
        free = self.frequencies(pos.device, pos.amax(-1, keepdim=True) + 1)
        angle = pos[:, None, :, None].float() * (free if free.ndim == 1 else free[:, None])  # 1|B 1 T D/2
        cos, sin = angle.cos(), angle.sin()
        if isinstance(self.spec.scaling, parts.YarnScaling):
            size = yarn_attention(self.spec.scaling)
            cos, sin = cos * size, sin * size
        return (cos, sin) if grown is None else (cos * grown, sin * grown)

    @property
    def neighbours(self) -> bool:
        """Whether pairs are (2i, 2i + 1), not the halves (i, i + D/2)."""
        return self.spec.interleaved or (
            isinstance(self.spec.scaling, parts.XPosScaling) and self.spec.scaling.neighbours
        )

    def _rotation(self, pos: Tensor, dtype: torch.dtype, grown: Tensor | None = None) -> Rotate:
        cos, sin = (x.to(dtype) for x in self.cos_sin(pos, grown))
        pairs = rotate_neighbours if self.neighbours else rotate

        def rotate_share(x: Tensor) -> Tensor:
            if self.width == x.shape[-1]:
                return pairs(x, cos, sin)
            return torch.cat([pairs(x[..., : self.width], cos, sin), x[..., self.width :]], -1)

        return rotate_share


def random_positions(pos: Tensor) -> Tensor:  # B T -> B T
    """Running sums of steps from U(0, 2), shrunk where they exceed the length."""
    found = torch.cumsum(2 * torch.rand(pos.shape, device=pos.device), -1)
    length = torch.tensor(float(pos.shape[-1]), device=pos.device)
    return pos[:, :1] + found * (length / torch.maximum(found[:, -1:], length))


def yarn_attention(spec: parts.YarnScaling) -> float:
    """YaRN's factor for queries and keys."""

    def size(weight: float) -> float:
        return 0.1 * weight * math.log(spec.factor) + 1.0 if spec.factor > 1 else 1.0

    if spec.attention is not None:
        return spec.attention
    return size(spec.mscale) / size(spec.mscale_all) if spec.mscale and spec.mscale_all else size(1.0)


class Blanks(Position):
    """GLM's pairs of positions (Du et al. 2022, section 2.2): the index in the text, which for the filling of a blank
    is that of the blank, and the index within the filling, from 1 (0 outside). Without blanks: (0, 0), (1, 0), ..."""

    columns = 2

    def number(self, ids: Tensor, start: int = 0) -> Tensor:  # B T -> 1 T 2
        place = super().number(ids, start)
        return torch.stack([place, torch.zeros_like(place)], -1)


class BlankLearned(Blanks):
    """A learned table for each of the two positions."""

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.limit = context + 1
        self.table = nn.Embedding(self.limit, width)
        self.blanks = nn.Embedding(self.limit, width)

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:  # B T D, B T 2 -> B T D
        return x + cast(self.table(pos[..., 0]) + self.blanks(pos[..., 1]), x)


class BlankRotary(Blanks):
    """Rotary embeddings: the first half of a head by the position in the text, the second by that in the blank."""

    def __init__(self, width: int, context: int, spec: parts.BlankRotary) -> None:
        super().__init__()
        self.rotary = Rotary(width // 2, context, parts.Rotary(spec.base))

    def rotation(self, pos: Tensor, dtype: torch.dtype) -> Rotate:
        rotations = [self.rotary.rotation(pos[..., i], dtype) for i in range(2)]
        return lambda x: torch.cat([f(half) for f, half in zip(rotations, x.chunk(2, -1), strict=True)], -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # B H T D
    """Rotate pairs (i, i + D/2) by the angles of `cos` and `sin` (B 1 T D/2)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def rotate_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # B H T D
    """Rotate pairs (2i, 2i + 1) by the angles of `cos` and `sin` (B 1 T D/2)."""
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


def slopes(heads: int, max_bias: float, device: torch.device | None = None) -> Tensor:
    """ALiBi's slope of each head (Press et al. 2021, section 3, and their code for a number that is no power of 2)."""
    low = 1 << (heads.bit_length() - 1)
    index = torch.arange(heads, device=device)
    halves = torch.where(index < low, 2 * index + 2, 2 * (index - low) + 1)  # of a step of the lower power
    return torch.exp2(halves * (-max_bias / (2 * low)))


class ALiBi(Position):
    """A bias of every head that falls with the distance. `own`: the heads whose scores are computed here (of several
    ranks that share them out)."""

    adds_scores = True

    def __init__(self, heads: int, spec: parts.ALiBi) -> None:
        super().__init__()
        self.heads, self.max_bias, self.own = heads, spec.max_bias, slice(None)

    def bias(self, qpos: Tensor, kpos: Tensor) -> Tensor | None:
        slope = slopes(self.heads, self.max_bias, qpos.device)[self.own, None, None]
        return (kpos[:, None, :] - qpos[:, :, None]).abs()[:, None].float() * -slope


class Buckets(Position):
    """T5's relative bias: a table of biases by bucketed distance. `both`: bidirectional, half of the buckets a side."""

    adds_scores = True

    def __init__(self, heads: int, both: bool, spec: parts.Buckets) -> None:
        super().__init__()
        self.spec, self.both = spec, both
        self.table = nn.Embedding(spec.buckets, heads)

    def bucket(self, offset: Tensor) -> Tensor:
        """The bucket of each `offset`, key position minus query position. Exact up to half, then logarithmic."""
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
    """T5's relative bias with a table in every layer (UMT5)."""

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
