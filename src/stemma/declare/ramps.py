"""Batches that grow during a run: what a recipe says, and the examples and steps that follow. Imports no torch."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from stemma.spec import Spec, at_least, require


@dataclass(frozen=True)
class Ramp(Spec):
    """How the batch grew: `points` of (share of the run's steps, share of the full batch), from the start of the run to
    the full batch, where it stays. `between` two points it waits (`steps`), grows in a line of the steps (`line`), or
    by as much with every token, which is geometric in the steps (`power`; Brown et al. 2020, appendix B). A growing
    batch is rounded to a multiple of `multiple` examples: that of the readers of a mesh, and none of them waits for
    others."""

    points: tuple[tuple[float, float], ...]
    between: Literal["steps", "line", "power"] = "steps"
    multiple: int = at_least(1, 1)

    def check(self) -> None:
        require(len(self.points) >= 2, f"ramp.points must be at least two, not {len(self.points)}")
        times, shares = zip(*self.points, strict=True)
        require(times[0] == 0, f"ramp.points must begin with the share 0 of the steps, not {times[0]}")
        require(times[-1] < 1, f"ramp.points must end before the last step, at a share below 1, not at {times[-1]}")
        require(shares[0] > 0, f"ramp.points must begin with a share of the batch above 0, not {shares[0]}")
        require(shares[-1] == 1, f"ramp.points must end with the share 1 of the batch, not {shares[-1]}")
        for (time, share), (later, more) in zip(self.points, self.points[1:], strict=False):
            require(time < later and share < more, f"ramp.points must rise, not go from {time, share} to {later, more}")

    def share(self, time: float) -> float:
        """The share of the full batch after the share `time` of the steps."""
        i = bisect.bisect_right(self.points, time, key=lambda point: point[0]) - 1
        begin, low = self.points[i]
        if self.between == "steps" or i == len(self.points) - 1:
            return low
        end, high = self.points[i + 1]
        way = (time - begin) / (end - begin)
        return low + way * (high - low) if self.between == "line" else low * (high / low) ** way

    def examples(self, full: int, step: float, steps: int) -> int:
        """Examples of the step after `step` steps, in a run of `steps` whose full batch has `full`; at least one."""
        return self.rounded(full, self.share(step / steps))

    def rounded(self, full: int, share: float) -> int:
        """Examples of a share of the full batch."""
        return full if share == 1 else min(full, max(1, round(full * share / self.multiple)) * self.multiple)


def examples(ramp: Ramp | None, full: int, step: float, steps: int) -> int:
    """Examples of the step after `step` steps, in a run of `steps` whose full batch has `full`."""
    return full if ramp is None else ramp.examples(full, step, steps)


@functools.lru_cache(maxsize=256)
def stretches(ramp: Ramp | None, full: int, steps: int) -> tuple[tuple[int, int], ...]:
    """Batches of a run that are alike and follow each other: (examples a step, number of steps)."""
    if ramp is None:
        return ((full, steps),)
    found, step = [], 0
    while step < steps:
        size, reach = ramp.examples(full, step, steps), 1
        while step + reach < steps and ramp.examples(full, step + reach, steps) == size:
            reach *= 2
        low, high = step + reach // 2, min(step + reach, steps)
        end = bisect.bisect_right(range(high), size, low, key=lambda s: ramp.examples(full, s, steps))
        found.append((size, end - step))
        step = end
    return tuple(found)


def total(ramp: Ramp | None, full: int, steps: int, cost: Callable[[int], float] = float) -> float:
    """The cost of a run of `steps`, where a step of n examples costs `cost(n)`; left out, its number of examples."""
    return sum(count * cost(size) for size, count in stretches(ramp, full, steps))


def longest(ramp: Ramp | None, full: int, limit: float, cost: Callable[[int], float] = float) -> int:
    """The most steps, at least one, that cost no more than `limit`; more steps cost more, and nearly in proportion."""
    fits, over, steps = 0, math.inf, max(1, int(limit / cost(full)))
    while over - fits > 1:
        spent = total(ramp, full, steps, cost)
        fits, over = (max(fits, steps), over) if spent <= limit else (fits, steps)
        steps = int(max(fits + 1, min(over - 1, steps * limit // spent)))
    return max(1, fits)


def nearest(ramp: Ramp | None, full: int, batches: float) -> int:
    """The number of steps, at least one, whose examples come nearest to those of `batches` full batches."""
    if ramp is None:
        return max(1, round(batches))
    wanted = batches * full
    steps = longest(ramp, full, wanted)
    less, more = (abs(total(ramp, full, n) - wanted) for n in (steps, steps + 1))
    return steps if less <= more else steps + 1
