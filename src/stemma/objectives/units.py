"""Which places of a text are masked together: tokens, words, n-grams of words, runs of random length."""

from __future__ import annotations

import re
import string
import unicodedata
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stemma.declare import objectives as declared
from stemma.errors import UsageError
from stemma.objectives import base

SPACES = "▁↵⇥␍"  # how `Tokenizer.tokens` shows white space


class Choice(NamedTuple):
    """Chosen `places`. `draws`: the index of the random draw that decides how each is replaced, where several share
    one."""

    places: base.Ints
    draws: base.Ints | None = None


def _mark(piece: str) -> bool:
    """Whether a piece is one punctuation mark, which is a word of its own."""
    return len(piece) == 1 and (piece in string.punctuation or unicodedata.category(piece)[0] == "P")


# Ranges of scripts that are written without spaces between words: Thai, Lao, Tibetan; Burmese; Khmer; Chinese and
# Japanese, with their punctuation, compatible and wide forms.
_UNSPACED = (
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3000, 0x9FFF), (0xF900, 0xFAFF), (0xFF00, 0xFFEF),
    (0x20000, 0x3FFFF),
)  # fmt: skip


def _unspaced(piece: str) -> bool:
    """Whether a piece of a byte-level vocabulary begins with a character of a script without spaces, or with the first
    bytes of one (`<0xE3><0x81>`)."""
    if not (raw := bytes.fromhex("".join(re.findall(r"<0x([0-9A-F]{2})>", piece)))):
        return any(a <= ord(piece[0]) <= b for a, b in _UNSPACED) if piece else False
    size = 4 if raw[0] >= 0xF0 else 3
    if not 0xE0 <= raw[0] <= 0xF4 or (len(raw) == 1 and not 0xE3 <= raw[0] <= 0xE9):
        return False  # another script, the inside of a character, or too little to tell
    low, high = (int.from_bytes((raw + fill * size)[:size]) for fill in (b"\x80", b"\xbf"))
    return any(_utf8(a) <= low and high <= _utf8(b) for a, b in _UNSPACED)


def _utf8(code: int) -> int:
    return int.from_bytes(chr(code).encode())


class Vocabulary:
    """Where words begin, by the pieces of a tokenizer: `begins` and `ends` (V) tell which start a word and after which
    a new one starts.

    A word goes on with `##` in WordPiece and to `</w>` in GPT-1's BPE; elsewhere it begins with the space before it. A
    lone punctuation mark is a word. Scripts without spaces would be one word; in SentencePiece vocabularies every piece
    that holds anything but ASCII letters and punctuation begins one, as in ALBERT's released code, and in byte-level
    ones every piece that begins with a character of such a script.
    """

    def __init__(self, tokenizer: Any) -> None:
        pieces = tokenizer.tokens(range(tokenizer.vocab_size))
        self.ends: NDArray[np.bool_] = np.zeros(len(pieces), dtype=bool)
        match tokenizer.kind:
            case "wordpiece":
                begins = [not p.startswith("##") for p in pieces]
            case "gpt-bpe":
                self.ends = np.array([p.endswith("</w>") for p in pieces])
                begins = [_mark(p.removesuffix("</w>")) for p in pieces]
            case "bpe":
                begins = [p[:1] in SPACES or _mark(p) or _unspaced(p) for p in pieces]
            case "unigram" | "spm-bpe":
                plain = set(string.ascii_letters + string.punctuation)
                begins = [p[:1] in f"{SPACES}<" or _mark(p) or not plain.issuperset(p) for p in pieces]
            case kind:
                raise UsageError(
                    f"where words begin is not known of a tokenizer of kind {kind!r}; set objective.unit=Tokens"
                )
        self.begins: NDArray[np.bool_] = np.array(begins)

    def words(self, tokens: base.Ints, free: base.Ints) -> list[base.Ints]:
        """The places `free` (in order) of `tokens` by words; a word begins after every place that is not free."""
        if not len(free):
            return []
        new = self.begins[tokens[free]]
        new[0] = True
        new[1:] |= (np.diff(free) > 1) | self.ends[tokens[free[:-1]]]
        return np.split(free, np.flatnonzero(new)[1:])


