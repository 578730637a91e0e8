"""Tags of words: rows of tagging, and the spans that tags in BIO stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from stemma.declare.tasks import TagTask
from stemma.errors import DataError, brief
from stemma.tasks import metrics
from stemma.tasks.base import Marked
from stemma.tasks.heads import WORST, Answer, HeadReader, Row, label_of, rounded, shares, value_in
from stemma.text.inputs import joined

IGNORED = -100  # the label of a token that learns nothing


class TagReader(HeadReader, of=TagTask):
    """A tag a word. The words are read with spaces between them; the first token of each learns and answers. The marks
    are the places of these tokens; words at the end of a text that is too long are cut off."""

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """The number of each tag."""
        return {name: i for i, name in enumerate(self.task.labels)}

    def asked(self, row: Row) -> list[str]:
        found = value_in(row, self.task.words, "words")
        words = found.split() if isinstance(found, str) else found
        if not isinstance(words, list) or not words or not all(isinstance(w, str) and w.strip() for w in words):
            raise DataError(f"its words (column {self.task.words!r}) are {brief(found)}, and not a list of words")
        return [" ".join(word.split()) for word in words]

    def expected(self, row: Row) -> list[str]:
        found = value_in(row, self.task.tags, "tags")
        tags = found.split() if isinstance(found, str) else found
        if not isinstance(tags, list):
            raise DataError(f"its tags (column {self.task.tags!r}) are {brief(found)}, and not a list of tags")
        return [label_of(tag) for tag in tags]

    def target(self, row: Row) -> list[int]:
        tags, words = self.expected(row), self.asked(row)
        if len(tags) != len(words):
            raise DataError(f"it has {len(words)} words and {len(tags)} tags")
        if unknown := [tag for tag in tags if tag not in self.numbers]:
            raise DataError(f"its tag {brief(unknown[0])} is not among the tags {', '.join(self.task.labels[:10])}")
        return [self.numbers[tag] for tag in tags]

    def named(self, row: Row) -> str:
        return " ".join(self.expected(row))

    def marked(self, found: list[str]) -> Marked:
        made = joined(self.tokenizer, " ".join(found), limit=self.context)
        begin, spans = made.begins[0], made.spans[0]
        firsts, at, token = [], 0, 0
        for word in found:
            while token < len(spans) and spans[token][1] <= at:
                token += 1
            if token == len(spans):
                break
            if spans[token][0] >= at + len(word):
                raise DataError(f"its word {brief(word)} has no token")
            firsts.append(begin + token)
            at += len(word) + 1
        if len(set(firsts)) < len(firsts):
            raise DataError("two of its words have one token between them")
        return Marked(made.ids, [0, *(place for place in firsts if place)])

    def places(self, ids: Sequence[int], marks: Sequence[int]) -> list[int]:
        """The first token of each word."""
        return list(marks[1:]) if ids[0] in self.tokenizer.special_ids else list(marks)

    def labels(self, row: Row, ids: Sequence[int], marks: Sequence[int]) -> npt.NDArray[Any]:
        found, places = np.full(len(ids), IGNORED, np.int64), self.places(ids, marks)
        found[places] = self.target(row)[: len(places)]
        return found

    def check(self, row: Row) -> None:
        self.marked(self.read(row))

    def answer(self, row: Row, ids: Sequence[int], marks: Sequence[int], scores: npt.NDArray[Any]) -> Answer:
        words, each = self.asked(row), shares(scores)[self.places(ids, marks)]
        tags = [self.task.labels[i] for i in each.argmax(-1)]
        tags += ["O"] * (len(words) - len(tags))  # of words that were cut off
        return {"spans": spans_of(words, tags), "tags": tags, "score": rounded(each.max(-1).mean())}

    def measure(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, float]:
        return metrics.tags.measured([self.expected(row) for row in rows], [one["tags"] for one in answers])

    def report(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, Any]:
        wrong = [
            sum(a != b for a, b in zip(self.expected(row), one["tags"], strict=True))
            for row, one in zip(rows, answers, strict=True)
        ]
        return {
            "worst": [
                {
                    "text": " ".join(self.asked(rows[i])),
                    "truth": " ".join(self.expected(rows[i])),
                    "found": " ".join(answers[i]["tags"]),
                    "score": wrong[i],
                }
                for i in sorted(range(len(rows)), key=lambda i: -wrong[i])[:WORST]
            ]
        }


def spans_of(words: Sequence[str], tags: Sequence[str]) -> list[dict[str, Any]]:
    """The spans that tags in BIO stand for, as seqeval counts them: an I- of another kind begins one, too. Places are
    characters of the words with spaces between them. Tags without a prefix are spans of neighbours that are alike."""
    found: list[dict[str, Any]] = []
    at, before = 0, ("O", "")
    for word, tag in zip(words, tags, strict=True):
        prefix, _, kind = tag.partition("-") if tag[1:2] == "-" else ("O" if tag == "O" else "I", "", tag)
        if prefix != "O":
            goes_on = prefix == "I" and before[0] != "O" and before[1] == kind
            if not goes_on:
                found.append({"label": kind, "start": at, "end": at, "text": ""})
            found[-1]["end"] = at + len(word)
            found[-1]["text"] += f" {word}" if goes_on else word
        before = (prefix, kind)
        at += len(word) + 1
    return found
