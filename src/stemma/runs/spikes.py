"""Loss spikes, handled as PaLM's: go back to a checkpoint from before the spike and skip batches (Chowdhery et al. 2022,
arXiv:2204.02311, section 5.1)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from stemma.errors import StemmaError
from stemma.spec import Spec, at_least, not_negative, positive


class Diverged(StemmaError):
    """The loss or the gradient became infinite or undefined. `what`: which of them, and where it was first found."""

    def __init__(self, sentence: str, what: str = "") -> None:
        super().__init__(sentence)
        self.what = what


@dataclass(frozen=True)
class Spikes(Spec):
    """A spike: `patience` losses in a row above median + `above` * 1.4826 * MAD (median absolute deviation) of the last
    `window` steps, or one loss or gradient that is not finite. The run then goes back to a checkpoint, by `back` steps
    or more, and skips `skip` batches after the spike (PaLM: about 100 steps, 200 to 500 batches; it does not say how
    spikes were found). At most `most` times."""

    window: int = at_least(8, 50, "steps")
    above: float = positive(8.0)
    patience: int = at_least(1, 3)
    back: int = at_least(1, 100)
    skip: int = not_negative(200)
    most: int = at_least(1, 20)


def spiked(spec: Spikes, losses: Sequence[float]) -> bool:
    """Whether the last `patience` of `losses` are a spike, seen from those before them."""
    if losses and not math.isfinite(losses[-1]):
        return True
    before, last = losses[: -spec.patience], losses[-spec.patience :]
    if len(before) < spec.window:
        return False
    usual = before[-spec.window :]
    middle = statistics.median(usual)
    deviation = 1.4826 * statistics.median(abs(x - middle) for x in usual)
    return min(last) > middle + spec.above * max(deviation, 1e-3 * abs(middle))
