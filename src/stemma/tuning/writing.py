"""What a model that was tuned to write writes for rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stemma.declare.tasks import WriteTask
from stemma.decoding import generate
from stemma.errors import DataError
from stemma.nn.model import Model
from stemma.tasks.base import text_of
from stemma.tasks.texts import WriteReader

LONGEST = 256  # tokens of a text that is written, where the model can write more
ROWS = 16  # that are answered together


class Written:
    """Answers the rows of a task `write` with a model. Texts are the likeliest word by word, unless `options` (of
    `stemma.generate`) say otherwise. `longest`: tokens of an answer."""

    def __init__(self, model: Model, task: WriteTask, longest: int = LONGEST, **options: Any) -> None:
        self.model, self.task, self.options = model, task, options
        room = model.dims.context
        self.longest = min(longest, room // 2)
        answers = 0 if model.arch.structure == "encoder-decoder" else self.longest
        self.reader = WriteReader(task, model.tokenizer, room - answers, model.arch.structure)

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

    def answers(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """What the model writes for each row."""
        options = {"temperature": 0.0, **self.options}
        found = generate(
            self.model, [self.prompt(row) for row in rows], max_new_tokens=self.longest, batch=ROWS, **options
        )
        return [(one.text or "").strip() for one in found]
