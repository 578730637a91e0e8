"""Facts of a run for the page: name, colour, numbers and their texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stemma import families
from stemma.declare.family import Family
from stemma.declare.objectives import label
from stemma.errors import UsageError
from stemma.report.read import RunFiles

LARGEST = 1e100


def k(i: int) -> str:
    """The colour class of run `i`."""
    return f"k{i % 6}"


def labels(runs: Sequence[RunFiles]) -> list[str]:
    """A unique name for each run: repeated names get the directory, then a number."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{n} ({run.path.name})" if names.count(n) > 1 else n for n, run in zip(names, runs, strict=True)]
    return [f"{n} #{i + 1}" if names.count(n) > 1 else n for i, n in enumerate(names)]


def named(runs: Sequence[RunFiles]) -> Iterator[tuple[int, RunFiles, str]]:
    """(index, run, name) of each run."""
    yield from zip(range(len(runs)), runs, labels(runs), strict=True)


def number(value: Any) -> float | None:
    """`value` if it is a finite number, of a size that sums of it stay finite too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:
        return None
    return float(value)


def short(n: float | None, unit: str = "") -> str:
    if n is None:
        return "-"
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= size:
            return f"{n / size:.3g}{letter}{unit}"
    return f"{n:.3g}{unit}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def owner(run: RunFiles) -> Family | None:
    """The family of a run; None if the tree does not have it."""
    try:
        return families.family(run.name)
    except UsageError:
        return None


def start_of(run: RunFiles) -> str:
    """The run, folder or hub id whose weights a run began with; "" for fresh weights."""
    train = run.plan.get("train")
    return str(train.get("start") or "") if isinstance(train, dict) else ""


def losses(run: RunFiles) -> list[float]:
    """The losses of the steps."""
    return [v for row in run.steps if (v := number(row.get("loss"))) is not None]


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential running mean over about a fiftieth of the run, with bias correction."""
    keep = 1 - 1 / max(2.0, len(values) / 50)
    total = weight = 0.0
    out = []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight)
    return out


def last(run: RunFiles, key: str) -> float | None:
    """The last value of a metric."""
    return next((v for row in reversed(run.steps) if (v := number(row.get(key))) is not None), None)


def first_of(run: RunFiles, *keys: str) -> float | None:
    """The first of these numbers in the summary, else in run.json."""
    for source in (run.summary, run.info):
        for key in keys:
            if (value := number(source.get(key))) is not None:
                return value
    return None


def quality(run: RunFiles) -> tuple[float, bool] | None:
    """(bits per byte of held-out text, whether of the whole text; else of the hidden parts only)."""
    return _quality(run.summary)


def _quality(summary: Mapping[str, Any]) -> tuple[float, bool] | None:
    val = summary.get("val")
    for source in (val if isinstance(val, dict) else {}, summary):
        for key, whole in (("bits_per_byte", True), ("bits_per_target_byte", False)):
            if (value := number(source.get(key))) is not None:
                return value, whole
    return None


def baselines(summaries: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, float]:
    """The baselines of (run's name, its summary) pairs: name -> bits per byte of the whole text. They are those of the
    runs measured on the whole text, of all runs if none is. A baseline that differs from run to run (the unigram
    depends on the tokenizer) has the names of its runs beside it."""
    found: dict[str, dict[float, list[str]]] = {}
    whole = [row for row in summaries if (_quality(row[1]) or (0.0, False))[1]]
    for owner_name, summary in whole or summaries:
        given = summary.get("baselines")
        for key, value in given.items() if isinstance(given, dict) else ():
            n = number(value.get("bits_per_byte") if isinstance(value, dict) else value)
            if n is not None:
                name = str(key).removesuffix("_bits_per_byte").replace("_", " ")
                found.setdefault(name, {}).setdefault(round(n, 3), []).append(owner_name)
    return {
        name if len(values) == 1 else f"{name}, {', '.join(owners)}": value
        for name, values in found.items()
        for value, owners in values.items()
    }


def detected(run: RunFiles) -> float | None:
    """The accuracy of a detector of replaced tokens."""
    val = run.summary.get("val")
    return number(val.get("replaced_right")) if isinstance(val, dict) else None


def majority(run: RunFiles) -> float | None:
    """How often a detector would be right that gave every token the same answer, the commoner one."""
    val = run.summary.get("val")
    share = number(val.get("replaced_share")) if isinstance(val, dict) else None
    return None if share is None else max(share, 1 - share)


def held_out(run: RunFiles) -> list[list[float]]:
    """[tokens, seconds, loss of held-out text] after each step that was evaluated, and at the end."""
    found = []
    for row in run.steps:
        values = {key.removeprefix("val_"): value for key, value in row.items() if key.startswith("val_")}
        if (loss := _minimised(run, values)) is not None:
            found.append([number(row.get("tokens")) or 0.0, number(row.get("seconds")) or 0.0, loss])
    val, tokens = run.summary.get("val"), tokens_of(run)
    end = _minimised(run, val) if isinstance(val, dict) else None
    if end is not None and tokens is not None:
        found.append([tokens, seconds_of(run) or 0.0, end])
    return found


def _minimised(run: RunFiles, values: Mapping[str, Any]) -> float | None:
    """What training minimises, of the parts measured on held-out text; None where their weights are not known."""
    objective, loss = run.plan.get("objective"), number(values.get("loss"))
    objective = objective if isinstance(objective, dict) else {}
    parts = [v for key, value in values.items() if key.startswith("loss_") and (v := number(value)) is not None]
    if loss is None or (parts and "teacher" in objective):
        return None
    weight = number(objective.get("weight"))  # of a detector beside its generator
    return loss * (1.0 if weight is None else weight) + sum(parts)


def no_bits(run: RunFiles) -> str | None:
    """Why a run has no bits per byte; None if it has."""
    if quality(run) is not None:
        return None
    if not run.summary:
        return "it has not finished, so nothing was measured yet"
    if "answers" in run.summary:
        return "it was tuned to a task, whose metrics are above"
    if detected(run) is not None:
        return "it says of each token whether it was replaced, and predicts no text"
    return "what it predicts is not text"


def seconds_of(run: RunFiles) -> float | None:
    found = first_of(run, "seconds", "train_seconds")
    return found if found is not None else last(run, "seconds")


def tokens_of(run: RunFiles) -> float | None:
    found = first_of(run, "tokens")
    return found if found is not None else last(run, "tokens")


def speed_of(run: RunFiles) -> float | None:
    found = first_of(run, "tokens_per_second")
    tokens, seconds = tokens_of(run), seconds_of(run)
    return found if found is not None else tokens / seconds if tokens and seconds else None


def kind_text(run: RunFiles) -> str:
    objective = run.plan.get("objective")
    kind = objective.get("kind") if isinstance(objective, dict) else None
    return ", ".join(x for x in (run.structure, kind and label(str(kind))) if x)
