"""Low-rank adapters beside linear layers: LoRA, its rank-stabilised scale, and DoRA."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.rewrites import kinds
from stemma.rewrites.modules import Rewritten, Wrapped, with_weight


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
    adapter's share in a mixture."""

    def __init__(self, spec: kinds.LoRA, base: nn.Module) -> None:
        super().__init__(base)
        self.spec, self.strength, self.first = spec, 1.0, True
        out, width = self.shapes["weight"]
        self.down = Down(spec.rank, width)
        self.up = nn.Parameter(torch.empty(out, spec.rank, device="meta"))
        self.length = nn.Parameter(torch.empty(out, device="meta")) if spec.dora else None

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
        return self._whole().to(self.base_weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        bias = self.base.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def delta(self) -> Tensor:
        """What the adapter adds to the weight, before DoRA's lengths: E D, fp32."""
        return (self.spec.scale * self.strength) * (self.up.float() @ self.down.weight.float())

    def _whole(self) -> Tensor:
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
        weight = plain.weight
        assert isinstance(weight, Tensor)
        wide = weight.detach().float() + self.delta().detach()
        if self.length is not None and self.strength != 0:
            wide = wide * (self.length.detach().float() / wide.norm(dim=1))[:, None]
        return with_weight(plain, wide.to(weight.dtype))


def share_inputs(spec: kinds.LoRA, modules: Mapping[str, Rewritten]) -> None:
    """Give siblings that `spec.share` names one matrix A, that of the first of them."""
    owners: dict[str, LoRALinear] = {}
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        if name in spec.share and isinstance(module, LoRALinear):
            owner = owners.setdefault(parent, module)
            if owner is not module:
                module.down, module.first = owner.down, False


# ---------------------------------------------------------------- adapters of a model


def names(model: Model) -> list[str]:
    """The adapters of a model, in order."""
    return list(dict.fromkeys(r.name for r in model.rewrites if isinstance(r, kinds.LoRA)))


def layers(model: nn.Module) -> Iterator[LoRALinear]:
    """Every adapted layer of every adapter."""
    return (module for module in model.modules() if isinstance(module, LoRALinear))


def layer_of(module: nn.Module, name: str) -> LoRALinear | None:
    """The adapter `name` among those that stand around a module."""
    while isinstance(module, LoRALinear):
        if module.spec.name == name:
            return module
        module = module.base
    return None


def use(model: Model, strengths: Mapping[str, float] | Sequence[str] | str) -> Model:
    """Compute with these adapters, each times its strength (names alone: 1), and with no other. Raises UsageError for a
    name that the model does not have."""
    wanted = [strengths] if isinstance(strengths, str) else strengths
    by_name = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(wanted, 1.0)
    known = names(model)
    if unknown := [name for name in by_name if name not in known]:
        raise UsageError(f"the model has no adapter {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    for layer in layers(model):
        layer.strength = float(by_name.get(layer.spec.name, 0.0))
    return model


@contextlib.contextmanager
def without(model: Model) -> Iterator[Model]:
    """The model as it is without its adapters, for the time of a block."""
    before = [(layer, layer.strength) for layer in layers(model)]
    try:
        for layer, _ in before:
            layer.strength = 0.0
        yield model
    finally:
        for layer, strength in before:
            layer.strength = strength
