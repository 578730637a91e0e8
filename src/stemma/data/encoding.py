"""Encoding text: the interface of a tokenizer, and where sentences begin."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

# Marks that end a sentence whatever follows: Chinese and Japanese, Arabic, Indic, Tibetan, Burmese, Khmer, Ethiopic,
# Armenian, Syriac.
_ENDS = "。！？｡؟۔।॥།༎။។៕።፧։܀܁܂"
_SENTENCE = re.compile(
    rf"(?<![.!?{_ENDS}])[.!?{_ENDS}]*[{_ENDS}][.!?{_ENDS}]*[\"')\]’”」』）】》〉］｣»]*\s*"
    r"|(?<![.!?])[.!?]+[\"')\]’”]*\s+"
    r"|\n\s*"
)
# the same for a text without the marks of `_ENDS`, ten times as fast: each match begins with a character that is sought
_LATIN = re.compile(r"[.!?\n](?:(?<=\n)\s*|(?<=[.!?])(?<![.!?][.!?])[.!?]*+[\"')\]’”]*\s+)")
_ANY_END = re.compile(f"[{_ENDS}]")


class TextEncoder(Protocol):
    """The part of `stemma.text.Tokenizer` that a store uses. It may have `encode_flat`, too, which is faster."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def encode_spans(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]: ...


@runtime_checkable
class RowEncoder(Protocol):
    """What a store of rows (`field=*`) uses in place of a tokenizer. Of each row it gives the ids, and marks: places in
    them, ascending from 0, which stand where those of sentences do."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def encode_rows(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]: ...


Encoder = TextEncoder | RowEncoder


def flat(tokenizer: TextEncoder, texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], ...]:
    """`encode_spans` of many texts as arrays: the ids and the ends of all, and the number of tokens of each text."""
    own: Any = getattr(tokenizer, "encode_flat", None)
    if own is not None:
        return tuple(own(texts))
    rows = tokenizer.encode_spans(texts)
    counts = np.fromiter((len(ids) for ids, _ in rows), np.int64, len(rows))
    total = int(counts.sum())
    joined = [np.fromiter(itertools.chain.from_iterable(row[k] for row in rows), np.int64, total) for k in (0, 1)]
    return joined[0], joined[1], counts


def sentences(text: str) -> list[int]:
    """The positions of the characters that begin a sentence: 0, and each non-space character after a line end, after
    `.`, `?` or `!` and white space, or after a mark such as `。`, `؟` or `।`. Closing quotes and brackets belong to the
    sentence before."""
    begin = len(text) - len(text.lstrip())
    pattern = _LATIN if text.isascii() or not _ANY_END.search(text) else _SENTENCE
    return [0, *(end for m in pattern.finditer(text, begin) if (end := m.end()) < len(text))]
