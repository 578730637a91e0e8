"""A trainer driven to the end of its run: metrics, checkpoints, evaluations, spikes, signals."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stemma.errors import RewardError
from stemma.runs import best, checkpoint
from stemma.runs.clock import Clock
from stemma.runs.metrics import Record
from stemma.runs.progress import Progress
from stemma.runs.rewind import rewind
from stemma.runs.signals import save_requested, stop_requested
from stemma.runs.spikes import Diverged, Spikes, spiked
from stemma.runs.trainer import Trainer

OnStep = Callable[[Record], None]
Evaluate = Callable[[], dict[str, float]]
LATE = 1800.0  # seconds after a checkpoint when another one is written, where the plan leaves it open


def drive(
    trainer: Trainer, run: Path, *, on_step: OnStep | None = None, evaluate: Evaluate | None = None, quiet: bool = False
) -> bool:
    """Step to the end of the run, with metrics and checkpoints in `run`. Returns False if a signal (SIGINT, SIGTERM,
    SIGHUP) asked to stop: then the step at hand is finished and a checkpoint written. SIGUSR1 asks for a checkpoint
    alone."""
    if trainer.plan.train.spikes is not None and trainer.step == 0:
        trainer.save(run)
    with (
        contextlib.closing(trainer),
        trainer.metrics(run) as metrics,
        stop_requested() as asked,
        save_requested() as warned,
        Progress(trainer, quiet or not trainer.is_main) as progress,
    ):
        driver = Driver(trainer, run, metrics, progress, asked, warned)
        while trainer.step < trainer.steps:
            if (record := driver.advance()) is None:
                continue
            if evaluate is not None and driver.eval_due():
                record |= driver.evaluated(evaluate)
            driver.adjust()
            metrics.write(record)
            progress.show(record)
            if on_step is not None:
                on_step(record)
            if driver.checkpoint() and driver.stop():
                break
    return trainer.step == trainer.steps


class Driver:
    """Steps of a run with their bookkeeping: clock, spikes, evaluations and checkpoints that are due."""

    def __init__(
        self,
        trainer: Trainer,
        run: Path,
        metrics: Any,
        progress: Progress,
        asked: Callable[[], bool],
        warned: Callable[[], bool],
    ) -> None:
        self.trainer, self.run, self.metrics, self.progress = trainer, run, metrics, progress
        self.settings = trainer.plan.train
        spikes: Spikes | None = self.settings.spikes
        self.spikes = spikes
        self.stop, self.warned = trainer.any_rank(asked), trainer.any_rank(warned)
        self.spiked = trainer.any_rank(lambda: spikes is not None and spiked(spikes, trainer.losses))
        self.late = trainer.any_rank(lambda: time.perf_counter() - self.saved > LATE)
        self.saved = time.perf_counter()
        self.begin = self.saved - trainer.seconds
        self.clock = Clock(trainer, self.settings.seconds) if self.settings.seconds is not None else None
        self.due = trainer.any_rank(lambda: trainer.is_main and self.clock is not None and self.clock.due(self.elapsed()))
        self.forced = False  # whether what was decided after the step at hand must be in a checkpoint

    def elapsed(self) -> float:
        """Seconds of training, those before a resume included."""
        return time.perf_counter() - self.begin

    def advance(self) -> Record | None:
        """Take a step. Returns its record, or None if the run went back behind a spike. A step that gets no reward has
        changed nothing: a checkpoint is written, from which the run goes on."""
        trainer, spikes = self.trainer, self.spikes
        failed: Diverged | None = None
        record: Record = {}
        try:
            record = trainer.advance()
            recent = spikes.window + spikes.patience if spikes is not None else 0
            trainer.losses = [*trainer.losses, record["loss"]][-recent:] if recent else []
        except Diverged as error:
            if spikes is None:
                raise
            failed = error
            trainer.losses.append(math.nan)
        except RewardError:
            if trainer.source.readers == 1:  # another rank may wait for this one elsewhere
                self.metrics.sync()
                trainer.save(self.run)
            raise
        trainer.seconds = self.elapsed()
        if spikes is not None and self.spiked():
            went = rewind(trainer, self.run, spikes, self.metrics.rewind, failed)
            self.metrics.reopen(went["to"])
            self.progress.say(f"{went['why']} at step {went['at']}: back to step {went['to']}, on with other batches")
            return None
        record["seconds"] = trainer.seconds
        return record

    def eval_due(self) -> bool:
        """Whether the step was one to evaluate after; the end of the run is evaluated in any case."""
        step, every = self.trainer.step, self.settings.eval_every
        if every is None and self.settings.best:
            every = max(1, -(-self.trainer.length.planned // 10))
        return every is not None and step % every == 0 and step < self.trainer.steps

    def evaluated(self, evaluate: Evaluate) -> Record:
        """Evaluate, and judge it: the best so far gets a checkpoint, and after `train.patience` others the run ends.
        Returns what the record of the step says of it."""
        trainer, patience = self.trainer, self.settings.patience
        values = evaluate()
        before, trainer.seconds = trainer.seconds, self.elapsed()
        if self.clock is not None:
            self.clock.evaluating = trainer.seconds - before
        if self.settings.best:
            place = checkpoint.name(trainer.rewinds, trainer.step)
            now = best.judged(self.settings.best, trainer.best, trainer.step, place, values)
            trainer.best = now = trainer.agreed(now)
            self.forced = now is not None and now.step == trainer.step
            if patience is not None and now is not None and now.waited >= patience:
                trainer.length.change(trainer.step, trainer.step)
                self.progress.fit()
                self.progress.say(
                    f"no better {best.parse(self.settings.best)[0]} than that of step {now.step} in {now.waited} "
                    f"evaluations: the run ends with step {trainer.step}"
                )
        return {f"val_{k}": v for k, v in values.items()}

    def adjust(self) -> None:
        """Change the length of a run by the clock where it would not end in time; a checkpoint keeps the change."""
        trainer, clock = self.trainer, self.clock
        if clock is None or not self.due():
            return
        trainer.seconds = self.elapsed()
        old, steps = trainer.steps, trainer.agreed(clock.estimate(trainer.seconds) if trainer.is_main else 0)
        if steps != old:
            trainer.length.change(trainer.step, steps)
            trainer.move(trainer.cursor)  # batches that were made ahead are of the old length
            self.forced = True
            self.progress.fit()
            self.progress.say(f"to end in time, the run takes {steps:,} steps and not {old:,}")
        clock.agreed(trainer.seconds)

    def checkpoint(self) -> bool:
        """Write a checkpoint if one is due or a stop was asked for. Returns whether it did."""
        trainer = self.trainer
        regular = trainer.step % trainer.save_every == 0 or trainer.step == trainer.steps
        warned = self.warned()
        due = regular or self.forced or warned or self.stop()
        if not (due or (self.settings.save_every is None and self.late())):
            return False
        self.forced = False
        self.metrics.sync()
        begin = time.perf_counter()
        trainer.save(self.run)
        self.saved = time.perf_counter()
        if self.clock is not None:
            self.clock.saved(self.elapsed(), self.saved - begin)
        return True
