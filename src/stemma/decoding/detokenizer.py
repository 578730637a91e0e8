"""Text of token ids that are still being written."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stemma.decoding.inputs import answers
from stemma.errors import UsageError
from stemma.nn.model import Model

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
CONTEXT = 4  # tokens of the prompt that are decoded with the new ones


class Detokenizer:
    """Turns growing token ids into text, piece by piece. A piece ends with a whole character, and before anything that
    may become a stop string.

    The new ids are decoded behind the last ids of the prompt: SentencePiece drops the space before the first token of
    a text, and the first new token is not the first of its text."""

    def __init__(self, model: Model, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        if model.tokenizer is None:
            raise UsageError("streaming needs a tokenizer, and this model came without one")
        self.tokenizer, self.stops = model.tokenizer, stops
        self.before = [] if answers(model) else list(prompt[-CONTEXT:])
        self.skip = len(self.tokenizer.decode(self.before))
        self.text = ""
        self.given = 0  # characters of `text` that were handed out

    def decode(self, ids: Sequence[int]) -> str:
        """The text of new ids."""
        return self.tokenizer.decode([*self.before, *ids])[self.skip :]

    def add(self, ids: Sequence[int], last: bool) -> tuple[str, bool]:
        """The next piece, and whether a stop string ended the text. `ids`: all new ids so far; `last`: no more come."""
        text = self.decode(ids)
        cut = min((at for s in self.stops if (at := text.find(s)) >= 0), default=-1)
        if cut >= 0:
            self.text = text[:cut]
            piece, self.given = self.text[self.given :], cut
            return piece, True
        self.text = text
        sure = len(text) if last else min(len(text) - self._doubtful(text), self._settled(ids, text))
        piece = text[self.given : sure]
        self.given = max(self.given, sure)
        return piece, False

    def _settled(self, ids: Sequence[int], text: str) -> int:
        """How many characters no further token changes: not those of bytes at the end. A decoder that falls back to
        bytes makes a whole run of them unknown when the next one fits to none of its characters."""
        end = len(ids)
        while end and BYTE.fullmatch(self.tokenizer.token(ids[end - 1]) or ""):
            end -= 1
        return len(text) if end == len(ids) else len(self.decode(ids[:end]))

    def _doubtful(self, text: str) -> int:
        """How many characters at the end may still change, or become a stop string."""
        whole = text.rstrip("\ufffd")  # a character cut in two decodes as U+FFFD
        held = [n for s in self.stops for n in range(1, len(s)) if whole.endswith(s[:n])]
        return len(text) - len(whole) + max([0, *held])
