"""Linear layers whose weights are kept in NF4."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stemma.quantize.normal_float import NESTED, NF4Tensor, nf4
from stemma.rewrites.frozen import FrozenLinear

PARTS = ("codes", "absmax", "absmax2", "offset")


class NF4Linear(FrozenLinear):
    """`x w^T + b` with `w` in NF4 (see `stemma.quantize.NF4Tensor` for the buffers). `like` (empty) has the dtype that
    is computed in."""

    codes: Tensor
    absmax: Tensor
    absmax2: Tensor | None
    offset: Tensor | None
    like: Tensor

    def __init__(self, block: int, double: bool, plain: nn.Module) -> None:
        super().__init__(plain)
        self.block, self.nested = block, double
        n = self.shapes["weight"].numel()
        scales = -(-n // block)
        with torch.device("meta"):
            self.register_buffer("codes", torch.empty(-(-n // 2), dtype=torch.uint8))
            self.register_buffer("absmax", torch.empty(scales, dtype=torch.uint8 if double else torch.float32))
            self.register_buffer("absmax2", torch.empty(-(-scales // NESTED)) if double else None)
            self.register_buffer("offset", torch.empty(()) if double else None)
            self.register_buffer("like", torch.empty(0), persistent=False)

    @property
    def kept(self) -> str:
        return "NF4"

    @property
    def quick(self) -> bool:
        return True

    @property
    def quantized(self) -> NF4Tensor:
        """The weight as it is kept."""
        shape = self.shapes["weight"]
        return NF4Tensor(self.codes, self.absmax, shape, self.block, self.absmax2, self.offset)

    @property
    def weight(self) -> Tensor:
        """The weight that is computed with."""
        return self.quantized.dequantize(self.like.dtype)

    def product(self, x: Tensor) -> Tensor | None:
        return self.quantized.product(x)

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        """Casts of the model change what is computed in, and leave the scales in fp32."""
        kept = {name: getattr(self, name) for name in ("absmax2", "offset", "absmax")}
        super()._apply(fn, recurse)
        for name, old in kept.items():
            now = getattr(self, name)
            if now is not None and now.dtype != old.dtype:
                setattr(self, name, old.to(now.device))
        return self

    def store(self, value: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        self.like = torch.empty(0, dtype=dtype, device=device)
        if device.type == "meta":
            return
        made = nf4(value.detach().to(device), self.block, self.nested)
        for part in PARTS:
            setattr(self, part, getattr(made, part))
