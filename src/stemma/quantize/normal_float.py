"""NormalFloat of 4 bits with double quantisation (Dettmers et al. 2023, section 3), bit for bit as bitsandbytes' CPU
code computes it.

A block of weights is divided by its largest absolute value and rounded to 16 levels, the quantiles of a normal
distribution. The blocks' scales, less their mean, are quantised again: 8 bits each, in blocks of 256.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.errors import UsageError
from stemma.quantize.native import NF4Matrix

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # weights to a scale
NESTED = 256  # scales to a scale of scales
CHUNK = 1 << 18  # weights quantised at a time, of whole blocks: what lies between stays small
GRID = 65_535 / 2  # steps of the grid on [-1, 1] that 8-bit codes are looked up on

# fp32 numbers, as published with the paper's code
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@functools.cache
def levels() -> Tensor:
    """The 16 numbers of a code, ascending: 16, fp32."""
    return torch.tensor(LEVELS)


@functools.cache
def dynamic() -> Tensor:
    """The 256 numbers of an 8-bit code, ascending: signed fractions of 0 to 6 bits with a decimal exponent of -6 to 0
    (Dettmers 2016, arXiv:1511.04561), 0 and 1. 256, fp32."""
    numbers = [0.0, 1.0]
    for bits in range(7):
        edges = torch.linspace(0.1, 1, 2**bits + 1)
        middles = 10 ** (bits - 6) * ((edges[:-1] + edges[1:]) / 2)
        numbers += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(numbers))


@functools.cache
def _nearest_dynamic() -> Tensor:
    """The 8-bit code that is nearest to each point of the grid: 65,536, uint8."""
    code = dynamic().double()
    points = torch.arange(65_536, dtype=torch.float64) / GRID - 1
    return torch.bucketize(points, (code[1:] + code[:-1]) / 2).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class NF4Tensor:
    """A tensor in NF4. `codes`: uint8, two weights a byte, the first in the high half. `absmax`: the blocks' scales,
    fp32; with double quantisation uint8 codes of `(scale - offset) / absmax2`, where `absmax2` (fp32) has one entry for
    256 of them."""

    codes: Tensor
    absmax: Tensor
    shape: torch.Size
    block: int
    absmax2: Tensor | None = None
    offset: Tensor | None = None

    @property
    def double(self) -> bool:
        """Whether the scales are quantised too."""
        return self.absmax2 is not None

    @property
    def scales(self) -> Tensor:
        """The scale of each block, fp32."""
        if self.absmax2 is None or self.offset is None:
            return self.absmax
        wide = _tables(self.absmax.device)[1][self.absmax.int()]
        return wide * self.absmax2.repeat_interleave(NESTED)[: len(wide)] + self.offset

    @property
    def indices(self) -> Tensor:
        """The level of each weight, 0 to 15: uint8, in the tensor's shape."""
        pairs = torch.stack([self.codes >> 4, self.codes & 15], 1).flatten()
        return pairs[: self.shape.numel()].view(self.shape)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights: level times scale, in fp32, cast to `dtype`."""
        if torch.compiler.is_compiling():
            numbers = F.pad(self.indices.flatten(), (0, len(self.absmax) * self.block - self.shape.numel()))
            wide = _tables(self.codes.device)[0][numbers.int()].view(-1, self.block) * self.scales[:, None]
            return wide.flatten()[: self.shape.numel()].view(self.shape).to(dtype)
        if (made := self.matrix.weights()) is not None:
            return made.view(self.shape).to(dtype)
        n = self.shape.numel()
        numbers = _pairs(self.codes.device).index_select(0, self.codes.int()).view(torch.float32)
        if short := len(self.absmax) * self.block - len(numbers):
            numbers = F.pad(numbers, (0, short))
        return numbers.view(-1, self.block).mul_(self.scales[:, None]).flatten()[:n].view(self.shape).to(dtype)

    def product(self, x: Tensor) -> Tensor | None:
        """`x w^T` (... D -> ... E) of the codes, for a matrix and a few vectors on a CPU; None where the weight has to
        be made for it (see `stemma.quantize.native`)."""
        return None if torch.compiler.is_compiling() else self.matrix.product(x, self.shape[0])

    @property
    def matrix(self) -> NF4Matrix:
        """What the kernels read."""
        return NF4Matrix(self.codes, self.absmax, self.block, self.absmax2, self.offset, levels(), dynamic())

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        parts = (self.codes, self.absmax, self.absmax2, self.offset)
        return sum(t.numel() * t.element_size() for t in parts if t is not None)

    @property
    def bits_per_weight(self) -> float:
        """Bits of codes and scales for each weight."""
        return 8 * self.nbytes / max(1, self.shape.numel())


def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """`levels` and `dynamic` on a device; in a compiled graph they are constants."""
    return _tables_of(device)


# what torch.compiler.assume_constant_result sets; that function imports the compiler, which takes a second
_tables._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def _tables_of(device: torch.device) -> tuple[Tensor, Tensor]:
    return levels().to(device), dynamic().to(device)


@functools.lru_cache(maxsize=8)
def _pairs(device: torch.device) -> Tensor:
    """The two levels of each byte, as the bits of one number of eight bytes: 256, int64. Looking up one of these is
    much faster than a row of two."""
    byte = torch.arange(256)
    return levels()[torch.stack([byte >> 4, byte & 15], 1)].view(torch.int64).flatten().to(device)


def nf4(tensor: Tensor, block: int = 64, double: bool = True) -> NF4Tensor:
    """Quantise a tensor, its entries in row-major order, `block` of them to a scale; `double`: the scales too.

    Raises UsageError for a block size that the format does not have, and for values that are not finite."""
    if block not in BLOCKS:
        raise UsageError(f"block={block} is no block size of NF4; use {', '.join(map(str, BLOCKS))}")
    if not tensor.is_floating_point():
        raise UsageError(f"NF4 holds weights, and this tensor is of {tensor.dtype}; give one of floating point")
    if tensor.numel() == 0:
        raise UsageError(f"NF4 needs at least one weight, and this tensor has shape {tuple(tensor.shape)}")
    flat = tensor.detach().reshape(-1)
    codes = torch.empty(-(-len(flat) // 2), dtype=torch.uint8, device=flat.device)
    absmax = torch.empty(-(-len(flat) // block), device=flat.device)
    bounds = ((levels()[1:] + levels()[:-1]) / 2).to(flat.device)
    for at in range(0, len(flat), CHUNK):
        scales, scaled = _scaled(flat[at : at + CHUNK].float(), block)
        absmax[at // block :][: len(scales)] = scales
        index = torch.bucketize(F.pad(scaled, (0, len(scaled) % 2)), bounds, out_int32=True).to(torch.uint8)
        codes[at // 2 :][: len(index) // 2] = index[::2] << 4 | index[1::2]
    if not bool(absmax.isfinite().all()):
        raise UsageError("NF4 cannot hold inf or nan, and this tensor has some")
    if not double:
        return NF4Tensor(codes, absmax, tensor.shape, block)
    offset = absmax.mean()
    absmax2, ratio = _scaled(absmax - offset, NESTED)
    point = ((ratio + 1) * GRID + 0.5).floor().long().clamp(0, 65_535)
    same = (absmax2 == 0).repeat_interleave(NESTED)[: len(point)]  # scales that are all the mean
    nested = _nearest_dynamic().to(flat.device)[point].masked_fill(same, 0)
    return NF4Tensor(codes, nested, tensor.shape, block, absmax2, offset)


def _scaled(flat: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The largest absolute value of each block, and the entries divided by it: full blocks by multiplying with its
    inverse, what is left over by division."""
    whole = len(flat) // block * block
    blocks = flat[:whole].view(-1, block)
    absmax = blocks.abs().amax(1)
    scaled = (blocks * (1.0 / absmax.clamp(min=1e-38))[:, None]).flatten()
    if whole < len(flat):
        rest = flat[whole:]
        largest = rest.abs().amax()
        absmax, scaled = torch.cat([absmax, largest[None]]), torch.cat([scaled, rest / largest.clamp(min=1e-38)])
    return absmax, scaled.clamp(-1, 1)
