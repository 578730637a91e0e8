"""The one training loop: any objective, any model, any source of batches."""

from __future__ import annotations

import contextlib
import hashlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stemma import disk
from stemma.errors import CheckpointError, DataError, ResourceError, no_memory
from stemma.nn import products
from stemma.nn.model import Model
from stemma.nn.positions import Rotary
from stemma.objectives import Batch, Objective
from stemma.objectives.base import Loss, means
from stemma.runs import best, checkpoint, length
from stemma.runs.drive import OnStep, drive
from stemma.runs.metrics import Metrics, Record
from stemma.runs.spikes import Diverged
from stemma.train import meter, optim
from stemma.train.average import Average
from stemma.train.config import Plan
from stemma.train.device import pick_device, pick_precision
from stemma.train.learners import Learners, fingerprint
from stemma.train.prefetch import Prefetch
from stemma.train.recompute import recompute
from stemma.train.source import DummyBatch, Source

STATE = {"step": int, "tokens": int, "seconds": float, "rewinds": int, "losses": [float], "cursor": Any}
STATE |= {"lengths?": length.SHAPE, "best?": best.SHAPE, "updates?": int}
SAMPLED = 1000  # entries of a frozen tensor that are compared when a run is resumed
AHEAD = {"cpu": 0, "cuda": 2}  # steps whose batches are made ahead, where the plan leaves it open


class Update(NamedTuple):
    """What one optimiser update saw: the loss, the gradient's norm, the loss's parts as sums and counts, and, where the
    objective records them, its metrics as means."""

    loss: float
    norm: float
    sums: dict[str, Tensor]
    counts: dict[str, int]
    metrics: dict[str, float]


