"""The length of a run that is to end at a time: estimated again as it goes, since a machine's speed changes."""

from __future__ import annotations

import bisect
from typing import NamedTuple

from stemma.runs.trainer import Trainer

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 1.03)  # of the steps or of the time, after which the length is estimated
CLOSE = 0.03  # of the time: a run that would end so near to it is left as it is
MEASURED = 0.04  # of the time: what must have passed for a speed to be measured
FORWARD = 3.0  # how much faster a token is evaluated than trained on


class Moment(NamedTuple):
    """A place in a run: seconds of training, and steps and tokens so far."""

    seconds: float
    step: int
    tokens: int


class Clock:
    """Estimates how many steps fit into `seconds` of training, with what comes after the last step. `evaluating` and
    `saving`: seconds that an evaluation and a checkpoint took, once they were measured."""

    def __init__(self, trainer: Trainer, seconds: float) -> None:
        self.trainer, self.seconds = trainer, seconds
        self.evaluating: float | None = None
        self.saving = 0.0
        self.since: Moment | None = None  # from where the speed is measured
        self.passed = self._passed(trainer.seconds)

    def _passed(self, elapsed: float) -> int:
        trainer = self.trainer
        return bisect.bisect_right(SHARES, max(trainer.step / trainer.steps, elapsed / self.seconds))

    def due(self, elapsed: float) -> bool:
        """Whether the length is to be estimated after the step at hand. The first step of a process is not measured: it
        is slower."""
        trainer, passed = self.trainer, self._passed(elapsed)
        if self.since is None or trainer.step < self.since.step:  # the run went back
            self.since = Moment(elapsed, trainer.step, trainer.tokens)
        self.passed = min(self.passed, passed)
        enough = elapsed - self.since.seconds >= MEASURED * self.seconds
        return passed > self.passed and enough and trainer.step < trainer.steps

    def estimate(self, elapsed: float) -> int:
        """The steps of a run that ends in time, at the speed since the last estimate; as before, where that is near
        enough. Text that may be used up is not read for longer than was planned."""
        trainer, since = self.trainer, self.since
        assert since is not None
        now = Moment(elapsed, trainer.step, trainer.tokens)
        steps, took = trainer.steps, elapsed - since.seconds
        each, token = took / max(1, now.step - since.step), took / max(1, now.tokens - since.tokens)
        closing = self.evaluating if self.evaluating is not None else token * trainer.closing / FORWARD
        there = self.seconds - elapsed - closing - 2 * self.saving
        needed = [each * (steps - now.step)]
        if (total := trainer.source.total(steps)) is not None:  # a batch that grows costs more, but less than in proportion
            needed.append(token * max(1, total - now.tokens))
        if max(needed) + CLOSE * self.seconds < there or there < min(needed) - CLOSE * self.seconds:
            nearest = max(needed) if max(needed) < there else min(needed)
            steps = now.step + max(0, round((steps - now.step) * there / nearest))
            if trainer.source.limited:
                steps = min(steps, max(trainer.length.planned, now.step))
        self.since = now
        return steps

    def agreed(self, elapsed: float) -> None:
        """Go on with the length that was agreed on."""
        self.passed = self._passed(elapsed)

    def saved(self, elapsed: float, took: float) -> None:
        """A checkpoint was written; that of a change does not count for the speed after it."""
        self.saving = took
        if self.since is not None and self.since.step == self.trainer.step:
            self.since = self.since._replace(seconds=elapsed)
