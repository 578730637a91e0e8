"""Log-probabilities of tokens as OpenAI's routes show them. They are the model's own, before rules and temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stemma.decoding import Event
from stemma.text.tokenizer import Tokenizer

Top = Sequence[tuple[int, float]]


def named(tokenizer: Tokenizer, token: int) -> tuple[str, list[int] | None]:
    """A token's text and its bytes; the name of one that stands for no text."""
    known = tokenizer.token_bytes
    raw = known[token] if token < len(known) else None
    if raw is None:
        return tokenizer.token(token) or "", None
    return raw.decode("utf-8", "replace"), list(raw)


def of_chat(tokenizer: Tokenizer, one: Event) -> dict[str, Any]:
    """Of a token of a conversation."""
    return _shown(tokenizer, one.token, one.logprob) | {
        "top_logprobs": [_shown(tokenizer, token, number) for token, number in one.top]
    }


def _shown(tokenizer: Tokenizer, token: int, number: float) -> dict[str, Any]:
    text, raw = named(tokenizer, token)
    return {"token": text, "logprob": max(number, -9999.0), "bytes": raw}


class OfText:
    """Of the tokens of a text, with where each begins in it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.tokens: list[str] = []
        self.numbers: list[float | None] = []
        self.tops: list[dict[str, float] | None] = []
        self.offsets: list[int] = []
        self.length = 0

    def add(self, token: int, number: float | None, top: Top | None) -> None:
        """One more token; those that begin a text have no number."""
        text, _ = named(self.tokenizer, token)
        self.tokens.append(text)
        self.numbers.append(None if number is None else max(number, -9999.0))
        shown: dict[str, float] = {}
        for other, value in top or ():
            shown.setdefault(named(self.tokenizer, other)[0], max(value, -9999.0))
        self.tops.append(None if top is None or number is None else shown)
        self.offsets.append(self.length)
        self.length += len(text)

    def taken(self) -> dict[str, Any]:
        """What was added since the last time."""
        found = {
            "tokens": self.tokens, "token_logprobs": self.numbers, "top_logprobs": self.tops,
            "text_offset": self.offsets,
        }  # fmt: skip
        self.tokens, self.numbers, self.tops, self.offsets = [], [], [], []
        return found
