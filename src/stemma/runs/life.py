"""A run from its last checkpoint to its end."""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stemma import disk
from stemma.errors import CheckpointError, ResourceError
from stemma.runs import best, checkpoint, folder
from stemma.runs.drive import OnStep, drive
from stemma.runs.metrics import read_metrics
from stemma.runs.spikes import Diverged
from stemma.runs.trainer import Trainer


class Kind(Protocol):
    """What a kind of run (pretraining, tuning, preferences, rollouts) adds to a run's life."""

    def evaluate(self) -> dict[str, float]:
        """The quality of the model as it is now, by name."""

    def summarize(self, quality: dict[str, float]) -> dict[str, Any]:
        """What goes into `summary.json`; called on the main rank after the last step."""

    def save(self, run: Path, models: Mapping[str, Any]) -> None:
        """Write the finished model into `run/model`, and each net that learnt into `run/ROLE`."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `finished`: no signal stopped it. `restored`: the trainer holds the final weights; if not,
    they are in `run/model` alone."""

    summary: dict[str, Any]
    finished: bool
    restored: bool = True


def carry_on(run: Path, trainer: Trainer, kind: Kind, on_step: OnStep | None = None, quiet: bool = False) -> Outcome:
    """Restore the last checkpoint, take the steps that are left, evaluate, save the model and the summary; with
    `train.best` the best of the evaluated models. A run that was finished before is only restored. Raises Diverged if
    the evaluation of what would be saved is not finite."""
    done = _restore(run, trainer)
    if done:
        if last := trainer.step == trainer.steps and trainer.best is None:
            trainer.finish()
        return Outcome(done, True, restored=last)
    if not drive(trainer, run, on_step=on_step, evaluate=kind.evaluate, quiet=quiet):
        if not quiet and trainer.is_main:
            again = f"stopped after step {trainer.step} of {trainer.steps}; go on with: {folder.resume_command(run)}"
            disk.tell(again)
        return Outcome({"steps": trainer.step}, False)
    quality = _evaluated(run, trainer, kind)
    if wrong := [k for k, v in quality.items() if not math.isfinite(v)]:
        raise Diverged(
            f"training diverged in its last step: the held-out {wrong[0]} is {quality[wrong[0]]}; lower recipe.lr"
        )
    return Outcome(_finish(run, trainer, kind, quality), True)


def _restore(run: Path, trainer: Trainer) -> dict[str, Any]:
    """Restore the newest checkpoint, if there is one. Returns the summary of a run that was finished."""
    if trainer.is_main:  # what a process left that was killed while writing
        for left in (*run.glob(".*.json*.tmp"), *run.glob("*/.*.json*.tmp")):
            left.unlink(missing_ok=True)
    newest, done = checkpoint.latest(run), folder.summary(run)
    if newest is not None:
        trainer.restore(newest)
    elif not done and trainer.is_main and (run / "metrics.jsonl").exists():
        warnings.warn(f"{run} has no checkpoint; it begins again with its first step", stacklevel=3)
    return done


def _evaluated(run: Path, trainer: Trainer, kind: Kind) -> dict[str, float]:
    """The quality of the weights that are kept: the last ones, or with `train.best` the best, which are taken back."""
    wanted, found = trainer.plan.train.best, trainer.best
    if not wanted:
        return kind.evaluate()
    if found is None or found.seen != trainer.step:
        quality = kind.evaluate()
        place = checkpoint.name(trainer.rewinds, trainer.step)
        trainer.best = found = trainer.agreed(best.judged(wanted, found, trainer.step, place, quality))
        if found is None or found.step == trainer.step:
            return quality
    path = run / "checkpoints" / found.checkpoint
    if not path.is_dir():
        raise CheckpointError(
            f"the best checkpoint of the run, {path}, is gone; put it back and go on with: {folder.resume_command(run)}"
        )
    trainer.take_weights(path)
    return kind.evaluate()


def _finish(run: Path, trainer: Trainer, kind: Kind, quality: dict[str, float]) -> dict[str, Any]:
    """Save the models and the summary of a run that took its last step; returns the summary."""
    trainer.finish()
    models = trainer.gathered()
    summary: dict[str, Any] = {"steps": trainer.step}
    if trainer.is_main:
        summary = kind.summarize(quality)
        if trainer.length.changes:
            summary["lengths"] = trainer.length.save()
        if trainer.best is not None:
            summary["best"] = {"step": trainer.best.step, "values": trainer.best.values}
        try:
            kind.save(run, models)
            disk.write_json(run / "summary.json", summary)
        except ResourceError as error:
            raise disk.instead(error, f"go on with: {folder.resume_command(run)}") from None
    trainer.barrier()
    return summary


def measured(run: Path, trainer: Trainer, parameters: int) -> dict[str, Any]:
    """The part of a summary that is about the training itself: seconds, speed, operations, share of the device's peak, parameters,
    and the training loss over the last twentieth of the steps."""
    speed = trainer.tokens / max(trainer.seconds, 1e-9)
    losses = [record["loss"] for record in read_metrics(run) if "loss" in record][-max(1, trainer.steps // 20) :]
    return {
        "seconds": round(trainer.seconds, 3),
        "tokens_per_second": round(speed, 1),
        "flops": float(f"{trainer.tokens * trainer.cost():.4g}"),
        "peak_share": round(speed * trainer.cost() / trainer.peak(), 4),
        "parameters": parameters,
        "train_loss": sum(losses) / len(losses) if losses else None,  # None: somebody deleted the lines
    }
