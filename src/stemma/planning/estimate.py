"""Memory a device, work, time and money of a plan on a mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from stemma.declare import ramps
from stemma.errors import UsageError
from stemma.nn.parts import HeadNorm
from stemma.parallel import Mesh, mesh
from stemma.planning.hardware import Device
from stemma.planning.outlook import Outlook
from stemma.train.config import Plan


@dataclass(frozen=True)
class Estimate:
    """Of one mesh. Bytes are of one device: `weights`, `gradients` and `optimizer` of the part of what learns that it
    holds, `frozen` of weights that do not learn; `gathered`: what of others' parts is there at a time; `activations`:
    all else that a step holds at its worst moment, logits among it (`logits`). `cache`: keys and values of one row in
    inference, bf16. `seconds` a step, of which its work takes `computing`, and the sums of slices, which it has to wait
    for, `waiting`; what is gathered and reduced for rows and shards takes `sending`, at once with both. `sent`: bytes
    of all messages."""

    mesh: str
    device: str
    micro: int
    accumulate: int
    weights: float
    frozen: float
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
        return self.weights + self.frozen + self.gradients + self.optimizer + self.gathered + self.activations


def unfit(plan: Plan, mesh: Mesh) -> str | None:
    """Why a plan cannot run on a mesh; None if it can."""
    dims = plan.dims
    if plan.rows % mesh.readers:
        near = max(1, round(plan.rows / mesh.readers)) * mesh.readers * plan.context
        return f"{mesh.readers} processes read the {plan.rows} rows of a step; set recipe.batch={near}"
    if mesh.tp > 1 and plan.rewrites:
        return "tp does not split networks with rewrites; use fsdp"
    if mesh.tp > 1 and plan.nets:
        return "tp does not slice networks beside the model; use fsdp"
    if mesh.tp > 1:
        if (why := dims.uneven(mesh.tp)) is not None:
            return why
        known = dims.experts is None and plan.arch.streams is None
        if not known or isinstance(plan.arch.attention.qk_norm, HeadNorm):
            return "tp does not split this network"
    return None


def estimate(view: Outlook, mesh: Mesh, device: Device, micro: int, seconds: float | None = None) -> Estimate:
    """What a step needs on a mesh with micro-batches of `micro` rows a process; `seconds` of a step, if measured."""
    plan, half, cpu = view.plan, view.halves(device), device.name == "CPU"
    if (why := unfit(plan, mesh)) is not None:
        raise UsageError(f"{plan.name} does not run on mesh {mesh}: {why}")
    rows = plan.rows // mesh.readers
    micro = min(micro, rows)
    accumulate = -(-rows // micro)
    weights = 4.0 * view.learned / (mesh.fsdp * mesh.tp)
    gathered = 0.0
    if mesh.fsdp > 1:  # what is outside of blocks with its gradient, and a block in use, the next, and a gradient
        gathered = 4.0 * (2 * view.outside + 3 * view.block) / mesh.tp
    memory = view.memory(mesh.tp, cpu, half)
    activations = view.activations(memory, micro, mesh.fsdp, accumulate > 1)
    took = timing(view, mesh, device, micro)
    return Estimate(
        mesh=str(mesh),
        device=device.name,
        micro=micro,
        accumulate=accumulate,
        weights=weights,
        frozen=view.frozen / (mesh.fsdp * mesh.tp),
        gradients=weights,
        optimizer=view.slots * weights,
        gathered=gathered,
        activations=activations,
        logits=view.logits(memory, micro),
        cache=view.cache,
        seconds=seconds if seconds is not None else took.seconds,
        computing=took.computing,
        waiting=took.messages.waiting,
        sending=took.messages.sending,
        sent=took.messages.sent,
    )


class StepTime(NamedTuple):
    """Seconds that a step computes, and its messages."""

    computing: float
    messages: Messages

    @property
    def seconds(self) -> float:
        return max(self.computing + self.messages.waiting, self.messages.sending)


def timing(view: Outlook, mesh: Mesh, device: Device, micro: int) -> StepTime:
    """The time of a step with micro-batches of `micro` rows a process."""
    plan, rows = view.plan, view.plan.rows // mesh.readers
    again = 4 / 3 if view.recompute else 1.0
    fast = view.halves(device) or device.name == "CPU"
    speed = device.peak * device.share * (1.0 if fast else 0.5)
    computing = view.work * plan.rows * plan.context * again / mesh.size / speed
    return StepTime(computing, Messages.of(view, mesh, device, rows, min(micro, rows)))


class Messages(NamedTuple):
    """Of a step, of each process: bytes; seconds of those that the work waits for, and of those that it does not."""

    sent: float
    waiting: float
    sending: float

    @classmethod
    def of(cls, view: Outlook, mesh: Mesh, device: Device, rows: int, micro: int) -> Messages:
        """Those of a process that reads so many rows a step. Of neighbours `tp` lie next to each other, then `fsdp`."""
        plan, one = view.plan, 4.0 * view.learned / mesh.tp
        # gathered forward and backward, gradients scattered, each micro-batch
        shards = -(-rows // micro) * 3 * one * (1 - 1 / mesh.fsdp)
        shards += -(-rows // micro) * 2 * view.frozen * (1 - 1 / mesh.fsdp)
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


def table(found: Estimate) -> dict[str, Any]:
    """An estimate as plain data."""
    return asdict(found) | {"memory": found.memory}
