"""Back to a checkpoint from before a spike of the loss, and on with other batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stemma.runs import checkpoint
from stemma.runs.metrics import Record
from stemma.runs.spikes import Diverged, Spikes
from stemma.runs.trainer import Trainer


def rewind(
    trainer: Trainer, run: Path, spikes: Spikes, log: Callable[[Record], None], why: Diverged | None
) -> Record:
    """Go back to a checkpoint `spikes.back` steps or more before the spike, and on behind the next `spikes.skip`
    batches; later checkpoints are removed. Saves a checkpoint of that; `log` gets its record before. `why`: the error of a
    step that was not taken. Raises Diverged if the run went back too often.

    Checkpoints that a stop left between two regular ones are passed over, so that a run that was stopped goes back to
    where an unbroken one goes back to."""
    spike = trainer.step + (why is not None)
    if trainer.rewinds >= spikes.most:
        last = f" ({why.what})" if why is not None else ""
        raise Diverged(
            f"training diverged at step {spike}: the loss leapt up again{last} after {trainer.rewinds} times of going "
            "back; lower recipe.lr, or raise train.spikes.most"
        )
    cursor, rewinds, seconds = trainer.skipped(spikes.skip), trainer.rewinds + 1, trainer.seconds
    there = checkpoint.steps(run)
    trainer.restore(_before(there, spike - spikes.back, trainer.save_every))
    trainer.rewinds, trainer.losses, trainer.seconds = rewinds, [], seconds
    trainer.move(cursor)
    what = "the loss leapt up" if why is None else why.what
    record = {"number": rewinds, "at": spike, "to": trainer.step, "skipped": spikes.skip, "why": what}
    log(record)
    for path in there if trainer.is_main else ():  # no later spike may go back to what was left behind
        if checkpoint.step_of(path) > trainer.step:
            checkpoint.remove(path)
    trainer.save(run)
    return record


def _before(there: list[Path], step: int, save_every: int) -> Path:
    """The last regular checkpoint at `step` or before it, or the first there is."""
    regular = [path for path in there if checkpoint.step_of(path) % save_every == 0] or there
    before = [path for path in regular if checkpoint.step_of(path) <= max(0, step)]
    return before[-1] if before else regular[0]
