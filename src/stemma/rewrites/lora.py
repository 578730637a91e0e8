"""Low-rank adapters beside linear layers: LoRA, its rank-stabilised scale, and DoRA."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.rewrites.modules import Rewritten, Wrapped, with_weight


class Settings(Protocol):
    """What a layer needs of `stemma.rewrites.LoRA`."""

    @property
    def rank(self) -> int: ...
    @property
    def dropout(self) -> float: ...
    @property
    def dora(self) -> bool: ...
    @property
    def share(self) -> tuple[str, ...]: ...
    @property
    def name(self) -> str: ...
    @property
    def scale(self) -> float: ...


class Down(nn.Module):
    """The matrix A: D -> R. Modules may share it."""

    def __init__(self, rank: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rank, width, device="meta"))

    def reset_parameters(self, generator: torch.Generator, device: torch.device) -> None:
        """Uniform within 1 / sqrt(D), as Hu et al.'s code draws it."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        drawn = torch.empty(self.weight.shape).uniform_(-bound, bound, generator=generator)
        self.weight = nn.Parameter(drawn.to(device))


class LoRALinear(Wrapped):
    """`base(x) + strength * scale * B A x`; for DoRA each output is scaled as well. `strength`: 1, 0 (off), or the
    adapter's share in a mixture. `shares`: rows of the batch (N) and their strength, where it is not the same for all
    (see `adapters.ByRow`)."""

    shares: Sequence[tuple[Tensor, float]] | None = None

    def __init__(self, spec: Settings, base: nn.Module) -> None:
        super().__init__(base)
        self.spec, self.strength, self.first = spec, 1.0, True
        out, width = self.matrix()
        self.down = Down(spec.rank, width)
        self.up = nn.Parameter(torch.empty(out, spec.rank, device="meta"))
        self.length = nn.Parameter(torch.empty(out, device="meta")) if spec.dora else None

    def matrix(self) -> tuple[int, int]:
        """Outputs and inputs."""
        out, width = self.shapes["weight"]
        return out, width

    # ------------------------------------------------------------ weights

    @property
    def base_weight(self) -> Tensor:
        """The weight beside which the adapter stands."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def weight(self) -> Tensor:
        """The weight that is computed with, where the model reads it itself."""
        return self.whole().to(self.base_weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        bias = self.base.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def delta(self) -> Tensor:
        """What the adapter adds to the weight, before DoRA's lengths: E D, fp32."""
        return (self.spec.scale * self.strength) * (self.up.float() @ self.down.weight.float())

    def whole(self) -> Tensor:
        """The weight with what the adapter adds: E D, fp32."""
        wide = self.base_weight.float() + self.delta()
        if self.length is None or self.strength == 0:
            return wide
        return wide * (self.length.float() / wide.norm(dim=1))[:, None]

    def reset_parameters(self, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
        if self.first:
            self.down.reset_parameters(generator, device)
        self.up = nn.Parameter(torch.zeros(self.up.shape, device=device))
        if self.length is not None:
            self.length = nn.Parameter(self.base_weight.detach().float().norm(dim=1))

    def trainable(self) -> Iterable[nn.Parameter]:
        own = [self.down.weight, self.up, *([] if self.length is None else [self.length])]
        return [*own, *(self.base.trainable() if isinstance(self.base, Rewritten) else ())]

    # ------------------------------------------------------------ the product

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return self.beside(x, y)

    def beside(self, x: Tensor, y: Tensor) -> Tensor:
        """`y`, the product of the base, with what the adapter adds."""
        if self.shares is None:
            return self.added(x, y)
        before = self.strength
        try:
            for rows, strength in self.shares:
                self.strength = strength
                y = y.index_copy(0, rows, self.added(x[rows], y[rows]))
        finally:
            self.strength = before
        return y

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """The same for rows of one strength."""
        if self.strength == 0:
            return y
        wide = x.to(self.down.weight.dtype)
        dropped = F.dropout(wide, self.spec.dropout, self.training)
        added = F.linear(F.linear(dropped, self.down.weight), self.up) * (self.spec.scale * self.strength)
        if self.length is None:
            return (y + added).to(y.dtype)
        return self._scaled(x, y, dropped, added).to(y.dtype)

    def _scaled(self, x: Tensor, y: Tensor, dropped: Tensor, added: Tensor) -> Tensor:
        """DoRA: `g (W x + scale B A x) + b` for `g = length / |W + scale B A|`, whose divisor is held constant (section
        4.3 of the paper). With dropout, the part of W that g adds sees the dropped input, as A does."""
        assert self.length is not None
        weight = self.base_weight.detach()
        norm = (weight.float() + self.delta().detach()).norm(dim=1)
        gain = self.length / norm
        if self.training and self.spec.dropout:
            own = F.linear(dropped, weight.to(dropped.dtype))
        else:
            own = y if self.bias is None else y - self.bias
        return y + (gain - 1) * own + gain * added

    # ------------------------------------------------------------ back to a plain module

    def merge(self) -> nn.Module:
        plain = self.merged_base()
        dtype = plain.weight.dtype
        assert isinstance(dtype, torch.dtype)
        return with_weight(plain, self.whole().detach().to(dtype))


def share_inputs(spec: Settings, modules: Mapping[str, Rewritten]) -> None:
    """Give siblings that `spec.share` names one matrix A, that of the first of them."""
    owners: dict[str, LoRALinear] = {}
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        if name in spec.share and isinstance(module, LoRALinear):
            owner = owners.setdefault(parent, module)
            if owner is not module:
                module.down, module.first = owner.down, False
