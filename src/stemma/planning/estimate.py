"""Memory a device, work, time and money of a plan on a mesh. Imports no torch."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from stemma.declare import ramps
from stemma.declare.recipes import Adafactor, Muon
from stemma.errors import ResourceError, UsageError
from stemma.nn.parts import Dims, HeadNorm
from stemma.parallel import Mesh, mesh
from stemma.planning.hardware import Device
from stemma.planning.network import How, Rows
from stemma.planning.rows import rows as rows_of
from stemma.planning.steps import LOGITS, Network, Other, Step
from stemma.train.config import Plan, budget

FILL = 0.92  # of a device's memory that is planned with: allocators need room
SLICES = (1, 2, 4, 8)  # within one node, whose links are fast
MOST = 2**17  # devices of a fleet that is looked for


@dataclass(frozen=True)
class Estimate:
    """Of one mesh. Bytes are of one device: `weights`, `gradients` and `optimizer` of the part that it holds;
    `gathered`: what of others' parts is there at a time; `activations`: all else that a step holds at its worst moment,
    logits among it (`logits`). `cache`: keys and values of one row in inference, bf16. `seconds` a step, of which its
    work takes `computing`, and the sums of slices, which it has to wait for, `waiting`; what is gathered and reduced
    for rows and shards takes `sending`, at once with both. `sent`: bytes of all messages."""

    mesh: str
    device: str
    micro: int
    accumulate: int
    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    logits: float
    cache: float
    seconds: float
    computing: float
    waiting: float
    sending: float
    sent: float

    @property
    def memory(self) -> float:
        """Bytes at once on a device."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations


class Way(NamedTuple):
    """How a step is taken: slices, shards, whether on a CPU, whether in bf16, micro-batches (two stand for many)."""

    tp: int
    shards: int
    cpu: bool
    half: bool
    micros: int


