"""Baselines in bits per byte: a unigram model of the tokens, and xz."""

from __future__ import annotations

import lzma
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from stemma.data.store import View
from stemma.errors import DataError

CAP = 4_000_000  # bytes given to xz at most
_SLICE = 4096  # documents counted at a time


def _counts(view: View, vocab: int) -> npt.NDArray[np.int64]:
    """int64[vocab]: how often each id occurs."""
    out = np.zeros(vocab, dtype=np.int64)
    for begin in range(0, len(view), _SLICE):
        ids = np.concatenate([view[i] for i in range(begin, min(begin + _SLICE, len(view)))])
        if len(ids) and ids.max() >= vocab:
            raise DataError(f"the text has token id {int(ids.max())}, outside the vocabulary of {vocab}")
        out += np.bincount(ids, minlength=vocab)
    return out


def unigram_bits_per_byte(train: View, val: View, vocab: int | None = None, *, ends: bool = False) -> float:
    """Bits per byte of `val` under a unigram model of the tokens of `train` with add-one smoothing over `vocab` ids
    (default: the tokenizer's). With `ends`, each document's end is one more token type, as for a model that predicts
    ends. Raises DataError without text."""
    size = train.vocab if vocab is None else vocab
    seen, asked = _counts(train, size), _counts(val, size)
    if ends:
        seen, asked = np.append(seen, train.ends), np.append(asked, val.ends)
    if not val.bytes_total:
        raise DataError("there is no held-out text to measure")
    logs = np.log2((seen + 1.0) / (seen.sum() + len(seen)))
    return float(-(asked * logs).sum() / val.bytes_total)


def _xz(raw: bytes) -> int:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    return len(lzma.compress(raw, format=lzma.FORMAT_RAW, filters=filters))


def _texts(view: View, cap: int) -> bytes:
    """The first `cap` bytes of the texts of a view, each followed by a line end."""

    def walk() -> Iterator[bytes]:
        size = 0
        for i in range(len(view)):
            raw = view.text(i).encode("utf-8") + b"\n"
            yield raw
            size += len(raw)
            if size >= cap:
                return

    return b"".join(walk())[:cap]


def xz_bits_per_byte(val: View | bytes | str, train: View | bytes | str | None = None, *, cap: int = CAP) -> float:
    """Bits per byte of `val` under xz at its strongest (LZMA2, preset 9 extreme, no header). With `train`: the bits
    that `val` adds after `train`. Both are cut at `cap` bytes. Raises DataError without text."""

    def raw(of: View | bytes | str) -> bytes:
        if isinstance(of, View):
            return _texts(of, cap)
        return (of.encode("utf-8") if isinstance(of, str) else of)[:cap]

    text = raw(val)
    if not text.strip():
        raise DataError("there is no held-out text to measure")
    before = raw(train) if train is not None else b""
    return 8 * (_xz(before + text) - (_xz(before) if before else 0)) / len(text)
