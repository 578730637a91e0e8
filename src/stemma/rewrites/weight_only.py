"""Weights stored in fewer bits and computed with in the dtype of the model."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn.heads import LMHead, Product
from stemma.nn.mixed import Matrix, times
from stemma.quantize import blocks, native, packing
from stemma.rewrites.frozen import Frozen, FrozenLinear
from stemma.rewrites.modules import Blocks, Rewritten

CHUNK = 1 << 18  # weights quantised at a time: what lies between stays small
DTYPES = {"int8": torch.int8, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Stored(Frozen):
    """`codes`: the stored weight, or the bytes of its blocks, of which `unpack` makes numbers and whose type is `kind`
    (else empty), row after row or `packed` (`stemma.quantize.packing`); `scale`: its factor a row (int8), else empty,
    in the dtype that is computed in."""

    codes: Tensor
    scale: Tensor
    unpack: Callable[[Tensor], Tensor] | None
    kind: str

    def __init__(self, dtype: str, plain: nn.Module) -> None:
        super().__init__(plain)
        self.stored, self.unpack, self.kind = DTYPES.get(dtype), None, ""  # None: as the file has it
        self.rounds = self.packed = dtype.upper() in blocks.ROUNDED  # rounds: floats to blocks
        shape = self.shapes["weight"]
        if self.packed:
            self.kind = dtype.upper()
            self.unpack = functools.partial(blocks.numbers, self.kind)
            if shape[1] % blocks.BLOCK:
                size = " x ".join(map(str, shape))
                raise UsageError(f"{dtype} needs rows of a multiple of {blocks.BLOCK} weights, and a matrix has {size}")
            shape = torch.Size(packing.shape(self.kind, *shape))
        with torch.device("meta"):
            self.register_buffer("codes", torch.empty(shape, dtype=torch.uint8 if self.packed else self.stored))
            self.register_buffer("scale", torch.empty(shape[0] if self.scaled else 0, 1))

    @property
    def scaled(self) -> bool:
        return self.stored == torch.int8

    @property
    def quick(self) -> bool:
        return self.scaled or self.kind in native.BLOCKS

    @property
    def kept(self) -> str:
        return self.kind or str(self.codes.dtype).removeprefix("torch.")

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
        if self.packed and (made := native.packed_weights(self.kind, self.codes, *self.shapes["weight"])) is not None:
            return made.to(self.scale.dtype)
        wide = self.wide(self.rows())
        return wide * self.scale if self.scaled else wide

    def rows(self, ids: Tensor | None = None) -> Tensor:
        """Codes, or bytes of blocks, row after row; of the rows `ids` (N) alone where they are given."""
        if self.packed:
            return packing.rows(self.kind, self.codes, self.shapes["weight"][0], ids)
        return self.codes if ids is None else self.codes[ids]

    def wide(self, codes: Tensor) -> Tensor:
        """Rows of codes (N ...) in the dtype that is computed in: N D."""
        if self.unpack is not None:
            made = native.blocks_weights(self.kind, codes, self.shapes["weight"][1])
            elsewhere = codes.device.type != "cpu" or torch.compiler.is_compiling()
            if made is None and elsewhere and self.kind in blocks.READ:  # in PyTorch's operations
                made = blocks.numbers(self.kind, codes)
            codes = self.unpack(codes) if made is None else made
        return codes.to(self.scale.dtype)

    def product(self, x: Tensor) -> Tensor | None:
        if self.scaled:
            return native.int8_product(self.codes, self.scale, x)
        if self.packed:
            return native.packed_product(self.kind, self.codes, self.shapes["weight"][0], x)
        return native.blocks_product(self.kind, self.codes, x) if self.kind else None

    def store(self, value: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        value = value.detach().to(device)
        if self.rounds:
            self.pack(value, functools.partial(blocks.rounded, self.kind), dtype)
            return
        if not self.scaled:
            self.codes = torch.empty(value.shape, dtype=self.stored or value.dtype, device=device).copy_(value)
            self.scale = torch.empty(0, 1, dtype=dtype, device=device)
            self.unpack, self.kind, self.packed = None, "", False
            return
        self.codes = torch.empty(value.shape, dtype=torch.int8, device=device)
        self.scale = torch.empty(len(value), 1, dtype=dtype, device=device)
        rows = max(1, CHUNK // value.shape[1])
        for at in range(0, len(value), rows):
            wide = value[at : at + rows].float()
            scale = (wide.abs().amax(1, keepdim=True) / 127).to(dtype)
            step = torch.where(scale == 0, 1.0, scale.float())
            self.codes[at : at + rows] = (wide / step).round().clamp(-127, 127)
            self.scale[at : at + rows] = scale
        if device.type != "meta" and not bool(self.scale.isfinite().all()):
            raise UsageError("int8 cannot hold inf or nan, and this tensor has some")

    def pack(self, rows: Tensor, made: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        """Keep rows, of which `made` makes bytes of blocks, packed."""
        self.scale = torch.empty(0, 1, dtype=dtype, device=rows.device)
        shape = packing.shape(self.kind, *self.shapes["weight"])
        self.codes = torch.empty(shape, dtype=torch.uint8, device=rows.device)
        step = max(1, CHUNK // rows.shape[1] // packing.ROWS)
        for at in range(0, len(self.codes), step):
            some = rows[at * packing.ROWS : (at + step) * packing.ROWS]
            self.codes[at : at + step] = packing.packed(self.kind, made(some))

    def load_blocks(self, name: str, found: Blocks, device: torch.device, dtype: torch.dtype) -> None:
        other = self.kind != found.kind if self.rounds else self.stored is not None
        if other or name != "weight":
            super().load_blocks(name, found, device, dtype)
            return
        self.unpack, self.kind, self.packed = found.unpack, found.kind, found.kind in packing.LAYOUTS
        if self.packed:
            self.pack(found.data.to(device), lambda rows: rows, dtype)
            return
        self.codes, self.scale = found.data.to(device, copy=True), torch.empty(0, 1, dtype=dtype, device=device)

    def blocks(self, name: str) -> Blocks | None:
        if self.unpack is None or name != "weight":
            return None
        return Blocks(self.rows(), self.unpack, self.kind)

    def empty_like(self, other: Rewritten) -> None:
        if isinstance(other, Stored):
            self.codes, self.scale = (torch.empty_like(t, device="cpu") for t in (other.codes, other.scale))
            self.unpack, self.kind, self.packed = other.unpack, other.kind, other.packed


class StoredLinear(Stored, FrozenLinear):
    """`x w^T + b`."""


class StoredEmbedding(Stored):
    """Rows of the table; only those that are looked up are made of codes."""

    def __init__(self, dtype: str, plain: nn.Module) -> None:
        super().__init__(dtype, plain)
        self.num_embeddings, self.embedding_dim = self.shapes["weight"]

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.wide(self.rows(ids.flatten())).unflatten(0, ids.shape)
        return rows * self.scale[ids] if self.scaled else rows

    def merge(self) -> nn.Module:
        made = nn.Embedding(self.num_embeddings, self.embedding_dim, device="meta")
        made.weight = nn.Parameter(self.weight)
        return made


class StoredHead(Stored):
    """A language-model head with a matrix of its own. `head`: what else it does."""

    def __init__(self, dtype: str, plain: nn.Module) -> None:
        if isinstance(plain, LMHead) and plain.weight is None:
            raise UsageError("WeightOnly: this head is tied to the embeddings and follows them; leave it out")
        super().__init__(dtype, plain)
        self.head: LMHead = copy.copy(plain.head if isinstance(plain, StoredHead) else cast(LMHead, plain))
        self.head._parameters = dict.fromkeys(("weight", "bias"))
        self.shape = self.head.shape

    def forward(self, x: Tensor, tokens: Tensor | Matrix, product: Product = times) -> Tensor:
        def own(x: Tensor, weight: Tensor | Matrix, bias: Tensor | None) -> Tensor:
            return product(x, weight, self.bias)

        y: Tensor = self.head(x, self, own)
        return y

    def merge(self) -> nn.Module:
        made = copy.copy(self.head)
        made._parameters = {"weight": nn.Parameter(self.weight), "bias": self.bias}
        return made


def weight_only(dtype: str, plain: nn.Module) -> Stored:
    """The module that stores the weight of `plain` as `dtype`."""
    kind = plain.plain if isinstance(plain, Rewritten) else type(plain)
    made = {nn.Embedding: StoredEmbedding, LMHead: StoredHead}
    return next((new for old, new in made.items() if issubclass(kind, old)), StoredLinear)(dtype, plain)
