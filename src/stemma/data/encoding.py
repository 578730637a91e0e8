"""Encoding text: the interface of a tokenizer, and where sentences begin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

# Marks that end a sentence whatever follows: Chinese and Japanese, Arabic, Indic, Tibetan, Burmese, Khmer, Ethiopic,
# Armenian, Syriac.
_ENDS = "。！？｡؟۔।॥།༎။។៕።፧։܀܁܂"
_SENTENCE = re.compile(
    rf"(?<![.!?{_ENDS}])[.!?{_ENDS}]*[{_ENDS}][.!?{_ENDS}]*[\"')\]’”」』）】》〉］｣»]*\s*"
    r"|(?<![.!?])[.!?]+[\"')\]’”]*\s+"
    r"|\n\s*"
)


class Encoder(Protocol):
    """The part of `stemma.text.Tokenizer` that a store uses."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def encode_spans(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]: ...


def sentences(text: str) -> list[int]:
    """The positions of the characters that begin a sentence: 0, and each non-space character after a line end, after
    `.`, `?` or `!` and white space, or after a mark such as `。`, `؟` or `।`. Closing quotes and brackets belong to the
    sentence before."""
    begin = len(text) - len(text.lstrip())
    return [0, *(m.end() for m in _SENTENCE.finditer(text, begin) if m.end() < len(text))]
