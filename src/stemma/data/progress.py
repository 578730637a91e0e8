"""Progress of a long walk through a text: share done, speed and time left, as one line on standard error."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from stemma import disk

QUIET = 1.0  # seconds before the first line: shorter work shows none
EVERY = {True: 0.2, False: 15.0}  # seconds between two lines, on a terminal and in a log


def span(seconds: float) -> str:
    """`42s`, `3m05s`, `2h07m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Meter:
    """Called with (done, total) bytes; writes a line, which on a terminal replaces the last one. Bytes done before the
    first call do not count for the speed, so a resumed build shows its present speed."""

    def __init__(self, what: str, out: TextIO | None = None) -> None:
        self.what, self.out = what, out if out is not None else sys.stderr
        self.begin = self.last = time.monotonic()
        self.first: tuple[float, int] | None = None
        self.shown = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = (now, done) if done < total and done else (self.begin, 0)
        terminal = self.out.isatty()
        end = done >= total
        if (end and not self.shown) or (not end and (now - self.last < EVERY[terminal] or now - self.begin < QUIET)):
            return
        self.last, self.shown = now, True
        try:
            self.out.write(("\r\x1b[K" if terminal else "") + self.line(done, total, now) + ("" if terminal else "\n"))
            if end and terminal:
                self.out.write("\n")
                self.shown = False
            self.out.flush()
        except OSError:  # nobody reads it any more
            disk.abandon("stderr")

    def line(self, done: int, total: int, now: float) -> str:
        """The line at the time `now`."""
        assert self.first is not None
        since, before = self.first
        speed = (done - before) / max(now - since, 1e-9)
        head = f"{self.what} {done / max(total, 1):4.0%} of {total / 1e6:,.1f} MB, {speed / 1e6:.1f} MB/s"
        if done >= total:
            return f"{head}, {span(now - self.begin)}"
        return f"{head}, {span((total - done) / speed)} left" if speed > 0 else head
