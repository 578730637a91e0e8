"""The adapters of a model: which there are, which take part, and how much."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.rewrites.frozen import Frozen
from stemma.rewrites.kinds import Adapter, Rewrite
from stemma.rewrites.lora import LoRALinear
from stemma.rewrites.lora_experts import LoRAExperts
from stemma.rewrites.modules import Wrapped
from stemma.rewrites.paths import plain_modules
from stemma.rewrites.prompts import Ahead
from stemma.rewrites.rows import Rows


def names(model: Model) -> list[str]:
    """The adapters of a model, in order."""
    return list(dict.fromkeys(r.name for r in model.rewrites if isinstance(r, Adapter)))


def layers(model: nn.Module) -> Iterator[LoRALinear]:
    """Every adapted layer of every adapter."""
    return (module for module in model.modules() if isinstance(module, LoRALinear))


def parts(model: nn.Module) -> Iterator[LoRALinear | LoRAExperts | Rows | Ahead]:
    """Every module of every adapter: adapted layers and experts, rows of tables, soft prompts and prefixes."""
    return (module for module in model.modules() if isinstance(module, LoRALinear | LoRAExperts | Rows | Ahead))


def layer_of(module: nn.Module, name: str) -> LoRALinear | None:
    """The adapter `name` among those that stand around a module."""
    while isinstance(module, Wrapped):
        if isinstance(module, LoRALinear) and module.spec.name == name:
            return module
        module = module.base
    return None


def rows_of(module: nn.Module, name: str) -> Rows:
    """The rows of the adapter `name` around a table, which has them."""
    while not (isinstance(module, Rows) and module.spec.name == name):
        assert isinstance(module, Wrapped)
        module = module.base
    return module


def experts_of(module: nn.Module, name: str) -> LoRAExperts | None:
    """The adapter `name` around a mixture of experts."""
    while isinstance(module, Wrapped):
        if isinstance(module, LoRAExperts) and module.spec.name == name:
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
    for part in parts(model):
        strength = float(by_name.get(part.spec.name, 0.0))
        if isinstance(part, Ahead | Rows) and strength not in (0.0, 1.0):
            kind = type(part.spec).__name__
            raise UsageError(f"the {kind} {part.spec.name!r} takes part or does not: its strength is 1 or 0")
    for part in parts(model):
        part.strength = float(by_name.get(part.spec.name, 0.0))
    return model


BASE = ""  # the name under which a request asks for no adapter


class ByRow:
    """Adapters chosen for each row of a batch: by name, `BASE` for none, or None for those that took part when this was
    made. Low-rank adapters beside matrices go together in one batch (`mixes`), but for DoRA around another adapter; of
    others all rows must choose the same.
    """

    def __init__(self, model: Model) -> None:
        self.names = names(model)
        self.parts = [(part, part.strength) for part in parts(model)]
        self.mixes = all(isinstance(part, LoRALinear) and not _reads_another(part) for part, _ in self.parts)
        self.device = model.device
        self.now: tuple[str | None, ...] = (None,)

    def check(self, name: str | None) -> None:
        """Raises UsageError for a name that no row can choose."""
        if name is not None and name != BASE and name not in self.names:
            raise UsageError(f"the model has no adapter {name!r}; it has {', '.join(self.names) or 'none'}")
        if name is not None and any(isinstance(part, Ahead) for part, _ in self.parts):
            raise UsageError("soft prompts and prefixes stand in front of every text and cannot be chosen by request")

    def choose(self, rows: Sequence[str | None]) -> None:
        """The adapter of each row of the next batches."""
        kinds = tuple(dict.fromkeys(rows))
        now = tuple(rows) if len(kinds) > 1 else kinds
        if not self.parts or not kinds or now == self.now:
            return
        self.now = now
        assert self.mixes or len(kinds) == 1
        at = {kind: [i for i, name in enumerate(rows) if name == kind] for kind in kinds}
        made: dict[tuple[int, ...], Tensor] = {}
        for part, own in self.parts:
            strengths = {kind: own if kind is None else float(kind == part.spec.name) for kind in kinds}
            part.strength = strengths[kinds[0]]
            if not isinstance(part, LoRALinear):
                continue
            part.shares = None
            if len(set(strengths.values())) > 1:
                grouped: dict[float, list[int]] = {}
                for kind, strength in strengths.items():
                    if strength:
                        grouped.setdefault(strength, []).extend(at[kind])
                part.shares = [
                    (made.setdefault(key := tuple(places), torch.tensor(key, device=self.device)), strength)
                    for strength, places in grouped.items()
                ]

    def reset(self) -> None:
        """As it was."""
        self.choose([None])


def _reads_another(part: LoRALinear) -> bool:
    """Whether DoRA measures a matrix to which another adapter adds."""
    return part.length is not None and isinstance(part.base, LoRALinear)


@contextlib.contextmanager
def without(model: Model) -> Iterator[Model]:
    """The model as it is without its adapters, for the time of a block."""
    before = [(part, part.strength) for part in parts(model)]
    try:
        for part, _ in before:
            part.strength = 0.0
        yield model
    finally:
        for part, strength in before:
            part.strength = strength


def rounded(model: Model, kept: Rewrite | None = None) -> float:
    """The share of what the adapters add that is lost where a merge rounds to the base's dtype, or linear layers to
    what `kept` stores (NF4): the root mean square of the rounding over that of what is added. 0 for fp32."""
    lost = added = 0.0
    for _, layer in adapted(model):
        if layer.unmergeable() is not None:
            continue
        whole, base = layer.whole().detach(), innermost(layer).base_weight.detach()
        linear = kept is not None and issubclass(layer.plain, nn.Linear)
        stored = as_stored(kept, whole) if kept is not None and linear else whole.to(base.dtype).float()
        lost += float((stored - whole).square().sum())
        added += float((whole - base.float()).square().sum())
    for _, module in plain_modules(model):
        if isinstance(module, LoRAExperts):
            for name, _, whole in module.wholes():
                base = module.experts.get_parameter(name).detach()
                lost += float((whole.to(base.dtype).float() - whole).square().sum())
                added += float((whole - base.float()).square().sum())
    return (lost / added) ** 0.5 if added else 0.0


def adapted(model: Model) -> Iterator[tuple[str, LoRALinear]]:
    """Every adapted layer once, with its path: the adapter that was put on last."""
    return ((path, module) for path, module in plain_modules(model) if isinstance(module, LoRALinear))


def innermost(layer: LoRALinear) -> LoRALinear:
    """The adapter of a layer that was put on first."""
    while isinstance(layer.base, LoRALinear):
        layer = layer.base
    return layer


def as_stored(kept: Rewrite, weight: Tensor) -> Tensor:
    """The numbers of a matrix that a rewrite stores: E D."""
    out, width = weight.shape
    made = kept.replace(nn.Linear(width, out, bias=False, device="meta"))
    assert isinstance(made, Frozen)
    made.load("weight", weight, weight.device, weight.dtype)
    return made.weight
