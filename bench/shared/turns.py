"""Steps of two trainers in turns in one process, as a line of a table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

Step = Callable[[], int]  # takes a step, and says how many tokens were in it


def timed(step: Step) -> float:
    """Tokens a second of a step."""
    begin = time.perf_counter()
    tokens = step()
    return tokens / (time.perf_counter() - begin)


def line(name: str, own: Step, other: Step | None, turns: int, whose: str = "trl") -> str:
    """A line of the table: the medians of both sides, and that of the ratios of neighbouring steps with the
    extremes."""
    speeds: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns + 1):
        for step, found in zip((own, other), speeds, strict=True):
            speed = timed(step) if step is not None else 0.0
            if turn:  # the first is slower
                found.append(speed)
    if other is not None:
        other.finish()  # type: ignore[attr-defined]
    mine = f"{name:14} Stemma {statistics.median(speeds[0]):7,.0f} tokens/s"
    if other is None:
        return mine
    ratios = sorted(a / b for a, b in zip(*speeds, strict=True))
    ratio = f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    return f"{mine}   {whose} {statistics.median(speeds[1]):7,.0f}   {ratio}"
