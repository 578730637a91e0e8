"""Low-rank adapters of a mixture of experts."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn.mlp import Experts, Times
from stemma.rewrites.lora import Settings
from stemma.rewrites.modules import Rewritten, Wrapped


class Pair(nn.Module):
    """A and B of each expert: X R D (`down`) and X E R (`up`), fp32."""

    def __init__(self, experts: int, rank: int, outputs: int, inputs: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(experts, rank, inputs, device="meta"))
        self.up = nn.Parameter(torch.empty(experts, outputs, rank, device="meta"))

    def reset_parameters(self, generator: torch.Generator, device: torch.device) -> None:
        bound = 1 / math.sqrt(self.down.shape[2])
        drawn = torch.empty(self.down.shape).uniform_(-bound, bound, generator=generator)
        self.down, self.up = nn.Parameter(drawn.to(device)), nn.Parameter(torch.zeros(self.up.shape, device=device))


class LoRAExperts(Wrapped):
    """Experts with adapters beside their matrices: `enter` of gate and up, which share A as one packed matrix would,
    and `leave` of down."""

    def __init__(self, spec: Settings, base: nn.Module) -> None:
        super().__init__(base)
        if spec.dora or spec.dropout:
            raise UsageError("LoRA.dora and LoRA.dropout are for single matrices, and experts are multiplied together")
        self.spec, self.strength = spec, 1.0
        count, inner, width = self.shapes["gate"]
        self.inner = inner
        self.enter = Pair(count, spec.rank, 2 * inner, width)
        self.leave = Pair(count, spec.rank, width, inner)

    @property
    def experts(self) -> Experts:
        """The plain experts."""
        found: nn.Module = self.base
        while isinstance(found, Wrapped):
            found = found.base
        assert isinstance(found, Experts)
        return found

    def reset_parameters(self, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
        for pair in (self.enter, self.leave):
            pair.reset_parameters(generator, device)

    def trainable(self) -> Iterable[nn.Parameter]:
        own = [self.enter.down, self.enter.up, self.leave.down, self.leave.up]
        return [*own, *(self.base.trainable() if isinstance(self.base, Rewritten) else ())]

    def beside(self, name: str) -> tuple[Tensor, Tensor]:
        """A and B of one of the three matrices."""
        if name == "down":
            return self.leave.down, self.leave.up
        part = slice(0, self.inner) if name == "gate" else slice(self.inner, None)
        return self.enter.down, self.enter.up[:, part].contiguous()

    def forward(self, x: Tensor, times: Times | None = None) -> Tensor:
        plain = self.experts
        inner = plain.times if times is None else times
        names = {id(plain.gate): "gate", id(plain.up): "up", id(plain.down): "down"}

        def own(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
            y = inner(rows, weight, ends)
            if self.strength == 0:
                return y
            down, up = self.beside(names[id(weight)])
            low = plain.times(rows.to(down.dtype).contiguous(), down, ends).contiguous()
            added = plain.times(low, up, ends)
            return (y + added * (self.spec.scale * self.strength)).to(y.dtype)

        out: Tensor = self.base(x, own)
        return out

    def wholes(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each matrix's name, its base, and with what the adapter adds, fp32."""
        plain = self.merged_base()
        for name in Experts.stacked:
            down, up = self.beside(name)
            base = plain.get_parameter(name).detach()
            yield name, base, base.float() + (self.spec.scale * self.strength) * (up @ down).detach()

    def merge(self) -> nn.Module:
        new = copy.copy(self.merged_base())
        new._parameters = dict(new._parameters)
        for name, base, whole in self.wholes():
            setattr(new, name, nn.Parameter(whole.to(base.dtype)))
        return new
