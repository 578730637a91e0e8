"""Encoding word by word: each different word goes to the library once, and a table gives the ids of the others.

A text is cut at single spaces between letters, digits or marks. Where the tokenizer cuts there too, whatever stands
around, the ids of a text are those of its words, one after another. `separate` says for which tokenizers this holds:
those with known steps only, each of which either cuts at such a space or treats both sides of it alike.
"""

from __future__ import annotations

import itertools
import json
import re
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stemma.text.ranks import LLAMA3

if TYPE_CHECKING:
    import tokenizers

# Letters and marks that no normalizer joins to a space beside them: no combining marks, nothing that is white space.
_BESIDE = (
    "!-~\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0391-\u03a1\u03a3-\u03c9\u0400-\u0481\u048a-\u0527\u05d0-\u05ea"
    "\u0621-\u063a\u0641-\u064a\u0905-\u0939\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u3001\u3002\u3041-\u3096"
    "\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3\uff01-\uff0f\uff1a-\uff20"
)
_CUT = re.compile(f" (?<=[{_BESIDE}] )(?=[{_BESIDE}])")
_BEGIN = re.compile(f"[ \n\t{_BESIDE}]|\\Z")
_INNER = re.compile(f"[{_BESIDE}]")
AHEAD = "a"  # what stands before a word that does not begin its text
TOGETHER = 128  # words read as one text
FIRST = "\n"  # before the key of a word that does: no other key begins with it
MOST = 1 << 18  # words in the table
TOKENS = 1 << 22  # and their tokens
NEW = 0.5  # share of characters in new words from which on the library reads the texts themselves

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = LLAMA3.replace("{1,3}", "")
_PATTERNS = (_GPT2, LLAMA3, _QWEN2)  # each of them begins a piece at a single space before what is none
_REPLACED = (({"String": " "}, "▁"), ({"Regex": " {2,}"}, " "), ({"Regex": " {2,}"}, "▁"), ({"Regex": "^ +| +$"}, ""))
_PLAIN = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip")


class Spans(NamedTuple):
    """Texts as ids: `ids` int64[tokens] of all texts, `ends` int64[tokens]: the character of its text where each one's
    piece ends, `counts` int64[texts]: the tokens of each."""

    ids: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


