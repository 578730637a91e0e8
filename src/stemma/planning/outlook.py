"""What a plan's network, objective and recipe make of a training step, by a few traces of it."""

from __future__ import annotations

import copy
import functools
import math
from collections import Counter
from dataclasses import replace
from typing import Any

from torch import nn

from stemma.declare import ramps
from stemma.declare.recipes import Adafactor, Muon
from stemma.errors import UsageError
from stemma.nn.parts import Dims
from stemma.objectives.vocabulary import LOGITS
from stemma.planning.batch import Example
from stemma.planning.hardware import Device
from stemma.planning.memory import Memory
from stemma.planning.trace import How, Networks, Shapes, Step, at_full_depth, numel, roles, stacks
from stemma.train import meter
from stemma.train.config import Plan, budget


class Outlook:
    """A plan, seen from outside: parameters, operations, and the bytes of a step on a part of a mesh. `recompute`:
    blocks keep no activations; `half`: products in bf16, left out as `train.precision` says; `example`: what makes
    batches, where not of random texts."""

    def __init__(self, plan: Plan, *, recompute: bool = False, half: bool | None = None, example: Any = None) -> None:
        self.plan, self.half = plan, half
        self.recompute = recompute or bool(plan.train.recompute)
        self.example = Example(plan) if example is None else example
        self.nets = roles(plan.arch, plan.dims, plan.nets, plan.rewrites)
        self.parts = list(at_full_depth(self.nets, lambda few: Networks(few, self.example.objective)))
        self.shapes = _shapes(self.parts)
        self.learned = numel(self.shapes)
        kept = [(t, times) for made, times in self.parts for t in made.frozen()]
        self.frozen = float(sum(times * t.numel() * t.element_size() for t, times in kept))  # bytes
        self.parameters = self.learned + sum(times * t.numel() for t, times in kept if isinstance(t, nn.Parameter))
        self.parameters += sum(times * made.replaced() for made, times in self.parts)
        self.known: dict[tuple[int, How], Memory] = {}
        found = {name: stack for net, _ in self.parts[-1:] for name, stack in stacks(net.model).items()}
        sizes = [sum(p.numel() for p in stack.blocks[0].parameters()) for stack in found.values()]
        self.block = max(sizes)
        self.outside = self.parameters - sum(size * self._blocks(name) for size, name in zip(sizes, found, strict=True))

    def _blocks(self, stack: str) -> int:
        """Blocks of a stack of the model."""
        dims = self.plan.dims
        both = self.plan.arch.structure == "encoder-decoder"
        layers = dims.depth if both and stack == "decoder" else dims.layers
        return (dims.groups if dims.groups is not None else layers) * dims.inner

    def of(self, plan: Plan) -> Outlook:
        """The same outlook on a plan with another batch or budget."""
        other = copy.copy(self)
        other.plan = plan
        other.__dict__.pop("steps", None)
        return other

    def recomputing(self) -> Outlook:
        """The same outlook where blocks keep no activations."""
        other = copy.copy(self)
        other.recompute = True
        return other

    @functools.cached_property
    def work(self) -> float:
        """Operations a token of the row, forward and backward; what is recomputed is no useful work and not in it. A
        network beside the model counts too, one that does not learn with its forward pass alone."""
        example, context = self.example, self.plan.context
        share, decoder = example.targets / example.length, example.decoder
        return sum(
            times * meter.flops(model, context, share, decoder) * (1.0 if net.learns else 1 / 3)
            for made, times in self.parts
            for net, model in zip(self.nets, made.all, strict=True)
        )

    @functools.cached_property
    def steps(self) -> int | None:
        """Steps that the budget buys; None for a budget in seconds, which a probe turns into steps."""
        limit, tokens = budget(self.plan.train.budget), self.plan.rows * self.plan.context
        ramp, rows = self.plan.recipe.ramp, self.plan.rows
        if limit.steps is not None:
            return limit.steps
        if limit.tokens is not None:
            return ramps.nearest(ramp, rows, limit.tokens / tokens)
        if limit.epochs is not None:
            raise UsageError("how long epochs are depends on the text, which no plan reads; give tokens or steps")
        return None if limit.flops is None else ramps.nearest(ramp, rows, limit.flops / (self.work * tokens))

    def tokens(self, steps: int) -> int:
        """Tokens that so many steps read."""
        return int(ramps.total(self.plan.recipe.ramp, self.plan.rows, steps)) * self.plan.context

    @property
    def cache(self) -> float:
        """Bytes of keys and values of one row of `context` tokens in inference, bf16."""
        dims, structure = self.plan.dims, self.plan.arch.structure
        if structure == "encoder":
            return 0.0
        layers = dims.depth * 2 if structure == "encoder-decoder" else dims.layers
        return 2.0 * 2.0 * layers * dims.decoder.kv * dims.decoder.width * self.plan.context

    # ------------------------------------------------------------ memory

    def memory(self, tp: int, cpu: bool, half: bool) -> Memory:
        """The bytes of a step of one of `tp` slices."""
        key = tp, How(cpu, half, self.recompute)
        if key not in self.known:
            dims = sliced(self.plan.dims, tp)
            nets = roles(self.plan.arch, dims, self.plan.nets, self.plan.rewrites)
            step = Step(nets, self.example.objective, key[1])
            self.known[key] = Memory(step, self.example, dims.vocab)
        return self.known[key]

    def activations(self, memory: Memory, rows: int, shards: int, accumulated: bool) -> float:
        """Bytes beyond weights, gradients and optimiser that a device holds at the worst moment of a step with
        micro-batches of `rows`."""
        return max(0.0, memory.peak(rows, shards, accumulated) - 4.0 * memory.step.numel / shards)

    def logits(self, memory: Memory, rows: int) -> float:
        """Bytes of the fp32 logits of a micro-batch, so far as they are held at once."""
        if self.plan.arch.heads.lm is None or not self.plan.objective.reads_vocabulary:
            return 0.0
        number = max(rows, round(self.example.targets * rows)) * memory.vocab
        return 4.0 * min(number, LOGITS)

    @functools.cached_property
    def slots(self) -> float:
        """Numbers that the optimiser keeps for each weight, on average."""
        kind = self.plan.recipe.optimizer
        kept = sum(number * kept_by(kind, shape, inside) for (shape, inside), number in self.shapes.items())
        return kept / self.learned

    @property
    def held(self) -> float:
        """Bytes of all weights, gradients and of what the optimiser keeps."""
        return (2 + self.slots) * 4 * self.learned + self.frozen

    def halves(self, device: Device) -> bool:
        """Whether products are in bf16 on a device."""
        if self.half is not None:
            return self.half
        return self.plan.train.precision == "bf16" or (self.plan.train.precision == "auto" and device.name != "CPU")


