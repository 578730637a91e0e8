"""The training loop of one rank of several: the same steps as one process would take.

Every rank walks the same plan of rows and makes only its own. Losses are divided by the targets of all ranks, so that
gradients are those of the whole step. The main rank writes metrics and prints; all ranks write checkpoints."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stemma import disk
from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.objectives import Batch, Objective
from stemma.parallel import World
from stemma.parallel import checkpoint as shards
from stemma.parallel.shard import RootObjective, ShardedLearners, StepModule
from stemma.rewrites.engine import apply, pairs
from stemma.runs import checkpoint
from stemma.runs.metrics import NoMetrics
from stemma.train.config import Plan
from stemma.train.learners import Learners
from stemma.train.loop import Loop
from stemma.train.source import Source


@dataclass(frozen=True)
class ShardedFiles:
    """Checkpoints of which each rank writes and reads its own part, in place of `runs.checkpoint`."""

    learners: ShardedLearners
    world: World

    def save(self, run: Path, place: Any, model: Any, optimizer: Any, state: Any, keep: int, *, every: int = 1) -> Path:
        """Called by every rank. All write into one folder, which the main rank then makes a checkpoint."""
        folder = run / "checkpoints" / ".shards"
        if self.world.is_main:
            shutil.rmtree(folder, ignore_errors=True)  # of processes that were killed while writing
            folder.mkdir(parents=True)
        self.world.barrier()
        then = f"go on with: stemma resume {run}"
        shards.write(folder, {"model": model, "optimizer": optimizer}, self.learners.layouts, then=then)
        final = None
        if self.world.is_main:
            state = {**state, "mesh": str(self.world.shape)}
            final = checkpoint.save(run, place, {}, {}, state, keep, every=every, shards=folder)
            shutil.rmtree(folder, ignore_errors=True)
        return Path(self.world.broadcast(final))

    def load(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
        """This rank's parts of the weights and of the optimiser's tensors, and the state."""
        state = checkpoint.verify(path) if self.world.is_main else disk.read_json(path / checkpoint.STATE)
        layouts = self.learners.layouts
        with checkpoint.with_advice(path):
            if (path / shards.SHARDS).is_dir():
                found = shards.read(path / shards.SHARDS, layouts)
                return found["model"], found["optimizer"], state
            weights, slots = (shards.cut(path / f"{kind}.safetensors", kind, layouts) for kind in shards.KINDS)
        return weights, slots, state


class Sharded(Loop):
    """A loop over the mesh of `world`."""

    def __init__(
        self,
        plan: Plan,
        model: Model,
        objective: Objective,
        source: Source,
        nets: Mapping[str, Model] | None,
        world: World,
    ) -> None:
        self.world = world
        self._copies: dict[str, Model] = {}
        super().__init__(plan, model, objective, source, nets)
        readers = world.shape.readers
        if source.full < readers:
            raise UsageError(
                f"mesh {world.shape} has {readers} readers of rows, and a step of this run has {source.full} "
                f"(recipe.batch / context), so that some would never have any; take a mesh of at most {source.full}"
            )
        source.share(world.reader, readers)
        self.files = ShardedFiles(self.learners, world)

    def distribute(self, learners: Learners) -> Any:
        root = StepModule(
            self.objective, self.model, self.nets, gathered_blocks(self.objective, [self.model, *self.nets.values()])
        )
        spread = ShardedLearners(learners, self.world, root)
        self.objective: Any = RootObjective(self.objective, root)
        return spread

    def sum_counts(self, counts: dict[str, int]) -> dict[str, int]:
        return self.world.sum_counts(counts, "dp", "fsdp")

    def sum_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        if not metrics:
            return metrics
        found = torch.tensor(list(metrics.values()), dtype=torch.float64, device=self.device)
        self.world.all_reduce([found], "dp", "fsdp")
        return dict(zip(metrics, found.tolist(), strict=True))

    def gradient(self, batches: list[Batch]) -> tuple[Tensor, dict[str, Tensor], dict[str, int]]:
        total, sums, counts = super().gradient(batches)
        self.learners.collect()
        total = total.clone()
        self.world.all_reduce([total, *sums.values()], "dp", "fsdp")
        return total, sums, counts

    def norm(self) -> Tensor:
        return self.learners.norm()

    def metrics(self, run: Path) -> Any:
        return super().metrics(run) if self.world.is_main else NoMetrics()

    def any_rank(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        """Every rank gets the same answer after the same step."""
        return lambda: self.world.sum_counts({"asked": int(asked())}, "dp", "fsdp", "tp")["asked"] > 0

    def agreed(self, value: Any) -> Any:
        return self.world.broadcast(value)

    def barrier(self) -> None:
        self.world.barrier()

    @property
    def dynamic(self) -> bool | None:
        return False if self.world.shape.tp > 1 else None  # torch cannot compile sliced matrices for any lengths

    @property
    def is_main(self) -> bool:
        return self.world.is_main

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        try:
            with super().averaged():
                self.learners.refresh()
                yield
        finally:
            self.learners.refresh()

    def take_weights(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        found = super().take_weights(path)
        self.learners.refresh()
        return found

    def finish(self) -> None:
        """As for one rank. Where the mesh splits weights, tied weights are untied in the gathered copy."""
        if not self.learners.layouts:
            super().finish()
        elif self.average is not None:
            self.average.swap()
            self.learners.refresh()

    def everyone(self, values: list[Any]) -> list[Any]:
        return self.world.gather_readers(values)

    @torch.no_grad()
    def whole(self) -> dict[str, Model]:
        """As for one rank; where the mesh splits weights, copies, which are filled again at each call."""
        if not self.learners.layouts:
            return super().whole()
        parts = {"model": self.model, **self.nets}
        if not self._copies:
            self._copies = {role: _empty(net, self.device).train(net.training) for role, net in parts.items()}
            for role in self.nets.keys() - self.learners.nets.keys():  # frozen: filled once
                own = parts[role].state_dict()
                for name, tensor in self._copies[role].state_dict().items():
                    tensor.copy_(_full(own[name]))
        learning = {role: self._copies[role] for role in self.learners.nets}
        tensors = self.learners.whole(everywhere=True)
        for name, tensor in Learners(self._copies["model"], learning).tensors(frozen=True).items():
            tensor.copy_(tensors[name])
        return self._copies

    def gathered(self) -> dict[str, Model]:
        """As for one rank; on the main rank only, and on the CPU where the mesh splits weights. Called by every rank,
        after `finish`."""
        if not self.learners.layouts:  # copies are whole
            return super().gathered() if self.world.is_main else {}
        tensors = self.learners.whole()
        if not self.world.is_main:
            return {}
        found = {"model": _empty(self.model), **{role: _empty(net) for role, net in self.learners.nets.items()}}
        nets = {role: net for role, net in found.items() if role != "model"}
        if nets:
            self.objective.tie(found["model"], nets)
        with torch.no_grad():
            for name, tensor in Learners(found["model"], nets).tensors(frozen=True).items():
                tensor.copy_(tensors[name])
        self.objective.untie(found["model"], nets)
        return found


def gathered_blocks(objective: Objective, nets: Iterable[Model]) -> Iterator[nn.Module]:
    """The blocks whose weights are used outside of the block's own forward pass: all of two streams, the last one where
    the objective reads its attention."""
    for net in nets:
        for stack in (net.encoder, net.decoder):
            if stack is not None and net.arch.streams is not None:
                yield from stack.blocks
            elif stack is not None and objective.reads_attention:
                yield stack.blocks[stack.order[-1][0]]


def _full(tensor: Tensor) -> Tensor:
    """A tensor of which ranks hold parts, in full. Called by every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _empty(model: Model, device: str | torch.device = "cpu") -> Model:
    """A network like `model`, whole, on a device, without weights."""
    with torch.device("meta"):
        full = Model(model.arch, model.dims)
        apply(full, model.rewrites)
    full.to_empty(device=device)
    for whole, part in pairs(full, model):
        whole.empty_like(part)
    for name in ("family", "name", "text", "tokenizer", "design"):
        setattr(full, name, getattr(model, name))
    return full
