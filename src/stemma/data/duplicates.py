"""The steps on duplicates: a key for each text (a hash or a MinHash signature), and which keys repeat an earlier one.

The first of several duplicates stays. Memory: a hash a document for `exact`; a signature and its places in the bands of
the index for `near`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stemma.data.steps import Exact, Near
from stemma.errors import require

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SCHEME = "affine32"  # datasketch's kind of permutations: 32-bit numbers
_WORD = re.compile(r"\w+")


def normal(text: str) -> str:
    """The words of a text, NFKC and case-folded. Equal for texts that differ in case, punctuation and spaces only."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORD.findall(folded)) or " ".join(folded.split())


def key(step: Exact | Near) -> Callable[[str], bytes]:
    """The function from a text to its key: 16 bytes of hash for `Exact`, a MinHash signature for `Near`."""
    if isinstance(step, Exact):
        return lambda text: hashlib.blake2b(
            (normal(text) if step.normal else text).encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()
    import numpy as np

    minhash = library().MinHash
    blank = minhash(num_perm=step.permutations, seed=step.seed, scheme=_SCHEME)

    def signature(text: str) -> bytes:
        words = normal(text).split()
        n = min(step.words, len(words))
        shingles = list({" ".join(words[i : i + n]) for i in range(len(words) - n + 1)})
        own = blank.copy()
        for begin in range(0, len(shingles), 4096):  # the library allocates shingles x permutations
            own.update_batch([s.encode("utf-8", "surrogatepass") for s in shingles[begin : begin + 4096]])
        return np.asarray(own.hashvalues, dtype="<u4").tobytes()

    return signature


def judge(step: Exact | Near) -> Callable[[int, bytes], int | None]:
    """A function of (number, key), called in the order of the text. It returns the number of the earlier document that
    this one repeats; if there is none it remembers the key and returns None."""
    if isinstance(step, Exact):
        first: dict[bytes, int] = {}

        def same(number: int, hashed: bytes) -> int | None:
            held = first.setdefault(hashed, number)
            return None if held == number else held

        return same
    import numpy as np

    sketch = library()
    index = sketch.MinHashLSH(threshold=step.threshold, num_perm=step.permutations)
    held: dict[int, npt.NDArray[np.uint32]] = {}

    def alike(number: int, signature: bytes) -> int | None:
        values = np.frombuffer(signature, dtype="<u4")
        own = sketch.LeanMinHash(seed=step.seed, hashvalues=values, scheme=_SCHEME)
        for other in sorted(index.query(own)):
            if (held[other] == values).mean() >= step.threshold:
                return int(other)
        index.insert(number, own)
        held[number] = values
        return None

    return alike


def library() -> Any:
    """The package datasketch. Raises ResourceError without it."""
    require("datasketch", "the step `near`", "'stemma-lm[data]'")
    import datasketch

    return datasketch
