"""The one training loop: any objective, any model."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stemma import disk
from stemma.data.progress import span
from stemma.declare import ramps
from stemma.errors import CheckpointError, DataError, ResourceError, StemmaError, no_memory
from stemma.nn.model import Model
from stemma.objectives import Batch, Cursor, Objective, View
from stemma.train import checkpoint, meter, optim
from stemma.train.ahead import Ahead
from stemma.train.average import Average
from stemma.train.config import Plan, Precision
from stemma.train.recompute import recompute
from stemma.train.spikes import Spikes, spiked

Record = dict[str, Any]  # one line of metrics.jsonl
MICRO = {"cpu": 4096, "cuda": 65_536}  # tokens that go through the network at once, where the plan leaves it open
AHEAD = {"cpu": 0, "cuda": 2}  # steps whose batches are made ahead, where the plan leaves it open
LATE = 1800.0  # seconds after a checkpoint when another one is written, where the plan leaves it open
WIDE = 192  # from this d_model on bf16 gains more than its casts cost


class DummyBatch(dict[str, Tensor]):
    """A batch of another process, which this one, having none of its own, computes along with it where weights are
    gathered for all: it counts nothing and has no gradient."""


class Diverged(StemmaError):
    """The loss or the gradient became infinite or undefined. `what`: which of them, and where it was first found."""

    def __init__(self, sentence: str, what: str = "") -> None:
        super().__init__(sentence)
        self.what = what


def pick_device(plan: Plan) -> torch.device:
    """The device of a plan. Raises ResourceError for `cuda` where there is none."""
    name = plan.train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ResourceError("train.device=cuda, but this torch sees no CUDA device")
    return torch.device(name)


def pick_precision(plan: Plan, device: torch.device) -> Precision:
    """`fp32` or `bf16`: what `auto` means for this model on this machine."""
    if plan.train.precision != "auto":
        return plan.train.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if plan.dims.d_model >= WIDE and _cpu_multiplies_bf16() else "fp32"


def _cpu_multiplies_bf16() -> bool:
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


class Learners(nn.Module):
    """The model and the nets beside it that learn with it; their names are those of the model alone if it is alone."""

    def __init__(self, model: Model, nets: Mapping[str, Model]) -> None:
        super().__init__()
        self.model, self.nets = model, nn.ModuleDict(nets)

    def each(self) -> Iterator[tuple[str, nn.Module]]:
        """The model and the nets, with what stands before their names: `generator:` before those of a net."""
        yield "", self.model
        for role, net in self.nets.items():
            yield f"{role}:", net

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter once, by name."""
        seen: set[int] = set()
        for prefix, net in self.each():
            for name, p in net.named_parameters():
                if id(p) not in seen:
                    seen.add(id(p))
                    yield prefix + name, p

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and kept buffers by name, without gradients."""
        found = {name: p.detach() for name, p in self.named()}
        for prefix, net in self.each():
            names = {name for name, _ in net.named_parameters(remove_duplicate=False)}
            found |= {prefix + k: v for k, v in net.state_dict().items() if k not in names}
        return found


class Loop:
    """A model in training: its optimiser, the place in its data, and `advance()` to take one step.

    `plan.recipe.steps` is the length of the run, on which the learning rate depends. All randomness of a step follows
    from (seed, step), so a loop restored from `state()` goes on bit for bit on the same machine and thread count.
    """

    def __init__(
        self, plan: Plan, model: Model, objective: Objective, view: View, nets: Mapping[str, Model] | None = None
    ) -> None:
        recipe = plan.recipe
        assert recipe.lr is not None and recipe.steps is not None, "an unsettled plan cannot be run"
        self.plan, self.objective, self.view = plan, objective, view
        self.device = pick_device(plan)
        self.precision = pick_precision(plan, self.device)
        self.model = model.to(self.device).train()
        self.nets = {role: net.to(self.device) for role, net in (nets or {}).items()}
        objective.tie(self.model, self.nets)
        learning = Learners(self.model, {n.role: self.nets[n.role].train() for n in plan.nets if n.learns})
        self.learners = self.spread(learning)
        self.lr, self.steps = recipe.lr, recipe.steps
        parts = getattr(self.learners, "parts", None)
        self.optimizer = optim.optimizer(recipe.optimizer, self.learners, self.lr, parts)
        self.parameters = [p for p in self.learners.parameters() if p.requires_grad]
        rows = plan.train.micro or max(1, MICRO[self.device.type] // plan.context)
        self.full = max(1, round(plan.rows / objective.rows))  # examples of a full step
        self.micro = min(max(1, rows // objective.rows), self.full)
        self.reader, self.readers = 0, 1  # of those that share out a step's examples, this process
        self.files: Any = checkpoint
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.cursor = Cursor()
        self.average = Average(dict(self.learners.named()), plan.train.average) if plan.train.average else None
        self.rewinds, self.losses = 0, list[float]()
        self.ahead = plan.train.ahead if plan.train.ahead is not None else AHEAD[self.device.type]
        self._stream: Ahead | Iterator[Any] | None = None
        if plan.train.recompute:
            recompute(self.model, plan.train.recompute)
        if plan.train.compile:
            for net in (model, *self.nets.values()):
                net.compiled = True
                for stack in (net.encoder, net.decoder):
                    if stack is not None:
                        stack.compile(dynamic=self.dynamic)

    # ------------------------------------------------------------ one step

    def batches(self) -> list[Batch]:
        """The micro-batches of the next step; moves the cursor on."""
        if self._stream is None:
            stream = self._steps(self.cursor, self.step)
            self._stream = Ahead(lambda: next(stream), self.ahead) if self.ahead else stream
        batches, self.cursor = self._stream.take() if isinstance(self._stream, Ahead) else next(self._stream)
        return batches

    def examples(self, step: int) -> int:
        """Examples of the step after `step` steps."""
        return ramps.examples(self.plan.recipe.ramp, self.full, step, self.steps)

    def _steps(self, cursor: Cursor, step: int) -> Iterator[tuple[list[Batch], Cursor]]:
        """The micro-batches of each step after `step` steps, from `cursor` on, with the cursor that follows them."""
        rows = self.objective.plan(self.view, cursor)
        for number in itertools.count(step):
            taken = list(itertools.islice(rows, self.examples(number)))
            begin, end = (len(taken) * reader // self.readers for reader in (self.reader, self.reader + 1))
            own = [make() for make, _ in taken[begin:end]]
            batches = [self.objective.collate(own[i : i + self.micro]) for i in range(0, len(own), self.micro)]
            most = -(-len(taken) // self.readers)  # of another reader, where they do not divide
            for _ in range(-(-most // self.micro) - len(batches)):
                batches.append(DummyBatch(self.objective.collate([taken[0][0]()])))
            yield batches, taken[-1][1]

    def move(self, cursor: Cursor) -> None:
        """Go on from another place in the data."""
        if isinstance(self._stream, Ahead):
            self._stream.close()
        self._stream, self.cursor = None, cursor

    def close(self) -> None:
        """End the thread that makes batches, if there is one; the next step begins another."""
        self.move(self.cursor)

    def gradient(self, batches: list[Batch]) -> tuple[Tensor, dict[str, Tensor], dict[str, int]]:
        """Add the gradient of a step's loss, over all of its micro-batches, to the parameters.

        Every part of the loss is divided by its targets in the whole step, so that the gradient does not depend on how
        the rows are split. Returns the loss, and its parts' sums and counts.
        """
        each = [self.objective.counts(batch) for batch in batches]
        each = [dict.fromkeys(c, 0) if isinstance(b, DummyBatch) else c for b, c in zip(batches, each, strict=True)]
        counts = self.together({k: sum(c[k] for c in each) for k in each[0]})
        if counts[self.objective.main] == 0:
            raise DataError(f"step {self.step + 1} has nothing to predict: its rows hold special tokens only")
        sums: dict[str, Tensor] = {}
        total: Tensor = torch.zeros((), device=self.device)
        for i, batch in enumerate(batches):
            torch.manual_seed(_mix(self.plan.seed, self.step + 1, self.reader * len(batches) + i))
            idle = isinstance(batch, DummyBatch)
            batch = {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}
            with self.autocast():
                loss = self.objective.loss(self.model, batch, self.nets)
                part = loss.total(counts) * 0.0 if idle else loss.total(counts)
            part.backward()
            total = total + part.detach()
            for k, s in loss.sums.items():
                sums[k] = sums.get(k, torch.zeros((), device=self.device)) + (0.0 if idle else s.detach())
        return total, sums, counts

    def advance(self) -> Record:
        """Take one step; returns its record. Raises Diverged, before any weight is touched, if the loss or the
        gradient is not finite."""
        try:
            return self._advance()
        except (MemoryError, RuntimeError, SystemError, OSError) as error:
            if not no_memory(error):
                raise
            less = f"set train.micro={self.micro // 2} or " if self.micro > 1 else "set "
            raise ResourceError(
                f"step {self.step + 1} does not fit into memory with {self.micro} rows of {self.plan.context} tokens "
                f"at once; {less}train.recompute=['*.blocks.*'], or take a smaller size"
            ) from None

    def _advance(self) -> Record:
        total, sums, counts = self.gradient(self.batches())
        clip = self.plan.recipe.clip
        norm = self.norm()
        loss, size = total.item(), norm.item()
        if not (math.isfinite(loss) and math.isfinite(size)):
            why = self._culprit(sums)
            self.optimizer.zero_grad(set_to_none=True)
            self.move(self.cursor)  # the batches made ahead are of the steps after this one
            what = f"the loss is {loss}, the gradient norm {size}{why}"
            raise Diverged(
                f"training diverged at step {self.step + 1}: {what}; lower recipe.lr or raise recipe.schedule.warmup",
                what,
            )
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, clip, norm)
        lr = optim.rate(self.plan.recipe.schedule, self.lr, self.step + 1, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        self.tokens += self.examples(self.step) * self.objective.rows * self.plan.context
        self.step += 1
        record: Record = {"step": self.step, "loss": loss}
        if len(sums) > 1:
            record |= {f"loss_{k}": s.item() / counts[k] for k, s in sums.items() if counts[k]}
        return record | {"tokens": self.tokens, "lr": lr, "grad_norm": size, "targets": counts[self.objective.main]}

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
        """Make the model what is to be kept of it after the last step: the mean of its weights, if there is one, and
        what it shared its own."""
        if self.average is not None:
            self.average.swap()
        self.objective.untie(self.model, self.nets)

    def autocast(self) -> Any:
        """The precision of the forward pass; weights, optimiser and loss are fp32 in any case."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def cost(self) -> float:
        """Floating-point operations a token of the row, of a training step like the first one: of text that is there
        wherever the run stands."""
        batch = self.objective.example_batch(self.view, min(8, self.examples(0)))
        tokens = batch["input_ids"].numel()
        share = self.objective.counts(batch).get("token", 0) / tokens
        decoder = batch["decoder_input_ids"].numel() / tokens if "decoder_input_ids" in batch else 0.0
        cost = meter.flops(self.model, self.plan.context, share, decoder)
        for role, net in self.nets.items():  # one that does not learn goes forward only
            cost += meter.flops(net, self.plan.context, share, decoder) / (1 if role in self.learners.nets else 3)
        return cost

    # ------------------------------------------------------------ stopping and going on

    def save(self, run: Path) -> Path:
        """Write a checkpoint of where the loop stands."""
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "cursor": asdict(self.cursor),
            "rewinds": self.rewinds,
            "losses": self.losses,
        }
        weights, slots = self.held()
        place = (self.rewinds, self.step)
        every = 1 if self.plan.train.spikes is None else self.save_every
        path: Path = self.files.save(run, place, weights, slots, state, self._keep(), every=every)
        return path

    def held(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tensors that a checkpoint keeps: weights by name, and by `weight:slot` what the optimiser holds of each,
        and its mean if there is one."""
        slots = optim.state(self.learners, self.optimizer) | (self.average.state() if self.average is not None else {})
        return self.learners.tensors(), slots

    def _keep(self) -> int:
        """How many checkpoints are kept: enough to go back behind a spike."""
        spikes = self.plan.train.spikes
        return max(self.plan.train.keep, 0 if spikes is None else -(-spikes.back // self.save_every) + 1)

    @property
    def save_every(self) -> int:
        """Steps from one checkpoint to the next."""
        return self.plan.train.save_every or max(1, -(-self.steps // 10))

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint. Raises CheckpointError if it does not fit the model."""
        weights, slots, state = self.files.load(path)
        if "rewinds" not in state:
            raise CheckpointError(
                f"the checkpoint {path} was written by an older version, in another order of the text"
            )
        own = self.learners.tensors()
        if odd := sorted(own.keys() ^ weights.keys()):
            raise CheckpointError(f"the checkpoint {path} does not fit this model: {odd[0]} is in one of them only")
        for name, tensor in own.items():
            if tensor.shape != weights[name].shape:
                raise CheckpointError(
                    f"the checkpoint {path} does not fit this model: {name} has shape {tuple(weights[name].shape)} "
                    f"there and {tuple(tensor.shape)} here"
                )
            tensor.copy_(weights[name])
        if self.average is not None:
            self.average.restore(slots, state["step"])
        self.optimizer.state.clear()
        optim.restore(self.learners, self.optimizer, slots)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.rewinds, self.losses = state["rewinds"], list(state["losses"])
        self.move(Cursor(**state["cursor"]))

    def rewind(self, run: Path, spikes: Spikes, tell: Callable[[Record], None], why: Diverged | None) -> Record:
        """Go back to a checkpoint `spikes.back` steps or more before the spike, and on in the data behind the next
        `spikes.skip` batches; what came after it is removed. Leaves a checkpoint of that; `tell` is called before.
        `why` is the error of a step that was not taken. Raises Diverged if it went back too often.

        Checkpoints that a stop left between two regular ones are passed over, so that a run that was stopped goes back
        to the place that an unbroken one goes back to."""
        spike = self.step + (why is not None)
        if self.rewinds >= spikes.most:
            last = f" ({why.what})" if why is not None else ""
            raise Diverged(
                f"training diverged at step {spike}: the loss leapt up again{last} after {self.rewinds} times of going "
                "back; lower recipe.lr, or raise train.spikes.most"
            )
        rows = self.objective.plan(self.view, self.cursor)
        examples = sum(self.examples(self.step + i) for i in range(spikes.skip))
        skipped = [follow for _, follow in itertools.islice(rows, examples)]
        cursor, rewinds, seconds = (skipped[-1] if skipped else self.cursor), self.rewinds + 1, self.seconds
        there = checkpoint.steps(run)
        regular = [path for path in there if checkpoint.step_of(path) % self.save_every == 0] or there
        before = [path for path in regular if checkpoint.step_of(path) <= max(0, spike - spikes.back)]
        self.restore(before[-1] if before else regular[0])
        self.rewinds, self.losses, self.seconds = rewinds, [], seconds
        self.move(cursor)
        what = "the loss leapt up" if why is None else why.what
        told = {"number": rewinds, "at": spike, "to": self.step, "skipped": spikes.skip, "why": what}
        tell(told)
        for path in there if self.is_main else ():  # no later spike may lead back to what was left behind
            if checkpoint.step_of(path) > self.step:
                checkpoint.remove(path)
        self.save(run)
        return told

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this, the weights are their mean, if there is one."""
        with self.average.instead() if self.average is not None else contextlib.nullcontext():
            yield

    # ------------------------------------------------------------ what is otherwise among several processes

    @property
    def dynamic(self) -> bool | None:
        """Whether compiled stacks are for any lengths; None leaves that to torch."""
        return None

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks."""
        return True

    def spread(self, learners: Learners) -> Any:
        """What of the learners this process holds."""
        return learners

    def together(self, counts: dict[str, int]) -> dict[str, int]:
        """The targets of a step, of those that this process has."""
        return counts

    def norm(self) -> Tensor:
        """The norm of the gradient."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def metrics(self, run: Path) -> Any:
        """The metrics of a run, open to be written."""
        return Metrics(run / "metrics.jsonl", self.step, self.plan.train.tensorboard)

    def agreed(self, said: Callable[[], bool]) -> Callable[[], bool]:
        """What this process says."""
        return said

    def whole(self) -> dict[str, Model]:
        """The model ("model") and the nets that learnt with it, by role, to be kept."""
        return {"model": self.model, **self.learners.nets}

    # ------------------------------------------------------------ a whole run

    def train(
        self,
        run: Path,
        *,
        on_step: Callable[[Record], None] | None = None,
        evaluate: Callable[[], dict[str, float]] | None = None,
        quiet: bool = False,
    ) -> bool:
        """Step to the end of the run, with metrics and checkpoints in `run`. Returns False if a signal (SIGINT,
        SIGTERM, SIGHUP) asked to stop: then the step at hand is finished and a checkpoint written."""
        train, save_every = self.plan.train, self.save_every
        if train.spikes is not None and self.step == 0:
            self.save(run)
        with (
            contextlib.closing(self),
            self.metrics(run) as metrics,
            _graceful() as asked,
            Progress(self, quiet or not self.is_main) as progress,
        ):
            stop = self.agreed(asked)
            leapt = self.agreed(lambda: train.spikes is not None and spiked(train.spikes, self.losses))
            late = self.agreed(lambda: time.perf_counter() - saved > LATE)
            saved = time.perf_counter()
            begin = saved - self.seconds
            while self.step < self.steps:
                failed: Diverged | None = None
                try:
                    record = self.advance()
                    self.losses = [*self.losses, record["loss"]][-_memory(train.spikes) :] if train.spikes else []
                except Diverged as error:
                    if train.spikes is None:
                        raise
                    failed = error
                    self.losses.append(math.nan)
                self.seconds = time.perf_counter() - begin
                if train.spikes is not None and leapt():
                    told = self.rewind(run, train.spikes, metrics.rewind, failed)
                    metrics.reopen(told["to"])
                    progress.say(f"{told['why']} at step {told['at']}: back to step {told['to']}, on with other text")
                    continue
                record["seconds"] = self.seconds
                due = train.eval_every is not None and self.step % train.eval_every == 0 and self.step < self.steps
                if evaluate is not None and due:
                    record |= {f"val_{k}": v for k, v in evaluate().items()}
                    self.seconds = time.perf_counter() - begin
                metrics.write(record)
                progress.show(record)
                if on_step is not None:
                    on_step(record)
                regular = self.step % save_every == 0 or self.step == self.steps
                if regular or stop() or (train.save_every is None and late()):
                    metrics.sync()
                    self.save(run)
                    saved = time.perf_counter()
                    if stop():
                        break
        return self.step == self.steps


def _memory(spikes: Spikes) -> int:
    return spikes.window + spikes.patience


def _mix(*numbers: int) -> int:
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")


@contextlib.contextmanager
def _graceful() -> Iterator[Callable[[], bool]]:
    """Catch SIGINT, SIGTERM and SIGHUP (a closed terminal, unless nohup has it ignored) in the main thread: the
    yielded function says whether one came. A second SIGINT interrupts at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def handle(number: int, _: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    caught = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {
        s: signal.signal(s, handle)
        for s in caught
        if s != getattr(signal, "SIGHUP", None) or signal.getsignal(s) is not signal.SIG_IGN
    }
    try:
        yield lambda: bool(asked)
    finally:
        for s, old in before.items():
            signal.signal(s, old)


class Metrics:
    """`metrics.jsonl`: one JSON object a step, whole lines only. Opening it for a run at `step` drops lines after that
    step, and a line that a killed process left unfinished. Raises ResourceError if the disk refuses."""

    def __init__(self, path: Path, step: int, tensorboard: bool) -> None:
        self.path, self.then = path, f"go on with: stemma resume {path.parent}"
        self.open(step)
        self.board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=step + 1)

    def open(self, step: int) -> None:
        """Open the file behind the line of `step`."""
        path = self.path
        kept = [record for record in records(path) if record["step"] <= step] if path.exists() else []
        if (there := [record["step"] for record in kept]) != list(range(1, step + 1)):
            lost = step - len(set(there))
            warnings.warn(f"{path} lacks {lost} of the {step} steps that the run has taken; it goes on", stacklevel=2)
        disk.write(path, "".join(json.dumps(record) + "\n" for record in kept), then=self.then)
        self.file = disk.Appender(path, then=self.then)

    def rewind(self, told: Record) -> None:
        """The run goes back to the step `told["to"]`: what came after it is kept in `rewinds.jsonl`, once, also if a
        process was killed before it had gone back and the next one comes to the same spike."""
        lost = [record for record in records(self.path) if record["step"] > told["to"]]
        path = self.path.with_name("rewinds.jsonl")
        known = [entry.get("number") for entry in records(path, "number")] if path.exists() else []
        if told["number"] not in known:
            with contextlib.closing(disk.Appender(path, then=self.then)) as file:
                file.add({**told, "lost": lost})

    def reopen(self, step: int) -> None:
        """Go on behind the line of `step`."""
        self.file.close()
        self.open(step)

    def write(self, record: Record) -> None:
        self.file.add(record)
        if self.board is not None:
            for key, value in record.items():
                if key != "step":
                    self.board.add_scalar(key, value, record["step"])

    def sync(self) -> None:
        self.file.sync()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def records(path: Path, key: str = "step") -> list[Record]:
    """The records in a file of metrics; lines that are none (they have no number `key`), such as a half one, are passed
    over. Raises CheckpointError if it cannot be read."""
    values = (value for _, value in disk.read_jsonl(path))
    return [value for value in values if isinstance(value, dict) and isinstance(value.get(key), int)]


class Progress:
    """A live line on a terminal, about twenty plain ones elsewhere, on stderr."""

    def __init__(self, loop: Loop, quiet: bool) -> None:
        self.loop, self.quiet = loop, quiet
        self.every = max(1, loop.steps // 20)
        self.live: Any = None
        self.task: Any = None
        recipe, tokens = loop.plan.recipe, loop.objective.rows * loop.plan.context
        self.whole = tokens * int(ramps.total(recipe.ramp, loop.full, loop.steps))  # tokens of the run
        self.cost = 0.0 if quiet else loop.cost()
        self.peak = 0.0 if quiet else meter.peak(loop.device.type, loop.precision == "bf16")
        self.mark = (time.perf_counter(), loop.tokens)
        self.speed = 0.0

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(24), TextColumn("{task.description}"), TimeRemainingColumn())
            self.live = Bar(*columns, console=Console(stderr=True))
            self.live.start()
            self.task = self.live.add_task("", total=self.whole, completed=self.loop.tokens)
        return self

    def show(self, record: Record) -> None:
        """Tell of a step."""
        if self.quiet:
            return
        now, tokens = time.perf_counter(), record["tokens"]
        if now > self.mark[0] and tokens > self.mark[1]:  # fewer: the run went back
            fresh = (tokens - self.mark[1]) / (now - self.mark[0])
            self.speed = fresh if not self.speed else 0.9 * self.speed + 0.1 * fresh
        self.mark = (now, tokens)
        used = self.speed * self.cost / self.peak
        text = f"loss {record['loss']:.3f}  {self.speed:,.0f} tokens/s  {used:.0%} of peak"
        if self.live is not None:
            text = f"{record['step']}/{self.loop.steps}  {text}"
            with contextlib.suppress(OSError):
                self.live.update(self.task, completed=tokens, description=text)
        elif record["step"] % self.every == 0 or record["step"] == self.loop.steps:
            left = span((self.whole - tokens) / max(self.speed, 1e-9))
            self._print(f"step {record['step']}/{self.loop.steps}  {text}  {left} left")

    def say(self, text: str) -> None:
        """Tell of something that happens once."""
        if self.quiet:
            return
        if self.live is None:
            self._print(text)
            return
        with contextlib.suppress(OSError):  # a terminal that is gone
            self.live.console.print(text)

    def _print(self, text: str) -> None:
        """Print a line; where nobody takes it (a terminal or a reader that is gone), the run goes on unheard."""
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            self.quiet = True

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            with contextlib.suppress(OSError):
                self.live.stop()
