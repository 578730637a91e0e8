"""Weights stored in fewer bits and computed with in the dtype of the model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stemma.quantize.native import int8_product
from stemma.rewrites.frozen import Frozen, FrozenLinear
from stemma.rewrites.modules import Blocks, Rewritten

DTYPES = {"int8": torch.int8, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Stored(Frozen):
    """`codes`: the stored weight, or the bytes of its blocks, of which `unpack` makes numbers; `scale`: its factor a
    row (int8), else empty, in the dtype that is computed in."""

    codes: Tensor
    scale: Tensor
    unpack: Callable[[Tensor], Tensor] | None

    def __init__(self, dtype: str, plain: nn.Module) -> None:
        super().__init__(plain)
        self.stored, self.unpack = DTYPES.get(dtype), None  # None: as the file has it
        with torch.device("meta"):
            self.register_buffer("codes", torch.empty(self.shapes["weight"], dtype=self.stored))
            self.register_buffer("scale", torch.empty(self.shapes["weight"][0] if self.scaled else 0, 1))

    @property
    def scaled(self) -> bool:
        return self.stored == torch.int8

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return self.scale.dtype

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def weight(self) -> Tensor:
        """The weight that is computed with."""
        wide = self.wide(self.codes)
        return wide * self.scale if self.scaled else wide

    def wide(self, codes: Tensor) -> Tensor:
        """Rows of codes (N ...) in the dtype that is computed in: N D."""
        return (codes if self.unpack is None else self.unpack(codes)).to(self.scale.dtype)

    def store(self, value: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        value = value.detach().to(device)
        if not self.scaled:
            self.codes = torch.empty(value.shape, dtype=self.stored or value.dtype, device=device).copy_(value)
            self.scale, self.unpack = torch.empty(0, 1, dtype=dtype, device=device), None
            return
        wide = value.float()
        self.scale = (wide.abs().amax(1, keepdim=True) / 127).to(dtype)
        step = torch.where(self.scale == 0, 1.0, self.scale.float())
        self.codes = (wide / step).round().clamp(-127, 127).to(torch.int8)

    def load_blocks(self, name: str, blocks: Blocks, device: torch.device, dtype: torch.dtype) -> None:
        if self.stored is not None or name != "weight":
            super().load_blocks(name, blocks, device, dtype)
            return
        self.codes, self.unpack = blocks.data.to(device, copy=True), blocks.unpack
        self.scale = torch.empty(0, 1, dtype=dtype, device=device)

    def empty_like(self, other: Rewritten) -> None:
        if isinstance(other, Stored):
            self.codes, self.scale = (torch.empty_like(t, device="cpu") for t in (other.codes, other.scale))
            self.unpack = other.unpack


class StoredLinear(Stored, FrozenLinear):
    """`x w^T + b`."""

    def __init__(self, dtype: str, plain: nn.Module) -> None:
        super().__init__(dtype, plain)
        self.kept, self.quick = "the file's types" if dtype == "file" else dtype, self.scaled

    def product(self, x: Tensor) -> Tensor | None:
        return int8_product(self.codes, self.scale, x) if self.scaled else None


class StoredEmbedding(Stored):
    """Rows of the table; only those that are looked up are made of codes."""

    def __init__(self, dtype: str, plain: nn.Module) -> None:
        super().__init__(dtype, plain)
        self.num_embeddings, self.embedding_dim = self.shapes["weight"]

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.wide(self.codes[ids].flatten(0, -2)).unflatten(0, ids.shape)
        return rows * self.scale[ids] if self.scaled else rows

    def merge(self) -> nn.Module:
        made = nn.Embedding(self.num_embeddings, self.embedding_dim, device="meta")
        made.weight = nn.Parameter(self.weight)
        return made


def weight_only(dtype: str, plain: nn.Module) -> Stored:
    """The module that stores the weight of `plain` as `dtype`."""
    kind = plain.plain if isinstance(plain, Rewritten) else type(plain)
    return (StoredEmbedding if issubclass(kind, nn.Embedding) else StoredLinear)(dtype, plain)
