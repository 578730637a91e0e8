"""A rewrite of one's own: a low-rank addition beside a frozen matrix, small enough to show all that a kind needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stemma.rewrites import Rewrite, Wrapped
from stemma.rewrites.modules import with_weight


@dataclass(frozen=True)
class LowRank(Rewrite):
    """`y = W x + b + up(down(x))` with `rank` rows between; W does not learn."""

    freezes = True

    rank: int = 4

    def replace(self, module: nn.Module) -> nn.Module:
        return LowRankLinear(self, module)


class LowRankLinear(Wrapped):
    def __init__(self, spec: LowRank, base: nn.Module) -> None:
        super().__init__(base)
        outputs, inputs = self.shapes["weight"]
        self.out_features, self.in_features = outputs, inputs
        self.down = nn.Parameter(torch.empty(spec.rank, inputs, device="meta"))
        self.up = nn.Parameter(torch.empty(outputs, spec.rank, device="meta"))

    def reset_parameters(self, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
        down = torch.randn(self.down.shape, generator=generator) * self.in_features**-0.5
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(self.up.shape, device=device))

    def trainable(self) -> Iterable[nn.Parameter]:
        return self.down, self.up

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out + (x @ self.down.t() @ self.up.t()).to(out.dtype)

    @property
    def weight(self) -> Tensor:
        held = self.base.weight
        assert isinstance(held, Tensor)
        return held + (self.up @ self.down).to(held.dtype)

    def merge(self) -> nn.Module:
        plain = self.merged_base()
        return with_weight(plain, plain.get_parameter("weight").detach() + self.up.detach() @ self.down.detach())
