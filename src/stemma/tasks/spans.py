"""Answers that are spans of a context: rows as in SQuAD, read in windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stemma.declare.tasks import AnswerTask
from stemma.errors import DataError, brief
from stemma.tasks import metrics
from stemma.tasks.base import Marked, text_of
from stemma.tasks.heads import WORST, Answer, HeadReader, Row, rounded, value_in
from stemma.text.inputs import Span, around, joined, pieces

WINDOW = "_window"  # of a piece of a row: the tokens of its context that it holds
LONGEST = 30  # tokens of an answer (Devlin et al. 2018, released code)


class Asked(NamedTuple):
    """A question, its context, and the tokens of the context that are read; None: all."""

    question: str
    context: str
    window: Span | None


class AnswerReader(HeadReader, of=AnswerTask):
    """A span of the context, or none. A window that does not hold the whole answer learns that it has none, at its
    first token (Devlin et al. 2018, section 4.3)."""

    def asked(self, row: Row) -> Asked:
        context = value_in(row, self.task.context, "context")
        if not isinstance(context, str):
            raise DataError(f"its context (column {self.task.context!r}) is {brief(context)}, and not a text")
        window = row.get(WINDOW)
        question = text_of(row, self.task.question, "question")
        return Asked(question, context, None if window is None else (int(window[0]), int(window[1])))

    def right(self, row: Row) -> list[tuple[str, int]]:
        """The right answers with their places; none for a question without an answer."""
        if self.task.answers not in row:
            raise DataError(f"it has no column {self.task.answers!r} for the answers")
        found, context = row[self.task.answers], self.asked(row).context
        if isinstance(found, str):
            found = {"text": [found], "answer_start": [context.find(found)]} if found else None
        if found is None or found == []:
            return []
        if isinstance(found, list) and all(isinstance(one, dict) for one in found):
            found = {key: [one.get(key) for one in found] for key in ("text", "answer_start")}
        if not isinstance(found, dict) or not all(isinstance(found.get(k), list) for k in ("text", "answer_start")):
            raise DataError(f"its answers are {brief(found)}; right are {{'text': [...], 'answer_start': [...]}}")
        pairs = list(zip(found["text"], found["answer_start"], strict=False))
        for text, start in pairs:
            if (
                not isinstance(text, str)
                or not isinstance(start, int)
                or start < 0
                or context[start : start + len(text)] != text
            ):
                raise DataError(f"its answer {brief(text)} does not stand at {start} of its context")
        return pairs

    def target(self, row: Row) -> tuple[int, int] | None:
        """The characters of the first right answer; None without."""
        found = self.right(row)
        return (found[0][1], found[0][1] + len(found[0][0])) if found else None

    def named(self, row: Row) -> str:
        found = self.right(row)
        return found[0][0] if found else "(no answer)"

    def pieces(self, row: Row) -> list[Row]:
        asked = self.asked(row)
        tokens = len(pieces(self.tokenizer, asked.context))
        question = len(pieces(self.tokenizer, asked.question))
        room = self.context - around(self.tokenizer, True) - min(question, self.context // 2)
        if room < 1:
            raise DataError(f"a row of {self.context} tokens has no room for its context")
        if tokens <= room:
            return [row]
        step = max(1, room - min(self.task.stride, room // 2))
        begins = list(range(0, max(1, tokens - room + step), step))
        return [{**row, WINDOW: [a, min(a + room, tokens)]} for a in begins]

    def marked(self, found: Asked) -> Marked:
        tokens = len(pieces(self.tokenizer, found.context))
        made = joined(self.tokenizer, found.question, found.context, self.context, found.window or (0, tokens))
        return Marked(made.ids, [0, made.begins[1]])

    def spans(self, row: Row) -> list[Span]:
        """The characters of the tokens of the context that are read."""
        found = self.asked(row)
        held = pieces(self.tokenizer, found.context)
        return held[slice(*found.window)] if found.window else held

    def labels(self, row: Row, ids: Sequence[int], marks: Sequence[int]) -> npt.NDArray[Any]:
        wanted, spans = self.target(row), self.spans(row)
        inside = [i for i, (a, b) in enumerate(spans) if wanted and a < wanted[1] and b > wanted[0] and b > a]
        if not wanted or not inside or spans[inside[0]][0] > wanted[0] or spans[inside[-1]][1] < wanted[1]:
            return np.asarray([0, 0])
        return np.asarray([marks[1] + inside[0], marks[1] + inside[-1]])

    def answer(self, row: Row, ids: Sequence[int], marks: Sequence[int], scores: npt.NDArray[Any]) -> Answer:
        """The best span of at most 30 tokens, with its score over that of no answer."""
        spans, begin = self.spans(row), marks[1]
        own = scores[begin : begin + len(spans)].astype(np.float64)
        none = float(scores[0].sum())
        sums = own[:, 0][:, None] + own[:, 1][None]
        places = np.arange(len(own))
        far = places[None] - places[:, None]
        sums[(far < 0) | (far >= LONGEST)] = -np.inf
        a, b = np.unravel_index(int(sums.argmax()), sums.shape)
        start, end = spans[a][0], spans[b][1]
        text = self.asked(row).context[start:end]
        gap = len(text) - len(text.lstrip())
        return {"text": text.strip(), "start": start + gap, "none": none, "best": float(sums[a, b])}

    def whole(self, row: Row, answers: Sequence[Answer]) -> Answer:
        best = max(answers, key=lambda one: float(one["best"]))
        over = float(best["best"]) - min(float(one["none"]) for one in answers)
        if over <= 0:
            return {"text": "", "score": rounded(over)}
        return {"text": best["text"], "start": best["start"], "score": rounded(over)}

    def measure(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, float]:
        truth = [[text for text, _ in self.right(row)] for row in rows]
        return metrics.spans.measured(truth, [one["text"] for one in answers])

    def report(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, Any]:
        each = [self.measure([row], [one])["f1"] for row, one in zip(rows, answers, strict=True)]
        return {
            "worst": [
                {
                    "text": self.asked(rows[i]).question,
                    "truth": self.named(rows[i]),
                    "found": answers[i]["text"] or "(no answer)",
                    "score": rounded(each[i]),
                }
                for i in sorted(range(len(rows)), key=each.__getitem__)[:WORST]
            ]
        }