class Chooser:
    """Chooses about `n` places of a text, by a unit."""

    def __init__(self, unit: Any, rate: float, tokenizer: Any) -> None:
        self.unit, self.rate = unit, rate
        self.vocabulary = None if isinstance(unit, declared.Tokens) else Vocabulary(tokenizer)

    def __call__(self, tokens: base.Ints, free: base.Ints, n: int, rng: np.random.Generator) -> Choice:
        """`free`: the places of `tokens` that may be chosen, in order."""
        if self.vocabulary is None:
            return Choice(rng.permutation(free)[:n])
        words = self.vocabulary.words(tokens, free)
        match self.unit:
            case declared.Words():
                return Choice(_joined(_words(words, n, rng)))
            case declared.NGrams(longest=longest, drawn="anywhere"):
                return Choice(_joined(_ngrams(words, longest, n, rng)))
            case declared.NGrams(longest=longest):
                return Choice(_joined(_windows(words, longest, self.rate, n, rng)))
            case declared.Runs(p=p, longest=longest):
                runs = _runs(words, p, longest, n, rng)
                return Choice(_joined(runs), np.repeat(np.arange(len(runs)), [len(r) for r in runs]))
        raise AssertionError(self.unit)


def _joined(parts: list[base.Ints]) -> base.Ints:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def _words(words: list[base.Ints], n: int, rng: np.random.Generator) -> list[base.Ints]:
    """Words in random order; one that would exceed `n` places is passed over (BERT, create_pretraining_data.py)."""
    chosen: list[base.Ints] = []
    left = n
    for k in rng.permutation(len(words)):
        if left == 0:
            break
        if len(words[k]) <= left:
            chosen.append(words[k])
            left -= len(words[k])
    return chosen


def _chances(longest: int) -> NDArray[np.float64]:
    """1 .. `longest` with chances proportional to 1/n, cumulated, not normalised."""
    return np.cumsum(1.0 / np.arange(1, longest + 1))


def _ngrams(words: list[base.Ints], longest: int, n: int, rng: np.random.Generator) -> list[base.Ints]:
    """N-grams from random words on. One that would exceed `n` places is made shorter, and passed over if a word of it
    is chosen already (ALBERT, create_pretraining_data.py)."""
    chances = _chances(longest)
    order, u = rng.permutation(len(words)), rng.random(len(words))
    taken = np.zeros(len(words), dtype=bool)
    chosen: list[base.Ints] = []
    left = n
    for k in order:
        if left == 0:
            break
        most = min(longest, len(words) - k)  # fewer words are left at the end of the text
        size = int(np.searchsorted(chances[:most], u[k] * chances[most - 1], side="right")) + 1
        while size and sum(map(len, words[k : k + size])) > left:
            size -= 1
        if size == 0 or taken[k : k + size].any():
            continue
        taken[k : k + size] = True
        chosen += words[k : k + size]
        left -= sum(map(len, words[k : k + size]))
    return chosen


def _windows(words: list[base.Ints], longest: int, rate: float, n: int, rng: np.random.Generator) -> list[base.Ints]:
    """An n-gram in each window of n * int(1/rate) words from the front on, until `n` places are chosen, the last word
    whole; the end of a text is therefore chosen a little less often (DeBERTa, mlm_task.py)."""
    chances, room = _chances(longest), int(1 / rate)
    chosen: list[base.Ints] = []
    at = count = 0
    while at < len(words):
        size = int(np.searchsorted(chances, rng.random() * chances[-1], side="right")) + 1
        window = min(size * room, len(words) - at)
        start = at + int(rng.integers(window))
        for word in words[start : start + size]:
            if count >= n:
                return chosen
            chosen.append(word)
            count += len(word)
        at = max(at + window, min(start + size, len(words)))
    return chosen


def _runs(words: list[base.Ints], p: float, longest: int, n: int, rng: np.random.Generator) -> list[base.Ints]:
    """Runs of words from the word of a random place on, until exactly `n` places are chosen (the last run is cut off);
    runs that meet on a place are one (SpanBERT, span masking)."""
    owner = np.repeat(np.arange(len(words)), [len(w) for w in words])
    places = _joined(words)
    chances = np.cumsum((1 - p) ** np.arange(longest))
    run = np.full(len(places), -1)
    starts = np.concatenate([[0], np.cumsum([len(w) for w in words])])
    left = n
    for number, anchor in enumerate(rng.permutation(len(places))):
        if left <= 0:
            break
        if run[anchor] >= 0:
            continue
        size = int(np.searchsorted(chances, rng.random() * chances[-1], side="right")) + 1
        first = owner[anchor]
        for i in range(starts[first], starts[min(first + size, len(words))]):
            if run[i] >= 0:  # met another: both are one
                run[run == run[i]] = number
            elif left > 0:
                run[i] = number
                left -= 1
    return [places[run == k] for k in np.unique(run[run >= 0])]