def _shapes(parts: list[tuple[Networks, int]]) -> Shapes:
    """All weights that learn."""
    found: Shapes = Counter()
    for made, times in parts:
        for key, number in made.shapes().items():
            found[key] += times * number
    return found


def kept_by(kind: Any, shape: tuple[int, ...], inside: bool) -> float:
    """Numbers that an optimiser keeps for a weight; `inside`: it is a matrix of a block."""
    n = math.prod(shape)
    if isinstance(kind, Adafactor):
        least = kind.smallest
        factored = least is not None and len(shape) >= 2 and min(shape[-2:]) >= least
        second = n / shape[-1] + n / shape[-2] if factored else n
        return second + (n if kind.momentum else 0)
    return n if isinstance(kind, Muon) and len(shape) >= 2 and inside else 2 * n


def sliced(dims: Dims, tp: int) -> Dims:
    """A slice of a network is a network of as many heads less, and of a part of the vocabulary."""
    if tp == 1:
        return dims
    return replace(
        dims,
        heads=dims.heads // tp,
        kv_heads=dims.kv // tp,
        d_ff=dims.d_ff // tp,
        decoder_heads=dims.decoder.heads // tp,
        decoder_d_ff=dims.decoder.d_ff // tp,
        head_dim=dims.width,
        vocab=-(-dims.vocab // tp),
    )
