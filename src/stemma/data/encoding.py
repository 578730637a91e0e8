"""Encoding text: the interface of a tokenizer, and where sentences begin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

_SENTENCE = re.compile(r"[.!?]+[\"')\]’”]*\s+|\n\s*")


class Encoder(Protocol):
    """The part of `stemma.text.Tokenizer` that a store uses."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def encode_spans(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]: ...


def sentences(text: str) -> list[int]:
    """The positions of the characters that begin a sentence: 0, and each non-space character after a line end, or after
    `.`, `?` or `!` (with closing quotes or brackets) and white space."""
    begin = len(text) - len(text.lstrip())
    return [0, *(m.end() for m in _SENTENCE.finditer(text, begin) if m.end() < len(text))]
