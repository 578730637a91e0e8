"""What turning text into tokens needs to know: what a tokenizer gives, and where sentences begin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

_SENTENCE = re.compile(r"[.!?]+[\"')\]’”]*\s+|\n\s*")


class Encoder(Protocol):
    """What a store needs of a tokenizer: `stemma.text.Tokenizer` has it."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def encode_spans(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]: ...


def sentences(text: str) -> list[int]:
    """Characters where the sentences of `text` begin: 0, and each that is not white space and follows a line end, or a
    full stop, question or exclamation mark (with closing quotes or brackets) and white space."""
    begin = len(text) - len(text.lstrip())
    return [0, *(m.end() for m in _SENTENCE.finditer(text, begin) if m.end() < len(text))]
