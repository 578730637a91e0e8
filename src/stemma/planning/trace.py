"""One training step on the meta device: every tensor that a step makes, none of its numbers.

A few layers of each stack are traced. The others are alike, so that they add a multiple of what one cycle of layers
holds (`live.Layers`); weights and operations are affine in the number of layers, and two numbers of layers tell them.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
import torch.fx.experimental._config
from torch import Tensor, nn

from stemma.nn.model import Model
from stemma.nn.parts import Arch, Cycle, Dims, Memory
from stemma.objectives import Batch, Objective
from stemma.objectives.vocabulary import LOGITS
from stemma.planning.device import Halves, build, prepare, uncompiled, without_autocast
from stemma.planning.live import Bytestream, Layers, Live, watched
from stemma.rewrites.engine import apply
from stemma.rewrites.kinds import Rewrite
from stemma.rewrites.paths import PlainTensors, plain_names
from stemma.train import optim
from stemma.train.config import Net

T = TypeVar("T")
CHUNKS = 3  # of a loss that are traced; further ones add nothing
Shapes = Counter[tuple[tuple[int, ...], bool]]  # of weights that learn: shape, whether a matrix of a block; how many


@dataclass(frozen=True)
class How:
    """How a step runs: on a CPU, with products in bf16, with activations of blocks recomputed."""

    cpu: bool = False
    half: bool = True
    recompute: bool = False


class Depth(NamedTuple):
    """Layers of a stack that are traced, how many `more` cycles of `cycle` layers the network has, and the number of
    the `first` layer of the traced cycle that stands for them."""

    traced: int
    cycle: int
    more: int
    first: int


def depth(arch: Arch, dims: Dims, layers: int, masked: bool) -> Depth:
    """The fewest layers that show what each further cycle adds: one before a cycle, and a cycle and one after it.
    `masked`: whether the stack has the design's mask, whose layers may alternate, or be named: then all are traced."""
    cycle = len(arch.mask.masks) if masked and isinstance(arch.mask, Cycle) else 1
    first = 2 if arch.convolution is not None else 1  # the convolution runs behind the first layer
    if masked and isinstance(arch.mask, Memory):
        return Depth(layers, 1, 0, first)
    least = first + 2 * cycle + 1 + (arch.streams is not None)  # two streams run no content through the last layer
    groups = dims.groups if dims.groups is not None and dims.groups != layers else 1
    if layers % groups == 0:
        for traced in range(math.ceil(least / groups) * groups, layers, groups):
            if (layers - traced) % cycle == 0:
                return Depth(traced, cycle, (layers - traced) // cycle, first)
    return Depth(layers, cycle, 0, first)


@dataclass(frozen=True)
class Role:
    """A network of a step: the model (role "") or one beside it."""

    role: str
    arch: Arch
    dims: Dims
    learns: bool = True
    rewrites: tuple[Rewrite, ...] = ()

    def depths(self) -> dict[str, Depth]:
        """Of each stack; all layers, where a rewrite may tell them apart."""
        if any(re.search("[0-9?]", pattern) for rewrite in self.rewrites for pattern in rewrite.where):
            return {name: Depth(d.traced + d.more * d.cycle, 1, 0, d.first) for name, d in self._depths().items()}
        return self._depths()

    def _depths(self) -> dict[str, Depth]:
        both = self.arch.structure == "encoder-decoder"
        found = {}
        if self.arch.structure != "decoder":
            found["encoder"] = depth(self.arch, self.dims, self.dims.layers, not both)
        if self.arch.structure != "encoder":
            found["decoder"] = depth(self.arch, self.dims, self.dims.depth if both else self.dims.layers, True)
        return found

    def short(self, deeper: str = "") -> Role:
        """This network with the traced layers only, with one cycle more of the stack `deeper`."""
        both = self.arch.structure == "encoder-decoder"
        layers = {name: d.traced + (d.cycle if name == deeper else 0) for name, d in self.depths().items()}
        first = layers["encoder"] if "encoder" in layers else layers["decoder"]
        groups = self.dims.groups
        return replace(
            self,
            dims=replace(
                self.dims,
                layers=first,
                decoder_layers=layers["decoder"] if both else None,
                groups=first if groups == self.dims.layers else groups,
            ),
        )


def roles(arch: Arch, dims: Dims, nets: Sequence[Net], rewrites: tuple[Rewrite, ...] = ()) -> tuple[Role, ...]:
    """The networks of a step; all read with one vocabulary. `rewrites`: of the model."""
    return (
        Role("", arch, dims, rewrites=rewrites),
        *(Role(net.role, net.arch, replace(net.dims, vocab=dims.vocab), net.learns) for net in nets),
    )


class Networks:
    """The networks of a step on the meta device, as the objective ties them."""

    def __init__(self, nets: Sequence[Role], objective: Objective) -> None:
        with uncompiled():
            made = {net.role: build(net.arch, net.dims).train(net.learns) for net in nets}
            for net in nets:
                made[net.role].requires_grad_(net.learns)
                apply(made[net.role], net.rewrites)
            self.model = made.pop("")
            self.beside = made
            objective.tie(self.model, made)

    @property
    def all(self) -> list[Model]:
        return [self.model, *self.beside.values()]

    def learned(self) -> dict[int, nn.Parameter]:
        """Weights that learn, tied ones once."""
        return {id(p): p for net in self.all for p in net.parameters() if p.requires_grad}

    def frozen(self) -> list[Tensor]:
        """What of the model does not learn: weights, and the codes and scales of replaced ones."""
        if not self.model.rewrites:
            return []
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return [t for t in {id(t): t for t in tensors}.values() if not t.requires_grad]

    def replaced(self) -> int:
        """Numbers in weights that are no parameters here, since they are stored in another form."""
        plain = PlainTensors(self.model).shapes if self.model.rewrites else {}
        there = set(plain_names(self.model).values()) if plain else set()
        return sum(shape.numel() for name, shape in plain.items() if name not in there)

    def shapes(self) -> Shapes:
        nets = [(f"{i}.", net) for i, net in enumerate(self.all)]
        uses = optim.uses_of(nets)
        named = [(prefix + name, p) for prefix, net in nets for name, p in net.named_parameters()]
        inside = {id(p) for name, p in named if optim.is_hidden(name, p, uses)}
        return Counter((tuple(p.shape), key in inside) for key, p in self.learned().items())


def stacks(model: Model) -> dict[str, Any]:
    return {name: stack for name in ("encoder", "decoder") if (stack := getattr(model, name)) is not None}


def at_full_depth(nets: Sequence[Role], value: Callable[[Sequence[Role]], T]) -> Iterator[tuple[T, int]]:
    """What is affine in the layers of each stack, as terms and how often each counts: `value` of the traced layers,
    and of one more cycle of a stack as often as the network has it, less that of the traced ones."""
    short = [net.short() for net in nets]
    base = value(short)
    more = 0
    for i, net in enumerate(nets):
        for name, d in net.depths().items():
            if d.more:
                deeper = value([net.short(name) if i == j else other for j, other in enumerate(short)])
                yield deeper, d.more
                more += d.more
    yield base, 1 - more


def numel(found: Shapes) -> int:
    """Numbers in weights."""
    return sum(math.prod(shape) * number for (shape, _), number in found.items())


class Step:
    """A training step of some networks, which can be traced for any batch."""

    def __init__(self, nets: Sequence[Role], objective: Objective, how: How) -> None:
        self.nets, self.objective, self.how = nets, objective, how
        self.numel = sum(times * numel(few.shapes()) for few, times in at_full_depth(nets, self._networks))
        self.networks = self._networks([net.short() for net in nets])
        self.token_loss = objective.token_loss
        with uncompiled():
            for model in self.networks.all:
                prepare(model, how.cpu, how.half, how.recompute and model is self.networks.model)

    def _networks(self, nets: Sequence[Role]) -> Networks:
        return Networks(nets, self.objective)

    def trace(self, batch: Batch) -> Bytestream:
        """Run a step forward and backward."""
        with uncompiled():
            live = Live()
        learned, owners = self.networks.learned(), self._layers(live)
        live.spare(t for net in self.networks.all for t in (*net.parameters(), *net.buffers()))
        settings: Any = torch.fx.experimental._config
        whole = settings.patch(meta_nonzero_assume_all_nonzero=True)  # no token of a row is padding
        half = Halves() if self.how.half else contextlib.nullcontext()
        weights = [(p, owners.get(key)) for key, p in learned.items()]
        with uncompiled(), without_autocast(), watched(live, weights), live, whole, half:
            self.objective.token_loss = self.few  # type: ignore[method-assign]
            loss = self.objective.loss(self.networks.model, batch, self.networks.beside).total()
            del self.objective.token_loss
            live.settle(live.layers)
            live.backward = True
            loss.backward()
        return live.stream()

    def few(self, model: Model, hidden: Tensor, batch: Batch) -> Tensor:
        """The loss of the vocabulary, with the hidden states of all targets but few chunks of logits."""
        most = CHUNKS * max(1, LOGITS // model.dims.vocab)
        return self.token_loss(model, hidden, {**batch, "targets": batch["targets"][:most]})

    def _layers(self, live: Live) -> dict[int, Layers]:
        """Watch the stacks of all networks; by weight, the stack in whose cycle it is, if further cycles have their
        own."""
        owners: dict[int, Layers] = {}
        for net, model in zip(self.nets, self.networks.all, strict=True):
            for name, stack in stacks(model).items():
                d = net.depths()[name]
                layers = Layers(live, stack, d.first, d.cycle, d.more, net.dims.inner)
                if d.more and (net.dims.groups is None or net.dims.groups == net.dims.layers):
                    owners |= {id(p): layers for block in layers.blocks for p in block.parameters()}
        return owners
