"""Labels and numbers of texts: rows of classification and regression."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from stemma.declare.tasks import ClassifyTask, RegressTask
from stemma.errors import DataError, brief
from stemma.tasks import metrics
from stemma.tasks.heads import WORST, Answer, Row, TextReader, label_of, rounded, shares, value_in


class ClassifyReader(TextReader, of=ClassifyTask):
    """One label of a text, or any number of them."""

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """The number of each label."""
        return {name: i for i, name in enumerate(self.task.labels)}

    def expected(self, row: Row) -> list[str]:
        found = value_in(row, self.task.label, "label")
        if self.task.several:
            if not isinstance(found, list):
                raise DataError(f"its labels (column {self.task.label!r}) are {brief(found)}, and not a list")
            return [label_of(one) for one in found]
        if isinstance(found, list):
            raise DataError(f"its label (column {self.task.label!r}) is a list, {brief(found)}, where others have one")
        return [label_of(found)]

    def target(self, row: Row) -> Any:
        found, known = self.expected(row), self.numbers
        if unknown := [name for name in found if name not in known]:
            shown = ", ".join(list(known)[:10]) + (", ..." if len(known) > 10 else "")
            raise DataError(f"its label {brief(unknown[0])} is not among the labels {shown}")
        if not self.task.several:
            return known[found[0]]
        return np.isin(np.arange(len(known)), [known[name] for name in found]).astype(np.float32)

    def named(self, row: Row) -> str:
        return ", ".join(self.expected(row)) or "none"

    def answer(self, row: Row, ids: Sequence[int], marks: Sequence[int], scores: npt.NDArray[Any]) -> Answer:
        names = self.task.labels
        if self.task.several:
            each = 1 / (1 + np.exp(-scores.astype(np.float64)))
            by_name = {name: rounded(p) for name, p in zip(names, each, strict=True)}
            return {"labels": [n for n, p in zip(names, each, strict=True) if p > 0.5], "scores": by_name}
        each = shares(scores)
        return {
            "label": names[int(each.argmax())],
            "scores": {name: rounded(p) for name, p in zip(names, each, strict=True)},
        }

    def measure(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, float]:
        truth = [self.target(row) for row in rows]
        if self.task.several:
            found = [[name in one["labels"] for name in self.task.labels] for one in answers]
            return metrics.labels.several(np.asarray(truth, dtype=bool), np.asarray(found))
        return metrics.labels.single(truth, [self.numbers[one["label"]] for one in answers])

    def report(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, Any]:
        """The confusion matrix (rows: truth), and the rows whose right labels had the smallest scores."""
        truth = [self.expected(row) for row in rows]
        sure = [
            min((one["scores"][name] for name in names), default=1 - max(one["scores"].values()))
            for names, one in zip(truth, answers, strict=True)
        ]
        worst = [
            {
                "text": " | ".join(self.asked(rows[i])),
                "truth": ", ".join(truth[i]) or "none",
                "found": answers[i].get("label", ", ".join(answers[i].get("labels", ())) or "none"),
                "score": sure[i],
            }
            for i in sorted(range(len(rows)), key=sure.__getitem__)[:WORST]
        ]
        if self.task.several:
            return {"worst": worst}
        counts = np.zeros((len(self.numbers), len(self.numbers)), dtype=int)
        for names, one in zip(truth, answers, strict=True):
            counts[self.numbers[names[0]], self.numbers[one["label"]]] += 1
        return {"labels": list(self.task.labels), "confusion": counts.tolist(), "worst": worst}


class RegressReader(TextReader, of=RegressTask):
    """A number of a text."""

    def target(self, row: Row) -> float:
        found = value_in(row, self.task.label, "number")
        try:
            number = float(found) if not isinstance(found, bool) else math.nan
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"its number (column {self.task.label!r}) is {brief(found)}")
        return number

    def labels(self, row: Row, ids: Sequence[int], marks: Sequence[int]) -> npt.NDArray[Any]:
        return np.asarray([self.target(row)], dtype=np.float32)

    def answer(self, row: Row, ids: Sequence[int], marks: Sequence[int], scores: npt.NDArray[Any]) -> Answer:
        return {"value": rounded(scores[0])}

    def measure(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, float]:
        return metrics.numbers.measured([self.target(row) for row in rows], [one["value"] for one in answers])

    def report(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, Any]:
        far = [abs(one["value"] - self.target(row)) for row, one in zip(rows, answers, strict=True)]
        return {
            "worst": [
                {
                    "text": " | ".join(self.asked(rows[i])),
                    "truth": str(self.target(rows[i])),
                    "found": str(answers[i]["value"]),
                    "score": rounded(far[i]),
                }
                for i in sorted(range(len(rows)), key=lambda i: -far[i])[:WORST]
            ]
        }
