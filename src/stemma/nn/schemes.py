"""From a position spec to its module."""

from __future__ import annotations

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.disentangled import Disentangled
from stemma.nn.positions import (
    ALiBi,
    BlankLearned,
    BlankRotary,
    Buckets,
    LayerBuckets,
    Learned,
    Position,
    Rotary,
    Sinusoidal,
)
from stemma.nn.relative_sinusoidal import RelativeSinusoidal


def position(spec: parts.Position, arch: parts.Arch, dims: parts.Dims, both: bool) -> Position:
    """The module of a position spec for one stack. `both`: the stack is bidirectional."""
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
            return Rotary(dims.width, dims.context, spec)
        case parts.LayerBuckets():
            return LayerBuckets(dims.heads, both, spec)
        case parts.Buckets():
            return Buckets(dims.heads, both, spec)
        case parts.ALiBi():
            return ALiBi(dims.heads, spec)
        case parts.Disentangled():
            return Disentangled(spec, arch, dims)
        case parts.RelativeSinusoidal():
            return RelativeSinusoidal(dims)
        case parts.BlankLearned():
            return BlankLearned(dims.context, dims.embed_width)
        case parts.BlankRotary():
            if dims.width % 4:
                raise UsageError(
                    f"two rotary positions turn pairs in each half of a head: its width must be a multiple of 4, not "
                    f"{dims.width}"
                )
            return BlankRotary(dims.width, dims.context, spec)
    return spec.build(arch, dims, both)
