"""Memory a device, work, time and money of a plan on a mesh."""

from __future__ import annotations

import functools
import itertools
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch

from stemma.errors import ResourceError, UsageError
from stemma.families.recipes import Adafactor, AdamW
from stemma.nn.model import Model
from stemma.nn.parts import HeadNorm
from stemma.nn.stack import Block
from stemma.objectives import Objective
from stemma.parallel.mesh import Mesh
from stemma.planning import trace
from stemma.planning.hardware import Device
from stemma.train import meter
from stemma.train.config import Plan, budget
from stemma.train.run import objective_of

FILL = 0.92  # of a device's memory that is planned with: allocators need room
FEW = 4  # rows that are traced, and twice as many; the memory of others follows by a line
NODE = (1, 2, 4, 8)  # slices: devices of one node, whose links are fast


@dataclass(frozen=True)
class Estimate:
    """Of one mesh. Bytes are of one device: `weights`, `gradients` and `optimizer` of the part that it holds;
    `gathered`: what of others' parts is there at a time; `activations`: all that a step keeps for its gradient, logits
    among them (`logits`). `cache`: keys and values of one row in inference, bf16. `seconds` a step."""

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
    sent: float

    @property
    def memory(self) -> float:
        """Bytes at once on a device."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations


class Way(NamedTuple):
    """How a step is taken: slices, whether on a CPU, whether in bf16, and micro-batches (two stand for many)."""

    tp: int
    cpu: bool
    half: bool
    micros: int


class Outlook:
    """A plan, seen from outside: what its network, objective and recipe make of a step. Steps of one and two layers and
    rows are traced on the meta device; memory goes linearly with both."""

    def __init__(self, plan: Plan, *, recompute: bool = False, half: bool | None = None) -> None:
        self.plan, self.recompute, self.half = plan, recompute, half
        words = trace.Words(plan.text, plan.dims.vocab)
        self.objective: Objective = objective_of(plan, words)
        rows = self.objective.examples(trace.Texts(words, plan.context))
        self.examples = [example for example, _ in itertools.islice(rows, 8)]
        with torch.device("meta"):
            self.model = Model(plan.arch, plan.dims)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        blocks = [m for m in self.model.modules() if isinstance(m, Block)]
        self.block = max(sum(p.numel() for p in block.parameters()) for block in blocks)
        self.outside = self.parameters - sum(p.numel() for block in blocks for p in block.parameters())

    def batch(self, rows: int) -> Any:
        return self.objective.collate(list(itertools.islice(itertools.cycle(self.examples), rows)))

    @functools.cached_property
    def work(self) -> float:
        """Operations a token of the row, forward and backward; what is recomputed is no useful work and not in it."""
        batch = self.batch(8)
        tokens = batch["input_ids"].numel()
        share = self.objective.counts(batch)[self.objective.main] / tokens
        decoder = batch["decoder_input_ids"].numel() / tokens if "decoder_input_ids" in batch else 0.0
        return meter.flops(self.model, self.plan.context, share, decoder)

    @functools.cached_property
    def steps(self) -> int | None:
        """Steps that the budget buys; None for a budget in seconds, which a probe turns into steps."""
        limit, tokens = budget(self.plan.train.budget), self.plan.rows * self.plan.context
        if limit.steps is not None:
            return limit.steps
        if limit.tokens is not None:
            return max(1, round(limit.tokens / tokens))
        return None if limit.flops is None else max(1, round(limit.flops / (self.work * tokens)))

    def logits(self, micro: int) -> float:
        """Bytes of the fp32 logits of a micro-batch, so far as they are held at once."""
        from stemma.objectives.vocabulary import LOGITS

        targets = self.objective.counts(self.batch(8))[self.objective.main] * micro / 8
        return 4.0 * min(targets * self.plan.dims.vocab, LOGITS)

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
        few, many = self._deep(how, FEW), self._deep(how, 2 * FEW)
        return many + (many - few) / FEW * (micro - 2 * FEW)

    @functools.cache  # noqa: B019
    def _deep(self, how: Way, rows: int) -> float:
        depth = self.plan.dims.layers
        if depth <= 2 or self.plan.dims.groups is not None or self.plan.dims.depth != depth:
            return self._traced(how, rows, None)
        one, two = (self._traced(how, rows, n) for n in (1, 2))
        return two + (two - one) * (depth - 2)

    def _traced(self, how: Way, rows: int, layers: int | None) -> float:
        dims = self.plan.dims
        if layers is not None:
            dims = replace(dims, layers=layers)
        if how.tp > 1:  # a slice is a network of as many heads less
            kv, heads, width = dims.kv // how.tp, dims.heads // how.tp, dims.width
            dims = replace(dims, heads=heads, kv_heads=kv, d_ff=dims.d_ff // how.tp, head_dim=width)
        peak, parameters = trace.step(
            self.plan.arch,
            dims,
            self.objective,
            self.batch(rows),
            cpu=how.cpu,
            half=how.half,
            recompute=self.recompute,
            micros=how.micros,
        )
        return float(peak - 4 * parameters)

    def slots(self) -> float:
        """Numbers that the optimiser keeps for each weight."""
        return 0.05 if isinstance(self.plan.recipe.optimizer, Adafactor) else 2.0

    def halves(self, device: Device) -> bool:
        if self.half is not None:
            return self.half
        return self.plan.train.precision == "bf16" or (self.plan.train.precision == "auto" and device.name != "CPU")


def unfit(plan: Plan, mesh: Mesh) -> str | None:
    """Why a plan cannot run on a mesh; None if it can."""
    dims = plan.dims
    if plan.rows % mesh.readers:
        near = max(1, round(plan.rows / mesh.readers)) * mesh.readers * plan.context
        return f"{mesh.readers} processes read the {plan.rows} rows of a step; set recipe.batch={near}"
    if (mesh.fsdp > 1 or mesh.tp > 1) and not isinstance(plan.recipe.optimizer, AdamW):
        kind = type(plan.recipe.optimizer).__name__
        return f"{kind} looks at whole matrices; use dp, or recipe.optimizer={{kind: AdamW}}"
    if (mesh.fsdp > 1 or mesh.tp > 1) and plan.nets:
        return "networks beside the model are not split yet; use dp"
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
    sent = 0.0
    if mesh.fsdp > 1:  # gathered forward and backward, gradients scattered, each micro-batch
        sent += accumulate * 3 * 4.0 * view.parameters / mesh.tp * (1 - 1 / mesh.fsdp)
    if mesh.dp > 1:
        sent += 2 * 4.0 * view.parameters / parts * (1 - 1 / mesh.dp)
    if mesh.tp > 1:  # a sum a branch forward, and q, k, v, gate and up backward
        branches = plan.dims.layers * (1 + 1 + 3 + 2)
        sent += branches * rows * plan.context * plan.dims.d_model * (2 if half else 4) * 2 * (1 - 1 / mesh.tp)
    if seconds is None:
        again = 4 / 3 if view.recompute else 1.0
        speed = device.peak * device.share * (1.0 if half or cpu else 0.5)
        work = view.work * plan.rows * plan.context * again / mesh.size / speed
        seconds = max(work, sent / device.link)
    return Estimate(
        mesh=str(mesh),
        device=device.name,
        micro=micro,
        accumulate=accumulate,
        weights=weights,
        gradients=weights,
        optimizer=view.slots() * weights,
        gathered=gathered,
        activations=view.kept(Way(mesh.tp, cpu, half, min(accumulate, 2)), micro),
        logits=view.logits(micro),
        cache=view.cache,
        seconds=seconds,
        sent=sent,
    )


def meshes(count: int) -> list[Mesh]:
    """Every mesh of so many processes that keeps slices within a node, the fewest slices first."""
    found = []
    for tp in NODE:
        for dp in (n for n in range(1, count + 1) if count % (n * tp) == 0):
            found.append(Mesh(dp=dp, fsdp=count // (dp * tp), tp=tp))
    return found


def largest(view: Outlook, mesh: Mesh, device: Device) -> Estimate | None:
    """The estimate with the most rows at once that fit, a power of two; None if not even one does."""
    most = view.plan.rows // mesh.readers
    best = None
    for micro in (2**i for i in range(most.bit_length())):
        found = estimate(view, mesh, device, min(micro, most))
        if found.memory > FILL * device.memory:
            break
        best = found
    return best


def suggest(view: Outlook, count: int, device: Device) -> Estimate:
    """The fastest mesh of `count` devices whose parts fit, by the estimate; of equal ones that with fewer slices, then
    fewer shards. Raises ResourceError if none fits, UsageError if none can run."""
    able = [m for m in meshes(count) if unfit(view.plan, m) is None]
    if not able:
        raise UsageError(
            f"{view.plan.name} runs on no mesh of {count} {device.name}: {unfit(view.plan, Mesh(fsdp=count))}"
        )
    fits: list[Estimate] = []
    for slices in NODE:  # more slices send more: they are for what does not fit without them
        fits = fits or [e for m in able if m.tp == slices if (e := largest(view, m, device)) is not None]
    if not fits:
        need = min(estimate(view, m, device, 1).memory for m in able)
        raise ResourceError(
            f"{view.plan.name} does not fit on {count} {device.name} of {device.memory / 1e9:.0f} GB: the best mesh "
            f"needs {need / 1e9:.1f} GB a device with one row at a time; use more devices, --recompute or a shorter "
            "train.context"
        )
    return min(fits, key=lambda e: e.seconds)


def table(found: Estimate) -> dict[str, Any]:
    """An estimate as plain data."""
    return asdict(found) | {"memory": found.memory}
