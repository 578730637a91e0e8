"""Statistics of a text: documents, their lengths, duplicates; and a histogram for the terminal."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from stemma.data.documents import Source
from stemma.data.duplicates import key
from stemma.data.encoding import TextEncoder, flat
from stemma.data.shards import BATCH
from stemma.data.sources import read
from stemma.data.steps import Exact

EIGHTHS = " ▏▎▍▌▋▊▉"


def survey(source: Source | str, tokenizer: TextEncoder | None = None) -> dict[str, Any]:
    """Documents, bytes, characters and (with a tokenizer) tokens of a source; `duplicates`: documents with the words of
    an earlier one, and their bytes; `languages`, if the source names them; `lengths`: quartiles, extremes and counts by
    powers of two (`[at least, below, documents]`), in tokens with a tokenizer, else in bytes;
    `passed_over`: `[why, where]`."""
    source = read(source) if isinstance(source, str) else source
    of, seen = key(Exact()), set[bytes]()
    sizes, tokens = array("q"), array("q")
    characters = again = again_bytes = 0
    languages: Counter[str] = Counter()
    held: list[str] = []
    waiting = 0

    def count() -> None:
        nonlocal waiting
        if tokenizer is not None and held:
            tokens.extend(flat(tokenizer, held)[2].tolist())
        held.clear()
        waiting = 0

    for document in source.documents():
        size = len(document.text.encode("utf-8", "surrogatepass"))
        sizes.append(size)
        characters += len(document.text)
        hashed = of(document.text)
        if hashed in seen:
            again += 1
            again_bytes += size
        seen.add(hashed)
        if language := getattr(document, "language", ""):
            languages[language] += 1
        if tokenizer is not None:
            held.append(document.text)
            waiting += size
            if waiting >= BATCH:
                count()
    count()
    found: dict[str, Any] = {"source": source.name, "licence": source.licence, "documents": len(sizes)}
    found |= {"bytes": int(sum(sizes)), "characters": characters}
    found["tokens"] = int(sum(tokens)) if tokenizer is not None else None
    found |= {"duplicates": again, "duplicate_bytes": again_bytes}
    found["languages"] = dict(languages.most_common()) or None
    found["lengths"] = lengths(np.asarray(tokens if tokenizer is not None else sizes, dtype=np.int64))
    found["lengths"]["unit"] = "tokens" if tokenizer is not None else "bytes"
    found["notes"] = list(source.notes)
    found["passed_over"] = [list(each) for each in source.notes.passed]
    return found


def lengths(values: Any) -> dict[str, Any]:
    """Quartiles of the lengths of documents, and counts by powers of two."""
    quartiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 0.99, 1], method="lower").tolist()
    exponents = np.frexp(np.maximum(values, 1).astype(np.float64))[1] - 1  # floor of the binary logarithm
    low, high = int(exponents.min()), int(exponents.max())
    counts = np.bincount(exponents - low, minlength=high - low + 1).tolist()
    bins = [[2**e if e else 0, 2 ** (e + 1), n] for e, n in zip(range(low, high + 1), counts, strict=True)]
    return dict(zip(("least", "q1", "median", "q3", "p99", "most"), quartiles, strict=True)) | {"bins": bins}


def amount(n: int) -> str:
    """A power of two in short: 512, 4K, 2M."""
    for power, letter in ((30, "G"), (20, "M"), (10, "K")):
        if n >= 1 << power:
            return f"{n >> power}{letter}"
    return str(n)


def histogram(bins: Sequence[Sequence[int]], width: int = 80, blocks: bool = True) -> list[str]:
    """A line for each bin, of at most `width` columns. With `blocks`, bars are exact to an eighth of a column."""
    rows = [(f"{amount(low)}-{amount(high)}", f"{n:,}", n) for low, high, n in bins]
    first, second = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    room, most = max(8, width - first - second - 4), max(n for *_, n in rows)
    lines = []
    for name, number, n in rows:
        eighths = round(8 * room * n / most)
        bar = "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip() if blocks else "#" * ((eighths + 4) // 8)
        if n and not bar:
            bar = EIGHTHS[1] if blocks else "."
        lines.append(f"{name:>{first}}  {number:>{second}}  {bar}".rstrip())
    return lines