class Loop:
    """A model in training: its optimiser, the place in its source, and `advance()` to take one step.

    `plan.recipe.steps` is the length of the run, on which the learning rate depends; `length` may change it. All
    randomness of a step follows from (seed, step), so a loop restored from a checkpoint goes on bit for bit on the same
    machine and thread count.
    A step takes one draw from the source; that is one optimiser update, or several where the source says so.
    """

    def __init__(
        self, plan: Plan, model: Model, objective: Objective, source: Source, nets: Mapping[str, Model] | None = None
    ) -> None:
        recipe = plan.recipe
        assert recipe.lr is not None and recipe.steps is not None, "the plan has no learning rate or no steps"
        self.plan, self.objective, self.source = plan, objective, source
        self.device = pick_device(plan)
        self.precision = pick_precision(plan, self.device)
        self.model = model.to(self.device).train()
        self.nets = {role: net.to(self.device) for role, net in (nets or {}).items()}
        objective.tie(self.model, self.nets)
        learning = Learners(self.model, {n.role: self.nets[n.role].train() for n in plan.nets if n.learns})
        self.frozen = _frozen(learning)
        uses = optim.uses_of(learning.each()) if plan.train.matrices == "use" else None
        self.learners = self.distribute(learning)
        self.lr, self.length = recipe.lr, length.Length(recipe.steps)
        source.length = self.length
        parts = getattr(self.learners, "parts", None)
        self.optimizer = optim.optimizer(recipe.optimizer, self.learners.named(), self.lr, parts, uses, recipe.rates)
        self.parameters = [p for p in self.learners.parameters() if p.requires_grad]
        self.files: Any = checkpoint
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.update, self._drawn = 0, 0  # of the step at hand: updates taken, tokens drawn
        self._sampled: Mapping[str, float] = {}  # of the step at hand: what its draw tells
        self._metrics: dict[str, float] = {}  # of the update at hand: sums
        self.cursor: Any = source.cursor_type()
        learn = {name: p for name, p in self.learners.named() if p.requires_grad}
        self.average = Average(learn, plan.train.average) if plan.train.average else None
        self.rewinds, self.losses = 0, list[float]()
        self.best: best.Best | None = None
        self.closing = 0
        ahead = plan.train.ahead if plan.train.ahead is not None else AHEAD[self.device.type]
        self.ahead = 0 if source.online else ahead
        self._stream: Prefetch | Iterator[Any] | None = None
        self._falling = [m for m in self.model.modules() if isinstance(m, Rotary) and m.falling is not None]
        self._transform()
        source.attach(self)

    def _transform(self) -> None:
        """Recompute activations and compile stacks where the plan says so."""
        if self.plan.train.recompute:
            recompute(self.model, self.plan.train.recompute)
        if not self.plan.train.compile:
            return
        for net in (self.model, *self.nets.values()):
            net.compiled = True
            for stack in (net.encoder, net.decoder):
                if stack is not None:
                    stack.compile(dynamic=self.dynamic)

    @property
    def steps(self) -> int:
        """Steps that the run takes."""
        return self.length.steps

    # ------------------------------------------------------------ one step

    def batches(self) -> list[list[Batch]]:
        """The next step's updates, each as micro-batches. Moves the cursor and counts the tokens."""
        if self._stream is None:
            stream = self.source.draws(self.cursor, self.step)
            self._stream = Prefetch(lambda: next(stream), self.ahead) if self.ahead else stream
        draw = self._stream.take() if isinstance(self._stream, Prefetch) else next(self._stream)
        self.cursor, self._drawn, self._sampled = draw.cursor, draw.tokens, draw.metrics
        return list(draw.updates)

    def move(self, cursor: Any) -> None:
        """Go on from another place in the source."""
        if isinstance(self._stream, Prefetch):
            self._stream.close()
        self._stream, self.cursor = None, cursor

    def close(self) -> None:
        """End the thread that makes batches, if there is one; the next step begins another."""
        self.move(self.cursor)

    def skipped(self, steps: int) -> Any:
        """The cursor behind the next `steps` steps."""
        return self.source.skip(self.cursor, self.step, steps)

    def gradient(self, batches: list[Batch]) -> tuple[Tensor, dict[str, Tensor], dict[str, int]]:
        """Add the gradient of an update's loss, over all of its micro-batches, to the parameters.

        Every part of the loss is divided by its targets in the whole update, so that the gradient does not depend on
        how the rows are split. Returns the loss, and its parts' sums and counts.
        """
        counts = self._counts(batches)
        sums: dict[str, Tensor] = {}
        total: Tensor = torch.zeros((), device=self.device)
        self._metrics = {}
        for i, batch in enumerate(batches):
            dummy = isinstance(batch, DummyBatch)
            with self.products():
                with self.autocast():
                    loss = self._loss(batch, self.source.reader * len(batches) + i)
                    part = loss.total(counts) * 0.0 if dummy else loss.total(counts)
                part.backward()
            total = total + part.detach()
            for k, s in loss.sums.items():
                sums[k] = sums.get(k, torch.zeros((), device=self.device)) + (0.0 if dummy else s.detach())
            for k, value in loss.recorded.items() if self.objective.records else ():
                self._metrics[k] = self._metrics.get(k, 0.0) + (0.0 if dummy else value)
        return total, sums, counts

    def _loss(self, batch: Batch, number: int) -> Loss:
        """The loss of micro-batch `number` of all ranks' together; its random numbers depend on (seed, step, number)
        alone."""
        torch.manual_seed(_mix(self.plan.seed, self.step + 1, number, *([self.update] if self.update else [])))
        batch = {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}
        return self.objective.loss(self.model, batch, self.nets)

    def _counts(self, batches: list[Batch]) -> dict[str, int]:
        """Targets of each part in an update, over all ranks. An objective that knows them only after the forward pass
        (`counts_after_forward`) is run twice, the first time without a gradient."""
        each: list[dict[str, int]] = []
        for i, batch in enumerate(batches):
            if self.objective.counts_after_forward:
                with torch.no_grad(), self.autocast():
                    found = self._loss(batch, self.source.reader * len(batches) + i).counts
            else:
                found = self.objective.counts(batch)
            each.append(dict.fromkeys(found, 0) if isinstance(batch, DummyBatch) else found)
        counts = self.sum_counts({k: sum(c[k] for c in each) for k in each[0]})
        if counts[self.objective.main] == 0:
            raise DataError(f"step {self.step + 1} has nothing to predict: its rows hold special tokens only")
        return counts

    def advance(self) -> Record:
        """Take one step; returns its record. Raises Diverged if a loss or a gradient is not finite, before the update
        touches any weight."""
        try:
            return self._advance()
        except (MemoryError, RuntimeError, SystemError, OSError) as error:
            if not no_memory(error):
                raise
            micro = self.source.micro
            less = f"set train.micro={micro // 2} or " if micro > 1 else "set "
            raise ResourceError(
                f"step {self.step + 1} does not fit into memory with {micro} rows of {self.plan.context} tokens "
                f"at once; {less}train.recompute=['*.blocks.*'], or take a smaller size"
            ) from None

    def _advance(self) -> Record:
        place, planned = self.length.place(self.step + 1), self.length.planned
        lr = optim.learning_rate(self.plan.recipe.schedule, self.lr, place, planned)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("times", 1.0)
        for scheme in self._falling:
            scheme.at_step(self.length.place(self.step), planned)
        taken: list[Update] = []
        for number, batches in enumerate(self.batches()):
            self.update = number
            taken.append(self._take(batches))
        self.update = 0
        self.tokens += self._drawn
        self.step += 1
        record: Record = {"step": self.step, "loss": statistics.fmean(u.loss for u in taken)}
        if len(taken[0].sums) > 1:
            for k in taken[0].sums:
                parts = [u.sums[k].item() / u.counts[k] for u in taken if u.counts[k]]
                record |= {f"loss_{k}": statistics.fmean(parts)} if parts else {}
        record |= {"tokens": self.tokens, "lr": lr, "grad_norm": statistics.fmean(u.norm for u in taken)}
        record |= {"targets": sum(u.counts[self.objective.main] for u in taken)}
        for k in dict.fromkeys(k for u in taken for k in u.metrics):
            record[k] = statistics.fmean(u.metrics[k] for u in taken if k in u.metrics)
        return record | dict(self._sampled)

    def _take(self, batches: list[Batch]) -> Update:
        """One optimiser update."""
        total, sums, counts = self.gradient(batches)
        norm = self.norm()
        loss, size = total.item(), norm.item()
        if not (math.isfinite(loss) and math.isfinite(size)):
            raise self._diverged(loss, size, sums)
        if (clip := self.plan.recipe.clip) is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        metrics = means(self.sum_metrics(self._metrics), counts[self.objective.main])
        return Update(loss, size, sums, counts, metrics)

    def _diverged(self, loss: float, size: float, sums: Mapping[str, Tensor]) -> Diverged:
        """The error of an update that cannot be taken; drops its gradient and the batches that were made ahead."""
        what = f"the loss is {loss}, the gradient norm {size}{self._culprit(sums)}"
        self.optimizer.zero_grad(set_to_none=True)
        self.update = 0
        self.move(self.cursor)
        return Diverged(
            f"training diverged at step {self.step + 1}: {what}; lower recipe.lr or raise recipe.schedule.warmup", what
        )

    def _culprit(self, sums: Mapping[str, Tensor]) -> str:
        """Where a number that is not finite is first found: a weight, a part of the loss, a gradient."""
        for name, p in self.learners.named():
            if not bool(p.isfinite().all()):
                return f"; the weight {name} is not finite"
        for part, total in sums.items():
            if not math.isfinite(float(total)):
                return f"; the part {part!r} of the loss is not finite"
        norms = {name: float(p.grad.norm()) for name, p in self.learners.named() if p.grad is not None}
        for name, p in self.learners.named():
            if p.grad is not None and not bool(p.grad.isfinite().all()):
                return f"; the gradient of {name} is not finite"
        for name, norm in norms.items():
            if not math.isfinite(norm):
                return f"; the gradient of {name} is too large for its squares to be added up"
        return f"; the largest gradient is that of {max(norms, key=norms.__getitem__)}" if norms else ""

    def finish(self) -> None:
        """After the last step: take the mean of the weights if there is one, and untie what training tied."""
        if self.average is not None:
            self.average.swap()
        self.objective.untie(self.model, self.nets)

    def autocast(self) -> Any:
        """The precision of the forward pass; weights, optimiser and loss are fp32 in any case."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def products(self) -> Any:
        """What multiplies matrices in the forward and the backward pass."""
        return products.onednn(self.plan.train.products == "onednn")

    def cost(self) -> float:
        """Floating-point operations a token of a training step, judged by a batch like those of the first step."""
        share, decoder = 1.0, 0.0
        if (batch := self.source.sample()) is not None:
            tokens = batch["input_ids"].numel()
            share = self.objective.counts(batch).get("token", 0) / tokens
            decoder = batch["decoder_input_ids"].numel() / tokens if "decoder_input_ids" in batch else 0.0
        cost = meter.flops(self.model, self.plan.context, share, decoder)
        for role, net in self.nets.items():  # one that does not learn goes forward only
            cost += meter.flops(net, self.plan.context, share, decoder) / (1 if role in self.learners.nets else 3)
        return cost

    def peak(self) -> float:
        """Operations a second that this device reaches at most."""
        return meter.peak(self.device.type, self.precision == "bf16")

    # ------------------------------------------------------------ checkpoints

    def save(self, run: Path) -> Path:
        """Write a checkpoint of where the loop stands."""
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "cursor": self.source.save(self.cursor),
            "rewinds": self.rewinds,
            "losses": self.losses,
            **self.frozen,
        }
        if self.length.changes:
            state["lengths"] = self.length.save()
        if self.best is not None:
            state["best"] = self.best.save()
        if self.average is not None and self.average.updates != self.step:
            state["updates"] = self.average.updates
        weights, slots = self.tensors()
        spikes, place = self.plan.train.spikes, (self.rewinds, self.step)
        keep = max(self.plan.train.keep, 0 if spikes is None else -(-spikes.back // self.save_every) + 1)
        every = 1 if spikes is None else self.save_every
        path: Path = self.files.save(run, place, weights, slots, state, keep, every=every)
        return path

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tensors of a checkpoint: weights that learn by name, and by `weight:slot` the optimiser's state and the
        mean."""
        slots = optim.state(self.learners, self.optimizer) | (self.average.state() if self.average is not None else {})
        return self.learners.tensors(), slots

    @property
    def save_every(self) -> int:
        """Steps from one checkpoint to the next."""
        return self.plan.train.save_every or max(1, -(-self.length.planned // 10))

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint. Raises CheckpointError if it does not fit the model."""
        slots, state = self.take_weights(path)
        self.optimizer.state.clear()
        optim.restore(self.learners, self.optimizer, slots)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.rewinds, self.losses = state["rewinds"], list(state["losses"])
        self.length.load(state.get("lengths"))
        self.best = best.Best(**found) if (found := state.get("best")) else None
        self.move(self._cursor(path, state["cursor"]))

    def take_weights(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Take the weights of a checkpoint, and their mean. Returns the optimiser's tensors and the state. Raises
        CheckpointError if it does not fit the model."""
        weights, slots, state = self.files.load(path)
        if "rewinds" not in state:
            raise CheckpointError(
                f"the checkpoint {path} was written by an older version, in another order of the text"
            )
        disk.typed(path / checkpoint.STATE, state, STATE)
        if "best" in state and not checkpoint.NAME.fullmatch(state["best"]["checkpoint"]):
            raise CheckpointError(f"{path / checkpoint.STATE} is damaged: its best checkpoint has no name of one")
        own, frozen = self.learners.tensors(), set(self.frozen.get("frozen", {}).get("names", ()))
        if odd := sorted(own.keys() ^ (weights.keys() - frozen)):
            raise CheckpointError(f"the checkpoint {path} does not fit this model: {odd[0]} is in one of them only")
        if "frozen" in state and state["frozen"] != self.frozen.get("frozen"):
            raise CheckpointError(
                f"the frozen weights are not those that the checkpoint {path} was written beside: put back "
                f"{self.plan.train.start or 'the weights'} as it was when the run began"
            )
        for name, tensor in own.items():
            if tensor.shape != weights[name].shape:
                raise CheckpointError(
                    f"the checkpoint {path} does not fit this model: {name} has shape {tuple(weights[name].shape)} "
                    f"there and {tuple(tensor.shape)} here"
                )
            tensor.copy_(weights[name])
        if self.average is not None:
            self.average.restore(slots, state.get("updates", state["step"]))
        return {key: slot for key, slot in slots.items() if key.rpartition(":")[0] not in frozen}, state

    def _cursor(self, path: Path, saved: Any) -> Any:
        """The cursor that a checkpoint has `saved`. Raises CheckpointError for one of another shape than this run's."""
        disk.typed(path / checkpoint.STATE, saved, disk.shape_of(self.source.save(self.cursor)), "cursor")
        if any(isinstance(v, int) and v < 0 for v in saved.values()):
            raise CheckpointError(f"the cursor of the checkpoint {path} is not of this run's data: {saved}")
        try:
            return self.source.load(saved)
        except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
            raise CheckpointError(f"the cursor of the checkpoint {path} is not of this run's data: {error}") from None

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this, the weights are their mean, if there is one."""
        with self.average.instead() if self.average is not None else contextlib.nullcontext():
            yield

    # ------------------------------------------------------------ hooks that several ranks override

    @property
    def dynamic(self) -> bool | None:
        """Whether stacks are compiled for any lengths; None leaves that to torch."""
        return None

    @property
    def is_main(self) -> bool:
        """Whether this rank writes and prints."""
        return True

    def distribute(self, learners: Learners) -> Any:
        """The parameters that this rank holds."""
        return learners

    def sum_counts(self, counts: dict[str, int]) -> dict[str, int]:
        """Counts of targets summed over all ranks."""
        return counts

    def sum_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        """Metrics summed over all ranks."""
        return metrics

    def norm(self) -> Tensor:
        """The norm of the gradient."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def metrics(self, run: Path) -> Any:
        """The metrics of a run, open to be written."""
        return Metrics(run / "metrics.jsonl", self.step, self.plan.train.tensorboard)

    def agreed(self, value: Any) -> Any:
        """The main rank's `value`, on every rank."""
        return value

    def any_rank(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        """Whether `asked()` holds on any rank."""
        return asked

    def barrier(self) -> None:
        """Wait until every rank is here."""

    def everyone(self, values: list[Any]) -> list[Any]:
        """The `values` of all readers of rows, one reader's behind another's. Called by every rank."""
        return values

    def whole(self) -> dict[str, Model]:
        """The model ("model") and all nets beside it, by role, as they are now and whole, on every rank: to sample
        from. Called by every rank; good until the next update."""
        return {"model": self.model, **self.nets}

    def gathered(self) -> dict[str, Model]:
        """The model ("model") and the nets that learnt with it, by role, whole, on the main rank."""
        return {"model": self.model, **self.learners.nets}

    def train(
        self,
        run: Path,
        *,
        on_step: OnStep | None = None,
        evaluate: Callable[[], dict[str, float]] | None = None,
        quiet: bool = False,
    ) -> bool:
        """Step to the end of the run, with metrics and checkpoints in `run` (`runs.drive`). Returns False if a signal
        asked to stop."""
        return drive(self, run, on_step=on_step, evaluate=evaluate, quiet=quiet)


def _frozen(learners: Learners) -> dict[str, Any]:
    """What a checkpoint's state says of the parameters that do not learn; nothing where all do."""
    if not (tensors := learners.frozen()):
        return {}
    return {"frozen": {"names": sorted(tensors), "fingerprint": fingerprint(tensors, SAMPLED)}}


def _mix(*numbers: int) -> int:
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")
