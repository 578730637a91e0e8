"""One answer of a conversation as it is written: words, calls of tools, log-probabilities, and why it ended."""

from __future__ import annotations

from typing import Any

from stemma.decoding import Event
from stemma.serve import logprobs
from stemma.serve.calls import Part, Reader, Words
from stemma.text.tokenizer import Tokenizer

FINISHED = {"eos": "stop", "stop": "stop", "length": "length"}


class Choice:
    """One answer. `reader` finds calls, where there are tools; `mark`: the id of the token before them, if it is one
    without a text; `told`: whether log-probabilities are shown."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        reader: Reader | None = None,
        mark: int | None = None,
        told: bool = False,
    ) -> None:
        self.index, self.tokenizer, self.reader, self.mark, self.told = index, tokenizer, reader, mark, told
        self.text, self.tokens = "", 0
        self.finish: str | None = None
        self.calls: list[dict[str, Any]] = []
        self.logprobs: list[dict[str, Any]] = []

    def take(self, one: Event) -> list[Part]:
        """What one more token adds."""
        if self.finish is not None:
            return []
        self.tokens += 1
        if self.told and one.reason != "eos":
            self.logprobs.append(logprobs.of_chat(self.tokenizer, one))
        last = one.reason is not None
        if self.reader is None:
            parts: list[Part] = [Words(one.text)] if one.text else []
        else:
            parts = self.reader.take(one.text, last, self.mark is not None and one.token == self.mark)
        for part in parts:
            self._add(part)
        full = self.reader is not None and self.reader.full
        if last or full:
            ended = FINISHED[one.reason or "stop"]
            self.finish = "tool_calls" if self.calls and (full or ended == "stop") else ended
        return parts

    def _add(self, part: Part) -> None:
        if isinstance(part, Words):
            self.text += part.text
        elif part.name is not None:
            function = {"name": part.name, "arguments": part.arguments}
            self.calls.append({"id": part.id, "type": "function", "function": function})
        else:
            self.calls[part.index]["function"]["arguments"] += part.arguments

    @property
    def whole(self) -> dict[str, Any]:
        """The answer when it is written."""
        content = self.text if self.text or not self.calls else None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.calls:
            message["tool_calls"] = self.calls
        told = {"content": self.logprobs, "refusal": None} if self.told else None
        return {"index": self.index, "message": message, "logprobs": told, "finish_reason": self.finish}


def delta(part: Part) -> dict[str, Any]:
    """A part of an answer as a stream has it."""
    if isinstance(part, Words):
        return {"content": part.text}
    call: dict[str, Any] = {"index": part.index}
    if part.name is not None:
        call |= {"id": part.id, "type": "function"}
    named = {} if part.name is None else {"name": part.name}
    return {"tool_calls": [call | {"function": named | {"arguments": part.arguments}}]}
