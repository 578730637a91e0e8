"""What a model that was tuned to write writes for rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stemma.declare.tasks import WriteTask
from stemma.errors import DataError
from stemma.nn.model import Model
from stemma.tasks.base import text_of
from stemma.tasks.texts import WriteReader
from stemma.tuning.decoding import Decoding, answered, room

LONGEST = 256  # tokens of a text that is written, where the model can write more


class Written:
    """Answers the rows of a task `write` with a model."""

    def __init__(self, model: Model, task: WriteTask, how: Decoding) -> None:
        self.model, self.task, self.how = model, task, how
        there = room(model)
        self.longest = min(how.tokens or LONGEST, there // 2)
        answers = 0 if model.arch.structure == "encoder-decoder" else self.longest
        self.reader = WriteReader(task, model.tokenizer, there - answers, model.arch.structure)

    def prompt(self, row: Mapping[str, Any]) -> list[int]:
        """What the model reads of a row; a text that is too long is cut at its end. Raises DataError for a row without
        text."""
        asked = self.task.prefix + text_of(row, self.task.text, "text")
        ids = self.reader.asked(asked)
        if (over := len(ids) - self.reader.context) > 0:
            kept = self.model.tokenizer.encode(asked, add_special=False)[:-over]
            if not kept:
                raise DataError(f"its text has {len(ids)} tokens, more than the {self.reader.context} that are read")
            ids = self.reader.asked(self.model.tokenizer.decode(kept))
        return ids

    def answers(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the model writes for each row."""
        return answered(self.model, [self.prompt(row) for row in rows], self.how, self.longest)