def spans(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Spans:
    """(ids, ends) of each text, as arrays."""
    counts = np.fromiter((len(ids) for ids, _ in rows), np.int64, len(rows))
    total = int(counts.sum())
    flat = [np.fromiter(itertools.chain.from_iterable(row[k] for row in rows), np.int64, total) for k in (0, 1)]
    return Spans(flat[0], flat[1], counts)


class Words:
    """The words of a tokenizer of a kind as far as they were met. `core` must be `separate`."""

    def __init__(self, core: tokenizers.Tokenizer, kind: str) -> None:
        self.core, self.kind = core, kind
        self.precompiled = '"Precompiled"' in core.to_str()
        self.ahead = len(core.encode(AHEAD, add_special_tokens=False))
        self._clear()

    def _clear(self) -> None:
        self.known: dict[str, int] = {}
        self.ids, self.ends = array("i"), array("i")
        self.begins, self.sizes = array("q", [0]), array("q")

    def __reduce__(self) -> tuple[type[Words], tuple[Any, ...]]:
        return Words, (self.core, self.kind)  # another process meets the words itself

    def encode(self, texts: Sequence[str]) -> Spans | None:
        """The ids of the texts; None if most of them is new, so that the library is as fast, or if it must read one."""
        if self.kind == "unigram" and any("<0x" in text for text in texts):
            return None  # `Tokenizer._ids` reads names of bytes
        if self.precompiled and not all(map(_BEGIN.match, texts)):
            return None  # the library counts wrongly after a character that it drops before all others
        if len(self.known) > MOST or len(self.ids) > TOKENS:
            self._clear()
        rows = [_CUT.split(text) for text in texts]
        for row in rows:
            row[0] = FIRST + row[0]
        words = list(itertools.chain.from_iterable(rows))
        found = list(map(self.known.get, words))
        if None in found:
            new = list(dict.fromkeys(word for word, number in zip(words, found, strict=True) if number is None))
            if sum(map(len, new)) > NEW * sum(map(len, texts)):
                return None
            self._learn(new)
            found = list(map(self.known.get, words))
        return self._gathered(np.array(found, dtype=np.int64), np.fromiter(map(len, rows), np.int64, len(rows)))

    def _learn(self, words: list[str]) -> None:
        """Put words into the table. Many are read as one text, but for those that begin or end their text."""
        inner = [word for word in words if _INNER.match(word, len(word) - 1) and not word.startswith(FIRST)]
        groups = [inner[at : at + TOGETHER] for at in range(0, len(inner), TOGETHER)]
        groups += [[word] for word in words if word.startswith(FIRST) or not _INNER.match(word, len(word) - 1)]
        asked = [group[0][1:] if group[0].startswith(FIRST) else " ".join([AHEAD, *group]) for group in groups]
        encodings = self.core.encode_batch(asked, add_special_tokens=False)
        for group, text, encoding in zip(groups, asked, encodings, strict=True):
            skip, before = (0, 0) if group[0].startswith(FIRST) else (self.ahead, len(AHEAD) + 1)
            ends = np.array([end for _, end in encoding.offsets[skip:]], dtype=np.int64)
            sizes = [len(text) - before] if len(group) == 1 else list(map(len, group))
            begins = before + np.cumsum([0, *sizes[:-1]]) + np.arange(len(sizes))
            last = np.searchsorted(np.maximum.accumulate(ends), begins[1:] - 1, side="right")
            counts = np.diff(np.concatenate(([0], last, [len(ends)])))
            self.known.update(zip(group, range(len(self.sizes), len(self.sizes) + len(group)), strict=True))
            self.begins.extend((len(self.ids) + np.cumsum(counts)).tolist())
            self.ids.extend(encoding.ids[skip:])
            self.ends.extend((ends - np.repeat(begins, counts)).tolist())
            self.sizes.extend(sizes)

    def _gathered(self, words: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Spans:
        """The tokens of `words`, the numbers of the words of all texts, of which each text has `counts`."""
        begins, sizes = np.frombuffer(self.begins, np.int64), np.frombuffer(self.sizes, np.int64)
        tokens = begins[words + 1] - begins[words]
        total = int(tokens.sum())
        before = np.cumsum(tokens) - tokens
        at = np.repeat(begins[words] - before, tokens) + np.arange(total)
        edges = np.concatenate(([0], np.cumsum(counts)))  # of texts, in words
        places = np.concatenate(([0], np.cumsum(sizes[words] + 1)))  # of words, in characters: each with its space
        places = places[:-1] - np.repeat(places[edges[:-1]], counts)
        ids = np.frombuffer(self.ids, np.int32)[at].astype(np.int64)
        ends = np.frombuffer(self.ends, np.int32)[at] + np.repeat(places, tokens)
        return Spans(ids, ends, np.diff(np.concatenate(([0], np.cumsum(tokens)))[edges]))


# ---------------------------------------------------------------- which tokenizers cut there


def table(core: tokenizers.Tokenizer, kind: str) -> Words | None:
    """A table for the words of `core`, if it is `separate`."""
    return Words(core, kind) if separate(core) else None


def separate(core: tokenizers.Tokenizer) -> bool:
    """Whether `core` gives a text the ids of its words (see the module)."""
    state = json.loads(core.to_str())
    if state.get("added_tokens") or not _model(state["model"]):
        return False
    normal, cutting = (
        _steps(state.get("normalizer"), "normalizers"),
        _steps(state.get("pre_tokenizer"), "pretokenizers"),
    )
    marked = any(step.get("pattern") == {"String": " "} for step in normal)  # spaces are `▁` when words are cut
    bert = any(step["type"] == "BertNormalizer" for step in normal)
    if bert and not any(step["type"] in ("BertPreTokenizer", "WhitespaceSplit", "Whitespace") for step in cutting):
        return False  # it puts spaces around ideographs
    if not all(_normal(step, core) for step in normal):
        return False
    if not cutting:
        return marked and _apart(state["model"])
    kinds = [_cuts(step, marked) for step in cutting]
    return None not in kinds and any(kinds)


def _steps(step: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [deep for part in step[inner] for deep in _steps(part, inner)]


def _model(model: Mapping[str, Any]) -> bool:
    """Whether a piece's ids depend on nothing but the piece."""
    return model.get("type") in ("WordPiece", "Unigram", "WordLevel") or (
        model.get("type") == "BPE" and not model.get("dropout")
    )


def _apart(model: Mapping[str, Any]) -> bool:
    """Whether no merge joins what ends a word to the space after it, so that words need not be cut before. The sums of
    a Unigram model are rounded by what stands before, so they are another matter."""
    vocab = model["vocab"]
    return model["type"] == "BPE" and "▁" in vocab and not any("▁" in text.lstrip("▁") for text in vocab)


def _normal(step: Mapping[str, Any], core: tokenizers.Tokenizer) -> bool:
    """Whether a normalizer changes what stands before such a space and after it without regard to the other side."""
    match step["type"]:
        case "Replace":
            return (step["pattern"], step["content"]) in _REPLACED
        case "Prepend":
            return bool(step["prepend"] == "▁")
        case "Precompiled":
            return _keeps(core)
        case kind:
            return kind in (*_PLAIN, "BertNormalizer")


def _keeps(core: tokenizers.Tokenizer) -> bool:
    """Whether no character beside a cut becomes white space or nothing."""
    for first, last in re.findall("(.)-(.)|.", _BESIDE):
        for code in range(ord(first), ord(last) + 1) if first else ():
            shown = core.normalizer.normalize_str(f"a{chr(code)}a")[:-1].partition("a")[2]
            if not shown or shown != shown.strip(" ▁"):
                return False
    return True


def _cuts(step: Mapping[str, Any], marked: bool) -> bool | None:
    """Whether a pre-tokenizer cuts at such a space, if it treats what stands before and after it separately; else
    None. `marked`: the space has become `▁`."""
    match step["type"]:
        case "ByteLevel":
            return bool(step.get("use_regex", True)) and not marked
        case "BertPreTokenizer" | "WhitespaceSplit" | "Whitespace":
            return not marked
        case "Metaspace":
            return bool(step.get("split", True)) if step["replacement"] == "▁" else None
        case "Digits":
            return False
        case "Punctuation":
            return False if step.get("behavior") in ("Isolated", "Contiguous", "Removed") else None
        case "Split" if step["behavior"] == "Isolated" and not step.get("invert"):
            pattern = step["pattern"].get("Regex")
            if pattern in _PATTERNS and not marked:
                return True
            return True if pattern == "▁*[^▁]+|▁+" and marked else None
    return None
