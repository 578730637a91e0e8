"""A run's progress on stderr: a live line on a terminal, about twenty plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

from stemma import disk
from stemma.data.progress import span
from stemma.errors import printable
from stemma.runs.metrics import Record
from stemma.runs.trainer import Trainer

SHOWN = ("reward", "accuracy", "kl")  # of a step's record, where it has them, in place of the share of the peak


class Progress:
    """Shows loss, speed, share of the device's peak and time left. A bar counts tokens, or steps where the source does
    not know its tokens ahead."""

    def __init__(self, trainer: Trainer, quiet: bool) -> None:
        self.trainer, self.quiet = trainer, quiet
        self.live: Any = None
        self.task: Any = None
        self.fit()
        self.cost = 0.0 if quiet else trainer.cost()
        self.peak = 0.0 if quiet else trainer.peak()
        self.mark = (time.perf_counter(), trainer.tokens)
        self.speed = 0.0

    def fit(self) -> None:
        """Go by the length of the run as it is now."""
        steps = self.trainer.steps
        self.every, self.total = max(1, steps // 20), self.trainer.source.total(steps)
        if self.live is not None:
            with contextlib.suppress(OSError):
                self.live.update(self.task, total=self._done(self.trainer.step, self.trainer.tokens)[1])

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(24), TextColumn("{task.description}"), TimeRemainingColumn())
            self.live = Bar(*columns, console=Console(stderr=True))
            self.live.start()
            done, total = self._done(self.trainer.step, self.trainer.tokens)
            self.task = self.live.add_task("", total=total, completed=done)
        return self

    def _done(self, step: int, tokens: int) -> tuple[int, int]:
        """(done, total), in tokens or in steps."""
        return (step, self.trainer.steps) if self.total is None else (tokens, self.total)

    def show(self, record: Record) -> None:
        """Show a step."""
        if self.quiet:
            return
        now, step, tokens = time.perf_counter(), record["step"], record["tokens"]
        if now > self.mark[0] and tokens > self.mark[1]:  # fewer: the run went back
            fresh = (tokens - self.mark[1]) / (now - self.mark[0])
            self.speed = fresh if not self.speed else 0.9 * self.speed + 0.1 * fresh
        self.mark = (now, tokens)
        used = self.speed * self.cost / self.peak
        told = [f"{name} {record[name]:.3g}" for name in SHOWN if name in record]
        speed = [f"{self.speed:,.0f} tokens/s"] + ([] if told else [f"{used:.0%} of peak"])
        text = "  ".join([f"loss {record['loss']:.3f}", *told, *speed])
        if self.live is not None:
            text = f"{step}/{self.trainer.steps}  {text}"
            with contextlib.suppress(OSError):
                self.live.update(self.task, completed=self._done(step, tokens)[0], description=text)
        elif step % self.every == 0 or step == self.trainer.steps:
            total = self.total if self.total is not None else tokens * self.trainer.steps / step
            left = span((total - tokens) / max(self.speed, 1e-9))
            self._print(f"step {step}/{self.trainer.steps}  {text}  {left} left")

    def say(self, text: str) -> None:
        """Print a line about something that happens once."""
        if self.quiet:
            return
        if self.live is None:
            self._print(text)
            return
        with contextlib.suppress(OSError):  # a terminal that is gone
            self.live.console.print(printable(text), markup=False)

    def _print(self, text: str) -> None:
        """Print a line; if nobody reads it any more (a closed terminal or pipe), go on in silence."""
        if not disk.tell(text):
            self.quiet = True

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            with contextlib.suppress(OSError):
                self.live.stop()
