"""What an engine counts and times."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from stemma.nn.pool import Pages

RECENT = 64  # events that a rate is taken of


@dataclass(frozen=True)
class Stats:
    """How an engine stands. Now: jobs that are decoded (`running`), whose prompts are read (`reading`), and that wait
    (`waiting`). Since it began: tokens of prompts (`read`) and of texts (`written`); jobs that ended with a text
    (`ended`), with an error (`failed`) or without being wanted any more (`cancelled`); steps of decoding and pieces of
    prompts, with the seconds that they took; and the mean seconds of the newest steps (`step`). Of a cache with pages:
    tokens of prompts that were `found` in it and not computed again; its `pages`, those that rows hold (`pages_used`),
    and those that are kept to be found (`pages_kept`); the others are free."""

    running: int
    waiting: int
    read: int
    written: int
    reading: int = 0
    ended: int = 0
    failed: int = 0
    cancelled: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    pieces: int = 0
    piece_seconds: float = 0.0
    step: float = 0.0
    found: int = 0
    pages: int = 0
    pages_used: int = 0
    pages_kept: int = 0


class Meter:
    """Counts of one engine. Written by its thread."""

    def __init__(self) -> None:
        self.read = self.written = self.ended = self.failed = self.cancelled = self.steps = self.pieces = 0
        self.step_seconds = self.piece_seconds = 0.0
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._ends: deque[float] = deque(maxlen=RECENT)

    @property
    def step(self) -> float:
        """Mean seconds of the newest steps; 0 before the first."""
        return sum(self._steps) / len(self._steps) if self._steps else 0.0

    def stepped(self, seconds: float, tokens: int) -> None:
        """A step of decoding was made."""
        self.steps, self.step_seconds, self.written = self.steps + 1, self.step_seconds + seconds, self.written + tokens
        self._steps.append(seconds)

    def pieced(self, seconds: float, tokens: int) -> None:
        """A piece of prompts was read."""
        self.pieces, self.piece_seconds, self.read = self.pieces + 1, self.piece_seconds + seconds, self.read + tokens

    def left(self) -> None:
        """A job left its row, for whatever reason."""
        self._ends.append(time.monotonic())

    def wait(self, remaining: int) -> float:
        """Seconds after which a row, and so a place in the queue, may be free: by how often rows were left of late; at
        first by the fewest tokens that a running job may still write."""
        if len(self._ends) > 1:
            between = (time.monotonic() - self._ends[0]) / len(self._ends)
        else:
            between = remaining * self.step
        return min(max(between, 0.1), 60.0)

    def stats(self, running: int, reading: int, waiting: int, pages: Pages | None) -> Stats:
        cache = () if pages is None else (pages.found, pages.size, pages.used, pages.kept)
        return Stats(
            running,
            waiting,
            self.read,
            self.written,
            reading,
            self.ended,
            self.failed,
            self.cancelled,
            self.steps,
            self.step_seconds,
            self.pieces,
            self.piece_seconds,
            self.step,
            *cache,
        )
