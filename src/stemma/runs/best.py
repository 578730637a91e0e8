"""The best checkpoint of a run, by a number that is evaluated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from stemma.errors import UsageError

LOWER = r"loss|bits|perplexity|error|mse|rmse|mae|wer|cer"
HIGHER = r"accuracy|right|f1|precision|recall|mcc|pearson|spearman|exact|bleu|chrf|rouge|auc|r2"
SHAPE = {"step": int, "checkpoint": str, "values": {str: float}, "waited": int, "seen": int}  # in a checkpoint's state


@dataclass(frozen=True)
class Best:
    """The `step` after which the number was best, the name of its `checkpoint`, and all that was evaluated there.
    `waited`: evaluations since; `seen`: the step of the last of them."""

    step: int
    checkpoint: str
    values: dict[str, float]
    waited: int = 0
    seen: int = 0

    def save(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def parse(text: str) -> tuple[str, bool]:
    """(the number's name, whether more of it is better) of a setting such as `bits_per_byte`, `+mine` or `-mine`. Raises
    UsageError for a name that tells no direction and has no sign."""
    sign, name = (text[0], text[1:]) if text[:1] in ("+", "-") else ("", text)
    if not re.fullmatch(r"\w+", name):
        raise UsageError(
            f"train.best={text!r} is no name of a number; write one such as bits_per_byte, loss or accuracy, with + "
            "before it if more is better, or - if less is"
        )
    if sign:
        return name, sign == "+"
    for words, more in ((LOWER, False), (HIGHER, True)):
        if re.search(rf"(?:^|_)(?:{words})(?:$|_|\d|[A-Z])", name):
            return name, more
    raise UsageError(f"train.best={text}: is more of it better, or less? Write +{name} or -{name}")


def measured(text: str, values: Mapping[str, float]) -> float:
    """The number that decides, signed so that more is better. Raises UsageError if it is not among those evaluated."""
    name, more = parse(text)
    if name not in values:
        there = ", ".join(sorted(values))
        raise UsageError(f"train.best={text}: {name} is not evaluated in this run; what is: {there}")
    return values[name] if more else -values[name]


def judged(text: str, best: Best | None, step: int, checkpoint: str, values: Mapping[str, float]) -> Best | None:
    """The best after an evaluation at `step`; equal numbers are no improvement, and one that is not finite is none."""
    value = measured(text, values)
    if math.isfinite(value) and (best is None or value > measured(text, best.values)):
        return Best(step, checkpoint, {k: v for k, v in values.items() if math.isfinite(v)}, 0, step)
    return best and replace(best, waited=best.waited + 1, seen=step)
