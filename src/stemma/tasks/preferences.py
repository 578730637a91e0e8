"""Rows in which answers were compared or liked, and prompts that wait for answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stemma.conversations import Conversation, Writer, comparisons, encode, prompt_ids, read, writer
from stemma.conversations.shapes import question
from stemma.declare.alignment import PreferTask, PromptTask, ThumbTask
from stemma.errors import DataError
from stemma.tasks.base import Marked, Reader


@dataclass(frozen=True)
class Compared:
    """Conversations that differ in their last answers, the best first."""

    talks: tuple[Conversation, ...]


class TalkReader(Reader):
    """What the readers of conversations here share."""

    @cached_property
    def writer(self) -> Writer:
        """What writes them."""
        return writer(self.tokenizer, self.task.template or None)

    def texts(self, talks: Sequence[Conversation]) -> Marked:
        """The ids of whole conversations one behind another. Marks: for each where its last answer begins, and where
        the next conversation does. Raises DataError for one that a row does not hold."""
        ids: list[int] = []
        marks = [0]
        for talk in talks:
            example = encode(self.tokenizer, self.writer.write(talk), "last answer")
            if len(example.ids) > self.context:
                raise DataError(f"it has {len(example.ids)} tokens, more than the {self.context} of a row")
            if ids:
                marks.append(len(ids))
            marks.append(len(ids) + example.targets.index(True))
            ids += example.ids
        return Marked(ids, marks)


class PreferReader(TalkReader, of=PreferTask):
    """Answers that were compared."""

    def read(self, row: Mapping[str, Any]) -> Compared:
        return Compared(comparisons.compared(row))

    def marked(self, found: Compared) -> Marked:
        return self.texts(found.talks)


class ThumbReader(TalkReader, of=ThumbTask):
    """An answer that was liked or not."""

    def read(self, row: Mapping[str, Any]) -> Conversation:
        if not isinstance(row.get("label"), bool):
            raise DataError("it has no 'label' that is true or false, for whether its answer was liked")
        return read(row)

    def marked(self, found: Conversation) -> Marked:
        return self.texts([found])


class PromptReader(TalkReader, of=PromptTask):
    """A conversation up to where its last answer begins."""

    def read(self, row: Mapping[str, Any]) -> Conversation:
        if comparisons.is_row(row):
            talk = comparisons.compared(row)[0]
            return Conversation(talk.turns[:-1])
        return question(row)

    def marked(self, found: Conversation) -> Marked:
        ids = prompt_ids(self.tokenizer, self.writer.prompt(found.turns))
        if len(ids) >= self.context:
            raise DataError(f"its prompt has {len(ids)} tokens, and a row of {self.context} must hold an answer too")
        return Marked(ids, [0])
