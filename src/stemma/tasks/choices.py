"""Which of several texts is right: rows of multiple choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from stemma.declare.tasks import ChooseTask
from stemma.errors import DataError, brief
from stemma.tasks import metrics
from stemma.tasks.base import Marked, text_of
from stemma.tasks.heads import WORST, Answer, Row, TextReader, rounded, shares, value_in
from stemma.text.inputs import joined


class ChooseReader(TextReader, of=ChooseTask):
    """Each candidate is read behind the text. The marks are, in turn, where a candidate's tokens begin, those of the
    text before it included, and where the candidate itself does."""

    def candidates(self, row: Row) -> list[str]:
        """The texts to choose from."""
        columns = self.task.choices
        found = value_in(row, columns[0], "choices") if len(columns) == 1 else [value_in(row, c, c) for c in columns]
        if isinstance(found, dict):  # as in ARC: {"text": [...], "label": [...]}
            found = found.get("text")
        if (
            not isinstance(found, list)
            or len(found) < 2
            or not all(isinstance(one, str) and one.strip() for one in found)
        ):
            raise DataError(f"its choices are {brief(found)}, and not a list of at least two texts")
        return list(found)

    def asked(self, row: Row) -> tuple[str, ...]:
        return (text_of(row, self.task.text, "text"), *self.candidates(row))

    def target(self, row: Row) -> int:
        found, choices = value_in(row, self.task.label, "label"), self.candidates(row)
        held = row[self.task.choices[0]]
        names = [str(name) for name in held.get("label", [])] if isinstance(held, dict) else []
        if isinstance(found, str) and found in (known := names or choices):
            return known.index(found)
        try:
            number = -1 if isinstance(found, bool) else int(found)
        except (TypeError, ValueError):
            number = -1
        if not 0 <= number < len(choices):
            raise DataError(f"its label is {brief(found)}, and neither a number below {len(choices)} nor a choice")
        return number

    def named(self, row: Row) -> str:
        return f"choice {self.target(row)}"

    def marked(self, found: tuple[str, ...]) -> Marked:
        ids: list[int] = []
        marks: list[int] = []
        for one in found[1:]:
            second = f"\n{one}" if self.structure == "decoder" else one
            made = joined(self.tokenizer, found[0], second, self.context)
            marks += [len(ids), len(ids) + (made.kinds.index(1) if 1 in made.kinds else made.begins[1])]
            ids += made.ids
        return Marked(ids, marks)

    def shown(self, row: Row) -> str:
        ids, marks = self.marked(self.asked(row))
        ends = [*marks[2::2], len(ids)]
        texts = [self.tokenizer.decode(ids[a:b], skip_special=False) for a, b in zip(marks[0::2], ends, strict=True)]
        return " / ".join(texts) + f" -> {self.named(row)}"

    def answer(self, row: Row, ids: Sequence[int], marks: Sequence[int], scores: npt.NDArray[Any]) -> Answer:
        each = shares(scores)
        best = int(each.argmax())
        by_number = {str(i): rounded(p) for i, p in enumerate(each)}
        return {"label": best, "text": self.candidates(row)[best], "scores": by_number}

    def measure(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, float]:
        return metrics.labels.right([self.target(row) for row in rows], [one["label"] for one in answers])

    def report(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, Any]:
        sure = [one["scores"][str(self.target(row))] for row, one in zip(rows, answers, strict=True)]
        return {
            "worst": [
                {
                    "text": self.asked(rows[i])[0],
                    "truth": self.candidates(rows[i])[self.target(rows[i])],
                    "found": answers[i]["text"],
                    "score": sure[i],
                }
                for i in sorted(range(len(rows)), key=sure.__getitem__)[:WORST]
            ]
        }
