"""Rows that are learnt as text: conversations, and a text that is written for another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from stemma.conversations import (
    Conversation,
    Text,
    Turn,
    Writer,
    comparisons,
    encode,
    fit,
    ghost,
    is_text,
    read,
    writer,
)
from stemma.conversations.targets import LossOn, check
from stemma.declare.tasks import ChatTask, WriteTask
from stemma.errors import DataError
from stemma.tasks.base import Marked, Reader, text_of
from stemma.tasks.hard import prompted


def marks_of(targets: Sequence[bool]) -> list[int]:
    """Where runs of targets begin and end in turn, behind a 0. The first token is none: nothing stands before it."""
    learnt = [False, *targets[1:]]
    return [0, *(i for i in range(1, len(learnt)) if learnt[i] != learnt[i - 1])]


class ChatReader(Reader, of=ChatTask):
    """Conversations of any known shape. Whole rounds are left out at the end of one that is too long, or, where the
    task has limits, the question and the answer of a single round lose their ends. With markers of feedback, a row that
    compares two answers is read as two conversations, of which the last answers are learnt: those before them are in
    both and were not compared. A text alone, where the task has such rows, is learnt whole, and loses its end where it
    is too long."""

    @cached_property
    def writer(self) -> Writer:
        """What writes them."""
        return writer(self.tokenizer, self.task.template or None, self.task.feedback)

    def pieces(self, row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return comparisons.pieces(row) if self.task.feedback else [row]

    def read(self, row: Mapping[str, Any]) -> Conversation | str:
        return self._text(row) if self.task.texts and is_text(row) else self._conversation(row)

    def _text(self, row: Mapping[str, Any]) -> str:
        if self.structure != "decoder":
            raise DataError("it is a text alone, which decoders learn")
        return text_of(row, "text", "text")

    def _conversation(self, row: Mapping[str, Any]) -> Conversation:
        if self.task.feedback and comparisons.is_row(row):  # where one is to be seen, the preferred
            found = comparisons.compared(row)[0]
        else:
            found = read(row)
            liked = row.get(comparisons.FEEDBACK)
            found = replace(found, liked=liked) if self.task.feedback and isinstance(liked, bool) else found
        found = prompted(found, self.task.prompts, row.get("task"))
        return found if self.task.ghost is None else ghost.learnt(found, self.task.ghost)

    def marked(self, found: Conversation | str) -> Marked:
        if isinstance(found, str):
            whole = ((0, len(found)),)
            example = encode(self.tokenizer, Text(found, whole, whole, open_ended=True), "everything")
            end = self.context + 1
            return Marked(example.ids[:end], marks_of(example.targets[:end]))
        limited = self.task.inputs is not None or self.task.targets is not None
        if limited and [turn.role for turn in found.turns][-2:] == ["user", "assistant"] and len(found.answers) == 1:
            return self._shortened(found)
        example = fit(found, self.context + 1, self.writer, self.tokenizer, self._learns(found))
        return Marked(example.ids, marks_of(example.targets))

    def _shortened(self, talk: Conversation) -> Marked:
        """A round whose question and answer have lost their ends as far as the task's limits and a row ask for it.
        Raises DataError where nothing would be left of the question."""
        task, room = self.task, self.context
        *before, asked, answer = talk.turns
        for _ in range(8):  # words that are cut may be other tokens
            found = replace(talk, turns=(*before, asked, answer), instruction="", input="")
            example = encode(self.tokenizer, self.writer.write(found), self._learns(talk))
            begin = example.targets.index(True)
            size = len(example.ids) - begin
            over = size - min(task.targets or size, room)
            if over > 0:
                answer = Turn("assistant", self._cut(answer.content, over))
                continue
            left = room if self.structure == "encoder-decoder" else room + 1 - size
            if (over := begin - min(task.inputs or begin, left)) <= 0:
                return Marked(example.ids, marks_of(example.targets))
            asked = Turn("user", self._cut(asked.content, over))
        raise DataError(f"its question and answer cannot be cut to {room} tokens")

    def _cut(self, words: str, over: int) -> str:
        """Words without their last `over` tokens."""
        ids = self.tokenizer.encode(words, add_special=False)
        if len(ids) <= over:
            raise DataError(f"its answer leaves no room for its question in the {self.context} tokens of a row")
        return str(self.tokenizer.decode(ids[: len(ids) - over]))

    def _learns(self, found: Conversation) -> LossOn:
        return self.task.learns if found.liked is None or self.task.learns == "everything" else "last answer"

    def check(self, row: Mapping[str, Any]) -> None:
        for piece in self.pieces(row):
            found = self.read(piece)
            if isinstance(found, str):
                continue
            made = self.writer.write(found)
            check(self.tokenizer, made, self._learns(found))
            if len(made.text.encode("utf-8", "replace")) >= self.context:  # else it fits: a token has at least a byte
                self.marked(found)


class WriteReader(Reader, of=WriteTask):
    """A text, and what is to be written for it. An encoder-decoder reads the one and writes the other; for a decoder
    both are one text. The text that is read is cut at its end where both do not fit, never what is written."""

    def read(self, row: Mapping[str, Any]) -> tuple[str, str]:
        task = self.task
        return task.prefix + text_of(row, task.text, "text"), text_of(row, task.target, "target")

    def marked(self, found: tuple[str, str]) -> Marked:
        asked, answer = found
        if self.structure == "encoder-decoder":
            ids = self.asked(asked)
            written = self.tokenizer.encode(answer)
            if len(written) > self.context:
                raise DataError(f"its target has {len(written)} tokens, more than the {self.context} of a row")
            return Marked([*ids, *written], [0, len(ids)])
        example = self._joined(asked, answer)
        if (over := len(example.ids) - self.context - 1) > 0:
            kept = self.tokenizer.encode(asked, add_special=False)[:-over]
            if len(kept) < 1:
                raise DataError(f"its target has more tokens than the {self.context} of a row")
            example = self._joined(self.tokenizer.decode(kept), answer)
            if len(example.ids) > self.context + 1:
                raise DataError(f"it has {len(example.ids)} tokens, more than the {self.context} of a row")
        return Marked(example.ids, marks_of(example.targets))

    def asked(self, text: str) -> list[int]:
        """The ids that an encoder reads, or a decoder continues."""
        if self.structure == "encoder-decoder":
            ids: list[int] = self.tokenizer.encode(text)
            around = len(ids) - len(self.tokenizer.encode(text, add_special=False))
            if (over := len(ids) - self.context) > 0:
                kept = self.tokenizer.encode(text, add_special=False)[:-over]
                ids = self.tokenizer.encode(self.tokenizer.decode(kept)) if around else kept
            return ids[: self.context]
        from stemma.conversations import prompt_ids

        return prompt_ids(self.tokenizer, Text(text + self.task.between, (), ((0, len(text)),)))

    def _joined(self, asked: str, answer: str) -> Any:
        head = asked + self.task.between
        words = ((0, len(asked)), (len(head), len(head) + len(answer)))
        return encode(self.tokenizer, Text(head + answer, words[1:], words, (len(head),), open_ended=True))

    def check(self, row: Mapping[str, Any]) -> None:
        asked, answer = self.read(row)
        if len((asked + self.task.between + answer).encode("utf-8", "replace")) >= self.context - 2:
            super().check(row)
