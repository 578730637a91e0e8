"""What judgments come to: wins, scores, positions, and agreement with other verdicts.

Intervals hold 95 % of bootstrap samples of the questions, each with all its turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stemma.errors import DataError, UsageError, brief
from stemma.judging.questions import rows as read_rows
from stemma.judging.verdicts import INVALID
from stemma.tasks.metrics import bootstrap

Row = Mapping[str, Any]
Share = tuple[float, float, float]  # a value and the ends of its interval
ALL = "all"


def shared(rows: Sequence[Row], measure: Callable[[Sequence[Row]], float | None]) -> Share | None:
    """`measure` of the rows, with its interval; None where it has no value."""
    value = measure(rows)
    if value is None:
        return None
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row["question_id"]), []).append(row)
    by_question = list(groups.values())

    def of(chosen: list[int]) -> dict[str, float]:
        found = measure([row for i in chosen for row in by_question[i]])
        return {} if found is None else {"value": found}

    return (value, *bootstrap.intervals(of, len(by_question))["value"])


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """All rows, those of each turn, and those of each category."""
    found: dict[str, list[Row]] = {ALL: list(rows)}
    for row in sorted(rows, key=lambda row: int(row["turn"])):
        found.setdefault(f"turn {row['turn']}", []).append(row)
    for row in rows:
        found.setdefault(str(row["category"]), []).append(row)
    return found


# ---------------------------------------------------------------- pairs


@dataclass(frozen=True)
class Wins:
    """Verdicts on the first model: what both orders say, or a tie. `rate`: wins and half of the ties, as a share of the
    valid ones."""

    wins: int
    ties: int
    losses: int
    invalid: int
    rate: Share | None


@dataclass(frozen=True)
class Positions:
    """Of the pairs with two valid verdicts: how many say the same in both orders, prefer what stands first, prefer what
    stands second, or change otherwise (to or from a tie)."""

    same: int
    first: int
    second: int
    other: int
    agreement: Share | None


@dataclass(frozen=True)
class Agreement:
    """With other verdicts on the same answers: of `verdicts`, how many are the judge's too; of `decided` ones, where
    neither says tie, how many."""

    verdicts: int
    alike: int
    decided: int
    decided_alike: int
    unmatched: int = 0


@dataclass(frozen=True)
class Results:
    """What was found. `wins` and `positions` of pairs; `scores` by model (mean, and how many are invalid)."""

    wins: dict[str, Wins] = field(default_factory=dict)
    positions: Positions | None = None
    scores: dict[str, dict[str, tuple[Share | None, int]]] = field(default_factory=dict)
    agreement: Agreement | None = None
    unfit: int = 0


def rate(rows: Sequence[Row]) -> float | None:
    """The share of wins of the first model, a tie being half a one; None without a valid verdict."""
    points = [{"model_1": 1.0, "tie": 0.5, "model_2": 0.0}[row["winner"]] for row in rows if row["winner"] != INVALID]
    return sum(points) / len(points) if points else None


def wins(rows: Sequence[Row]) -> Wins:
    """The counts of some rows."""
    said = [row["winner"] for row in rows]
    return Wins(
        said.count("model_1"), said.count("tie"), said.count("model_2"), said.count(INVALID), shared(rows, rate)
    )


def _kind(row: Row) -> str | None:
    """How the verdicts of both orders go together; None where one is invalid."""
    pair = row["g1_winner"], row["g2_winner"]
    if INVALID in pair:
        return None
    if pair[0] == pair[1]:
        return "same"
    return {("model_1", "model_2"): "first", ("model_2", "model_1"): "second"}.get(pair, "other")


def positions(rows: Sequence[Row]) -> Positions:
    """How far verdicts depend on which answer stands first."""
    kinds = [_kind(row) for row in rows]

    def alike(some: Sequence[Row]) -> float | None:
        valid = [kind for kind in map(_kind, some) if kind is not None]
        return valid.count("same") / len(valid) if valid else None

    same, first, second, other = (kinds.count(name) for name in ("same", "first", "second", "other"))
    return Positions(same, first, second, other, shared(rows, alike))


def pairs(rows: Sequence[Row], agreement: Agreement | None = None) -> Results:
    """The results of pairwise judgments."""
    unfit = sum(not row["g1_fits"] or not row["g2_fits"] for row in rows)
    by_group = {name: wins(some) for name, some in groups(rows).items()}
    return Results(by_group, positions(rows), agreement=agreement, unfit=unfit)


# ---------------------------------------------------------------- scores


def mean(rows: Sequence[Row]) -> float | None:
    """The mean of the valid scores."""
    found = [row["score"] for row in rows if row["score"] is not None]
    return sum(found) / len(found) if found else None


def scores(rows: Sequence[Row]) -> Results:
    """The results of single scores."""
    models = dict.fromkeys(row["model"] for row in rows)
    found = {
        name: {
            group: (shared(some, mean), sum(row["score"] is None for row in some))
            for group, some in groups([row for row in rows if row["model"] == name]).items()
        }
        for name in models
    }
    return Results(scores=found, unfit=sum(not row["fits"] for row in rows))


# ---------------------------------------------------------------- other verdicts

WORDS = {"model_a": "model_1", "model_b": "model_2", "model_1": "model_1", "model_2": "model_2", "tie": "tie"}
SWAPPED = {"model_1": "model_2", "model_2": "model_1", "tie": "tie"}


def others(path: str | Path, models: Sequence[str]) -> dict[tuple[str, int], list[str]]:
    """Verdicts of a file by (question, turn), as people gave them: rows of question_id, turn, winner (model_a, model_b
    or tie) and perhaps the names model_a and model_b, which may stand the other way round than `models`. Raises
    DataError for other rows, UsageError where none is about these models."""
    found: dict[tuple[str, int], list[str]] = {}
    for place, row in read_rows(path):
        said = row.get("winner")
        word = "tie" if isinstance(said, str) and said.startswith("tie") else WORDS.get(str(said))
        if word is None or "question_id" not in row or row.get("turn", 1) not in (1, 2):
            raise DataError(
                f"{place} is no verdict: question_id, turn (1 or 2) and winner (model_a, model_b, tie) were expected"
            )
        named = row.get("model_a", models[0]), row.get("model_b", models[1])
        if set(named) != set(models):
            continue
        word = word if named[0] == models[0] else SWAPPED[word]
        found.setdefault((str(row["question_id"]), int(row.get("turn", 1))), []).append(word)
    if not found:
        raise UsageError(f"{path} has no verdict on {brief(models[0])} and {brief(models[1])}")
    return found


def agreement(rows: Sequence[Row], given: Mapping[tuple[str, int], Sequence[str]]) -> Agreement:
    """How often the judge says what others say of the same pair; each of their verdicts counts, where the judge has a
    valid one."""
    ours = {(str(row["question_id"]), int(row["turn"])): row["winner"] for row in rows}
    both = [(ours.get(key, INVALID), word) for key, words in given.items() for word in words]
    valid = [pair for pair in both if pair[0] != INVALID]
    decided = [pair for pair in valid if "tie" not in pair]
    return Agreement(
        len(valid), sum(a == b for a, b in valid), len(decided), sum(a == b for a, b in decided), len(both) - len(valid)
    )
