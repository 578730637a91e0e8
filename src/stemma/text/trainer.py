"""Training: each kind's published procedure, made deterministic."""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from stemma.errors import DataError, UsageError
from stemma.text import corpus, kinds, legacy, spm
from stemma.text.specials import Specials

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORD = 1000  # letters or marks in a row: longer words are cut for training, whose time grows with their square
_LONG = re.compile(rf"(?<!\w)\w{{{WORD + 1},}}|(?<![^\w\s])[^\w\s]{{{WORD + 1},}}")
ALPHABET = 1000  # characters that a WordPiece or word-BPE vocabulary keeps, and a quarter of its entries, at most


class Alphabet(NamedTuple):
    """The characters `kept` of those `seen` in a text, and the `lost` share of the text's characters."""

    kept: int
    seen: int
    lost: float


def train(
    kind: str, texts: Iterable[str], size: int, specials: Specials, lowercase: bool, alphabet: int | None = None
) -> tuple[Tokenizer, Alphabet | None]:
    """(a tokenizer of exactly `size` entries or as many as the text gives, its alphabet where that is limited).
    `alphabet`: characters that a WordPiece or word-BPE vocabulary keeps at most. Raises UsageError, DataError."""
    kinds.check(kind)
    names = specials.names(kinds.ORDER[kind])
    if kind in ("unigram", "spm-bpe") and specials.unk is None:
        names = ["<unk>", *names]
    room = size - specials.extra
    least = len(names) + (0 if kind in ("wordpiece", "gpt-bpe") else 256) + 1
    if room < least:
        raise UsageError(
            f"a {kind} vocabulary of {size} is too small: its special tokens and bytes need {size - room + least}"
        )
    if alphabet is not None and kind not in ("wordpiece", "gpt-bpe"):
        raise UsageError(f"a {kind} vocabulary has no limited alphabet; leave train.alphabet out")
    if kind not in ("unigram", "spm-bpe"):
        texts = map(cut, texts)
    known: Alphabet | None = None
    if kind == "bpe":
        out = _bytes(texts, room, names, specials)
    else:
        with corpus.repeatable(texts) as held:
            if kind in ("unigram", "spm-bpe"):
                out = spm.convert(spm.train(kind, held, room, names, specials))
            else:
                lower = lowercase or kind == "gpt-bpe"
                out, known = _words(kind, held, room, names, lower, specials.unk, alphabet)
    return legacy.finish(out, kind, specials), known


def cut(text: str) -> str:
    """A text with line ends in words of more than `WORD` letters or marks, such as pictures in base64; others are given
    back as they are."""
    half = WORD // 2  # a long word fills one of these pieces
    if all(len(text[i : i + half].split(None, 1)) > 1 for i in range(0, len(text) - half + 1, half)):
        return text
    return _LONG.sub(lambda word: "\n".join(word[0][i : i + WORD] for i in range(0, len(word[0]), WORD)), text)


def _some(texts: Iterable[str]) -> Iterator[str]:
    """The texts. Raises DataError if all are white space."""
    texts = iter(texts)
    blank: list[str] = []
    for text in texts:
        if text.strip():
            return itertools.chain(blank, [text], texts)
        blank.append(text)
    raise DataError("there is no text to train a tokenizer on")


def _bytes(texts: Iterable[str], size: int, names: list[str], specials: Specials) -> Tokenizer:
    """GPT-2's BPE. A single special token takes the last id (GPT-2), as does a mask (RoBERTa); others come first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    last = names if len(names) == 1 else [specials.mask] if specials.mask is not None else []
    first = [name for name in names if name not in last]
    out = Tokenizer(models.BPE())
    legacy.byte_level(out)
    out.train_from_iterator(
        _some(texts),
        trainers.BpeTrainer(
            vocab_size=size - len(last),
            min_frequency=1,
            show_progress=False,
            special_tokens=first,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    out.add_special_tokens(list(last))
    return out


def _alone(char: str) -> bool:
    """Whether BERT's splitting makes a word of this character by itself: punctuation and ideographs."""
    code = ord(char)
    ascii_mark = 33 <= code <= 126 and not char.isalnum()
    ideograph = any(
        a <= code <= b for a, b in ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
    )
    return ascii_mark or ideograph or unicodedata.category(char).startswith("P")


def _letters(counts: Counter[str], free: int, most: int | None) -> tuple[list[str], Alphabet]:
    """The most frequent characters, sorted, for a vocabulary with `free` entries beside its special tokens."""
    room = max(1, min(ALPHABET, free // 4) if most is None else min(most, free // 2))
    kept = sorted(sorted(counts, key=lambda c: (-counts[c], c))[:room])
    lost = 1 - sum(counts[c] for c in kept) / max(1, counts.total())
    return kept, Alphabet(len(kept), len(counts), lost)


def _words(
    kind: str, texts: Iterable[str], size: int, names: list[str], lower: bool, unk: str | None, most: int | None
) -> tuple[Tokenizer, Alphabet]:
    """WordPiece or GPT-1's BPE over words. The texts are walked twice.

    The library numbers the inner (`##x`) and final (`x</w>`) characters in the order of a hash table, which differs
    from run to run. Here they are listed first, sorted, so that all ids and all ties are settled."""
    from tokenizers import Tokenizer, models, trainers

    def empty(vocab: dict[str, int] | None = None, merges: Any = None) -> Tokenizer:
        if kind == "wordpiece":
            out = Tokenizer(models.WordPiece(vocab or {}, unk_token=unk or "[UNK]", max_input_chars_per_word=100))
            legacy.wordpiece(out, lower=lower)
        else:
            out = Tokenizer(models.BPE(vocab, merges, unk_token=unk, end_of_word_suffix="</w>"))
            legacy.gpt(out)
        return out

    draft = empty()
    counts = corpus.characters(_some(texts), draft.normalizer.normalize_str)
    for char in [c for c in counts if c.isspace()]:
        del counts[char]
    alphabet, known = _letters(counts, size - len(names), most)
    mark = "##{}" if kind == "wordpiece" else "{}</w>"
    inner = [mark.format(c) for c in alphabet if kind == "gpt-bpe" or not _alone(c)]
    options: dict[str, Any] = {"end_of_word_suffix": "</w>"} if kind == "gpt-bpe" else {}
    trainer = (trainers.WordPieceTrainer if kind == "wordpiece" else trainers.BpeTrainer)(
        vocab_size=size,
        min_frequency=1,
        show_progress=False,
        special_tokens=[*names, *inner],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        **options,
    )
    draft.train_from_iterator(iter(texts), trainer)
    # The draft takes the inner characters for special tokens, so the tokenizer is made afresh from what it learned.
    learned = json.loads(draft.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned.get("merges", [])]
    return empty(learned["vocab"], merges), known
