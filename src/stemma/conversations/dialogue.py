"""A dialogue with a model: what was said so far, and the ids that its next answer follows."""

from __future__ import annotations

from typing import Any

from stemma.conversations.shapes import Conversation, Turn
from stemma.conversations.targets import prompt_ids
from stemma.conversations.templates import Writer
from stemma.errors import DataError, UsageError


class Dialogue:
    """Turns of a user and an assistant, perhaps behind a system message. `room`: the most tokens of a prompt; the
    oldest rounds are left out of it where there are more."""

    def __init__(self, writer: Writer, tokenizer: Any, room: int, system: str = "") -> None:
        self.writer, self.tokenizer, self.room = writer, tokenizer, room
        self.system, self.turns = system, list[Turn]()
        self.left_out = 0  # rounds that the last prompt lacks

    @property
    def head(self) -> list[Turn]:
        """The system message, if there is one."""
        return [Turn("system", self.system)] if self.system else []

    @property
    def conversation(self) -> Conversation:
        """All that was said."""
        return Conversation((*self.head, *self.turns))

    def ask(self, words: str) -> list[int]:
        """The user says something. Returns the ids that the answer follows. Raises DataError if they do not fit, or if
        nothing was said; then it counts as not said."""
        if not words.strip():
            raise DataError("nothing was said")
        self.turns.append(Turn("user", words))
        try:
            return self.prompt()
        except DataError:
            self.turns.pop()
            raise

    def prompt(self) -> list[int]:
        """The ids that the next answer follows."""
        for begin in range(0, len(self.turns), 2):
            ids = prompt_ids(self.tokenizer, self.writer.prompt([*self.head, *self.turns[begin:]]))
            if len(ids) <= self.room:
                self.left_out = begin // 2
                return ids
        raise DataError(f"this has {len(ids):,} tokens, and {max(self.room, 0):,} fit in front of an answer")

    def answered(self, words: str) -> None:
        """The assistant said `words`."""
        self.turns.append(Turn("assistant", words))

    def undo(self) -> Turn:
        """Take the last round back. Returns what the user had said. Raises UsageError where nothing was said."""
        if not self.turns:
            raise UsageError("nothing was said yet")
        while self.turns[-1].role == "assistant":
            self.turns.pop()
        return self.turns.pop()
