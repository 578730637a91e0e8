"""What a model that was tuned to conversations answers to rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stemma.conversations import prompt_ids, shapes, writer
from stemma.declare.tasks import ChatTask
from stemma.errors import DataError, UsageError
from stemma.nn.model import Model
from stemma.tasks.hard import prompted
from stemma.tuning.decoding import Decoding, answered, room

LONGEST = 512  # tokens of an answer, where the model can write more


class Answering:
    """Answers the last question of conversations, each in the prompt of its task and written by the template. A row may
    lack the answer."""

    def __init__(self, model: Model, task: ChatTask, how: Decoding) -> None:
        if model.arch.structure == "encoder":
            raise UsageError(f"{model.name} is an encoder, which writes no answers")
        self.model, self.task, self.how = model, task, how
        self.writer = writer(model.tokenizer, task.template or None, task.feedback)
        whole, both = room(model), model.arch.structure == "encoder-decoder"
        self.longest = min(how.tokens or LONGEST, whole if both else whole // 2)
        self.room = whole - (0 if both else self.longest)

    def prompt(self, row: Mapping[str, Any]) -> list[int]:
        """What the model reads of a row. Raises DataError for a row without a question, and one that is too long."""
        talk = prompted(shapes.question(row), self.task.prompts, row.get("task"))
        ids = prompt_ids(self.model.tokenizer, self.writer.prompt(talk.turns))
        if len(ids) > self.room:
            raise DataError(f"its prompt has {len(ids)} tokens, more than the {self.room} in front of an answer")
        return ids

    def answers(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the model answers to each row."""
        prompts = [self.prompt(row) for row in rows]
        return answered(self.model, prompts, self.how, self.longest, self.writer.stops())