class Outlook:
    """A plan, seen from outside: what its network, objective and recipe make of a step, by arithmetic."""

    def __init__(self, plan: Plan, *, recompute: bool = False, half: bool | None = None) -> None:
        self.plan, self.half = plan, half
        self.recompute = recompute or bool(plan.train.recompute)
        self.others = tuple(Other(net.role, net.arch, self._vocabulary(net.dims), net.learns) for net in plan.nets)
        self.known: dict[tuple[Way, int], float] = {}
        self.whole = self._step(Way(1, 1, False, True, 1))
        self.parameters = self.whole.numel
        stacks = self.whole.model.stacks
        self.block = max(stack.block for stack in stacks)
        self.outside = self.parameters - sum(stack.block * stack.count for stack in stacks)

    def of(self, plan: Plan) -> Outlook:
        """The same outlook on a plan with another batch."""
        other = copy.copy(self)
        other.plan = plan
        return other

    def _vocabulary(self, dims: Dims) -> Dims:
        """Networks side by side read with one tokenizer."""
        return replace(dims, vocab=self.plan.dims.vocab)

    def rows(self, number: int) -> Rows:
        """`number` rows as the network sees them."""
        plan = self.plan
        return rows_of(plan.objective, plan.arch, plan.dims, plan.text, plan.recipe, plan.context, number)

    def _step(self, how: Way) -> Step:
        plan = self.plan
        return Step(
            plan.arch,
            sliced(plan.dims, how.tp),
            plan.objective,
            How(how.cpu, how.half, self.recompute),
            tuple(replace(other, dims=sliced(other.dims, how.tp)) for other in self.others),
            how.shards,
        )

    @functools.cached_property
    def work(self) -> float:
        """Operations a token of the row, forward and backward; what is recomputed is no useful work and not in it. A
        network beside the model counts too, one that does not learn with its forward pass alone."""
        one = self.rows(64)
        share, decoder = one.targets / (one.rows * one.length), one.goal / one.length
        nets = self.whole.others
        return flops(self.whole.model, self.plan.context, share, decoder) + sum(
            flops(nets[other.role], self.plan.context, share, decoder) * (1.0 if other.learns else 1 / 3)
            for other in self.others
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
        return None if limit.flops is None else ramps.nearest(ramp, rows, limit.flops / (self.work * tokens))

    def tokens(self, steps: int) -> int:
        """Tokens that so many steps read."""
        return int(ramps.total(self.plan.recipe.ramp, self.plan.rows, steps)) * self.plan.context

    def logits(self, micro: int, tp: int = 1) -> float:
        """Bytes of the fp32 logits of a micro-batch, so far as they are held at once."""
        if self.plan.arch.heads.lm is None or not self.plan.objective.reads_vocabulary:
            return 0.0
        return 4.0 * min(self.rows(micro).targets * self.plan.dims.vocab // tp, LOGITS)

    @property
    def cache(self) -> float:
        """Bytes of keys and values of one row of `context` tokens in inference, bf16."""
        dims, structure = self.plan.dims, self.plan.arch.structure
        if structure == "encoder":
            return 0.0
        layers = dims.depth * 2 if structure == "encoder-decoder" else dims.layers
        return 2.0 * 2.0 * layers * dims.kv * dims.width * self.plan.context

    def kept(self, how: Way, micro: int) -> float:
        """Bytes beyond weights, gradients and optimiser that a device holds at the worst moment of a step."""
        if (how, micro) not in self.known:
            step = self._step(how)
            peak = step.peak(self.rows(micro), how.micros, self.plan.recipe.z_loss > 0)
            self.known[how, micro] = float(max(0, peak - 4 * step.numel // how.shards))
        return self.known[how, micro]

    @functools.cached_property
    def slots(self) -> float:
        """Numbers that the optimiser keeps for each weight, on average."""
        kind, total, count = self.plan.recipe.optimizer, 0.0, 0
        nets = [self.whole.model, *(self.whole.others[o.role] for o in self.others if o.learns)]
        for net in nets:
            for shape, number, inside in net.shapes:
                n = math.prod(shape)
                count += n * number
                total += number * kept_by(kind, shape, n, inside)
        return total / count

    @property
    def held(self) -> float:
        """Bytes of all weights, gradients and of what the optimiser keeps."""
        return (2 + self.slots) * 4 * self.parameters

    def halves(self, device: Device) -> bool:
        if self.half is not None:
            return self.half
        return self.plan.train.precision == "bf16" or (self.plan.train.precision == "auto" and device.name != "CPU")


def kept_by(kind: Any, shape: tuple[int, ...], n: int, inside: bool) -> float:
    """Numbers that an optimiser keeps for a weight of so many; `inside`: it is one of a block."""
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
        head_dim=dims.width,
        vocab=-(-dims.vocab // tp),
    )


def flops(net: Network, context: int, targets: float, decoder: float) -> float:
    """As `stemma.train.meter.flops`, which counts a model's own tensors: operations of a training step a token."""
    dims, structure = net.dims, net.arch.structure
    head = 6.0 * dims.vocab * dims.d_model if net.lm is not None else 0.0

    def attention(layers: int, length: float) -> float:
        return 12.0 * layers * dims.heads * dims.width * length

    stacks = net.stacks
    if structure == "encoder-decoder":
        own = context * decoder
        read = 12.0 * dims.depth * dims.d_model * dims.kv * dims.width  # cross-attention's keys and values
        inner = 6.0 * stacks[1].matrices - read + attention(dims.depth, own) / 2 + attention(dims.depth, context)
        return 6.0 * stacks[0].matrices + attention(dims.layers, context) + read + decoder * inner + targets * head
    half = 1 if structure == "encoder" else 2
    return 6.0 * stacks[0].matrices + attention(dims.layers, context) / half + targets * head


def unfit(plan: Plan, mesh: Mesh) -> str | None:
    """Why a plan cannot run on a mesh; None if it can."""
    dims = plan.dims
    if plan.rows % mesh.readers:
        near = max(1, round(plan.rows / mesh.readers)) * mesh.readers * plan.context
        return f"{mesh.readers} processes read the {plan.rows} rows of a step; set recipe.batch={near}"
    if mesh.tp > 1 and plan.nets:
        return "tp does not slice networks beside the model; use fsdp"
    if mesh.tp > 1:
        for name, value in (("heads", dims.heads), ("kv_heads", dims.kv), ("d_ff", dims.d_ff)):
            if value % mesh.tp:
                return f"tp={mesh.tp} does not divide dims.{name}={value}"
        known = dims.experts is None and plan.arch.streams is None
        if not known or isinstance(plan.arch.attention.qk_norm, HeadNorm):
            return "tp does not split this network"
    return None


def estimate(view: Outlook, mesh: Mesh, device: Device, micro: int, seconds: float | None = None) -> Estimate:
    """What a step needs on a mesh with micro-batches of `micro` rows a process; `seconds` of a step, if measured."""
    plan, half, cpu = view.plan, view.halves(device), device.name == "CPU"
    if (why := unfit(plan, mesh)) is not None:
        raise UsageError(f"{plan.name} does not run on mesh {mesh}: {why}")
    parts = mesh.fsdp * mesh.tp
    rows = plan.rows // mesh.readers
    micro = min(micro, rows)
    accumulate = -(-rows // micro)
    weights = 4.0 * view.parameters / parts
    gathered = 0.0
    if mesh.fsdp > 1:  # what stands outside of blocks with its gradient, and a block in use, the next, and a gradient
        gathered = 4.0 * (2 * view.outside + 3 * view.block) / mesh.tp
    messages = Messages.of(view, mesh, device, rows, micro)
    again = 4 / 3 if view.recompute else 1.0
    speed = device.peak * device.share * (1.0 if half or cpu else 0.5)
    computing = view.work * plan.rows * plan.context * again / mesh.size / speed
    return Estimate(
        mesh=str(mesh),
        device=device.name,
        micro=micro,
        accumulate=accumulate,
        weights=weights,
        gradients=weights,
        optimizer=view.slots * weights,
        gathered=gathered,
        activations=view.kept(Way(mesh.tp, mesh.fsdp, cpu, half, min(accumulate, 2)), micro),
        logits=view.logits(micro, mesh.tp),
        cache=view.cache,
        seconds=seconds if seconds is not None else max(computing + messages.waiting, messages.sending),
        computing=computing,
        waiting=messages.waiting,
        sending=messages.sending,
        sent=messages.sent,
    )


class Messages(NamedTuple):
    """Of a step, of each process: bytes; seconds of those that the work waits for, and of those that it does not."""

    sent: float
    waiting: float
    sending: float

    @classmethod
    def of(cls, view: Outlook, mesh: Mesh, device: Device, rows: int, micro: int) -> Messages:
        """Those of a process that reads so many rows a step. Of neighbours `tp` lie next to each other, then `fsdp`."""
        plan, one = view.plan, 4.0 * view.parameters / mesh.tp
        # gathered forward and backward, gradients scattered, each micro-batch
        shards = -(-rows // micro) * 3 * one * (1 - 1 / mesh.fsdp)
        copies = 2 * one / mesh.fsdp * (1 - 1 / mesh.dp)
        # a sum a branch forward, and q, k, v, gate and up backward
        branches, width = plan.dims.layers * (1 + 1 + 3 + 2), 2 if view.halves(device) else 4
        slices = branches * rows * plan.context * plan.dims.d_model * width * 2 * (1 - 1 / mesh.tp)
        return cls(
            shards + copies + slices,
            slices / device.reach(1, mesh.tp),
            shards / device.reach(mesh.tp, mesh.fsdp) + copies / device.reach(mesh.tp * mesh.fsdp, mesh.dp),
        )


def duration(view: Outlook, found: Estimate, device: Device, steps: int) -> float:
    """Seconds of so many steps by an estimate; those of a ramp compute and send less."""
    return ramps.total(view.plan.recipe.ramp, view.plan.rows, steps, _each(view, found, device))


def steps_within(view: Outlook, found: Estimate, device: Device, seconds: float) -> int:
    """The most steps, at least one, that take no longer by an estimate."""
    return ramps.longest(view.plan.recipe.ramp, view.plan.rows, seconds, _each(view, found, device))


def _each(view: Outlook, found: Estimate, device: Device) -> Callable[[int], float]:
    """Seconds of a step by its rows."""
    grid, full = mesh(found.mesh), view.plan.rows
    computing = found.computing if found.sent else found.seconds  # which were measured on one device, if at all

    def seconds(rows: int) -> float:
        most = -(-rows // grid.readers)  # of a process, for which those that read fewer wait
        messages = Messages.of(view, grid, device, most, found.micro)
        part = most * grid.readers / full
        return found.seconds if rows == full else max(computing * part + messages.waiting, messages.sending)

    return seconds


def meshes(count: int) -> list[Mesh]:
    """Every mesh of so many processes that keeps slices within a node, the fewest slices first."""
    found = []
    for tp in SLICES:
        for dp in (n for n in range(1, count + 1) if count % (n * tp) == 0):
            found.append(Mesh(dp=dp, fsdp=count // (dp * tp), tp=tp))
    return found


def largest(view: Outlook, mesh: Mesh, device: Device) -> Estimate | None:
    """The estimate with the most rows at once that fit, a power of two or all; None if not even one does."""
    most = view.plan.rows // mesh.readers
    sizes = [*(2**i for i in range(most.bit_length()) if 2**i < most), most]

    def fitting(micro: int) -> Estimate | None:
        found = estimate(view, mesh, device, micro)
        return found if found.memory <= FILL * device.memory else None

    if view.held / (mesh.fsdp * mesh.tp) > FILL * device.memory or (best := fitting(1)) is None:
        return None
    if (whole := fitting(sizes[-1])) is not None:
        return whole
    low, high = 1, len(sizes) - 1
    while low < high:  # what fits is a beginning of the list
        middle = (low + high) // 2
        found = fitting(sizes[middle])
        if found is None:
            high = middle
        else:
            best, low = found, middle + 1
    return best


def most(view: Outlook, mesh: Mesh, device: Device, least: int = 1) -> int:
    """Rows at once that a device would hold at most, whatever the batch (to within 3 %); 0 if not even one."""

    def fits(micro: int) -> bool:
        batch = micro * mesh.readers * view.plan.context
        other = replace(view.plan, recipe=replace(view.plan.recipe, batch=batch, ramp=None))
        return estimate(view.of(other), mesh, device, micro).memory <= FILL * device.memory

    low = least if fits(least) else 0
    high = 2 * max(least, 1) if low else least
    while low and fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def suggest(view: Outlook, count: int, device: Device) -> Estimate:
    """The fastest mesh of `count` devices whose parts fit, by the estimate; of equal ones that with fewer slices, then
    fewer shards. Raises ResourceError if none fits, UsageError if none can run."""
    able = [m for m in meshes(count) if unfit(view.plan, m) is None]
    if not able:
        raise UsageError(
            f"{view.plan.name} runs on no mesh of {count} {device.name}: {unfit(view.plan, Mesh(fsdp=count))}"
        )
    fits = [e for m in able if (e := largest(view, m, device)) is not None]
    if not fits:
        need = nearest(view, count, device).memory
        raise ResourceError(
            f"{view.plan.name} does not fit on {count} {device.name} of {device.memory / 1e9:.0f} GB: the best mesh "
            f"needs {need / 1e9:.1f} GB a device with one row at a time; {_instead(view, count, device)}"
        )
    return min(fits, key=lambda e: e.seconds)


def nearest(view: Outlook, count: int, device: Device) -> Estimate:
    """Of the meshes that can run the one that needs the least memory, with one row at a time."""
    able = [m for m in meshes(count) if unfit(view.plan, m) is None]
    return min((estimate(view, m, device, 1) for m in able), key=lambda e: e.memory)


def _instead(view: Outlook, count: int, device: Device) -> str:
    """What to do about a network that does not fit."""
    more, readers = count, max(1, view.plan.rows)
    while more <= MOST:
        more *= 2
        if view.held / more > FILL * device.memory:
            continue
        for tp in SLICES:
            mesh = Mesh(fsdp=more // tp, tp=tp) if more % tp == 0 else Mesh(fsdp=more)
            fits = mesh.readers <= readers and unfit(rounded(view.plan, mesh.readers), mesh) is None
            if fits and estimate_of(view, mesh, device).memory <= FILL * device.memory:
                again = " --recompute" if view.recompute else ""
                return f"{more} would do (--gpus {more}x{device.name} --mesh {mesh}{again})"
    again = "" if view.recompute else "--recompute or "
    return f"use devices with more memory, {again}a shorter train.context"


def estimate_of(view: Outlook, mesh: Mesh, device: Device) -> Estimate:
    """An estimate with one row at a time, of a plan whose batch the mesh can share."""
    other = Outlook(rounded(view.plan, mesh.readers), recompute=view.recompute, half=view.half)
    return estimate(other, mesh, device, 1)


def rounded(plan: Plan, readers: int) -> Plan:
    """The plan with the nearest batch that so many processes can share evenly."""
    rows = max(1, round(plan.rows / readers)) * readers
    return plan if rows == plan.rows else replace(plan, recipe=replace(plan.recipe, batch=rows * plan.context))


def table(found: Estimate) -> dict[str, Any]:
    """An estimate as plain data."""
    return asdict(found) | {"memory": found.memory}
