"""What a continuation must be, whatever the model says: its first and last token, its least length, no repetition, no
words that are forbidden. What a call leaves out is as the checkpoint has it (`decoding.habits`)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stemma.decoding import habits
from stemma.decoding.habits import Early
from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.spec import require

LENGTH = 32  # new tokens where neither call nor checkpoint says how many


@dataclass(frozen=True)
class Rules:
    """`length`: the most new tokens; `least`: the fewest before an end, and `least_whole` the fewest of prompt (or
    start token) and text together; `ngram`: no run of so many tokens occurs twice (0: all may); `first`, `last`: tokens
    of which one is forced as the first new one, and as the last where a text has not ended before; `banned` and
    `banned_first`: tokens that do not occur, or not as the first new one (or the one after a forced first one of an
    answer); `words`: runs of tokens that do not occur."""

    length: int = LENGTH
    least: int = 0
    least_whole: int = 0
    ngram: int = 0
    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    banned: tuple[int, ...] = ()
    banned_first: tuple[int, ...] = ()
    words: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        require(self.length >= 1, f"max_new_tokens must be a whole number of at least 1, not {self.length}")
        require(self.least >= 0, f"min_new_tokens must not be negative, not {self.least}")
        require(self.ngram >= 0, f"no_repeat_ngram_size must not be negative, not {self.ngram}")

    @property
    def free(self) -> bool:
        """Whether there is no rule."""
        return self == Rules(self.length)

    def apply(self, scores: Tensor, seen: Sequence[Sequence[int]], new: int, ends: Collection[int]) -> Tensor:
        """`scores` (B V), -inf where a token is out. `seen`: the ids that each row holds, of which `new` are new."""
        if self.free:
            return scores
        scores = scores.clone()
        for row, ids in zip(scores, seen, strict=True):
            if self.ngram and (banned := repeated(ids, self.ngram)):
                row[banned] = -math.inf
            if self.words and (banned := completing(ids, self.words, ends)):
                row[banned] = -math.inf
            if ends and (new < self.least or len(ids) < self.least_whole):
                row[list(ends)] = -math.inf
        for forced, now in ((self.first, new == 0), (self.last, new == self.length - 1)):
            if forced and now:
                scores = torch.full_like(scores, -math.inf)
                scores[:, list(forced)] = 0.0
        if self.banned:
            scores[:, list(self.banned)] = -math.inf
        if self.banned_first and new == (1 if self.first else 0):
            scores[:, list(self.banned_first)] = -math.inf
        if not bool((scores > -math.inf).any(1).all()):
            raise UsageError(
                "no token is left that may follow: min_new_tokens, no_repeat_ngram_size or the checkpoint's "
                "suppress_tokens and bad_words_ids ask too much"
            )
        return scores


def repeated(ids: Sequence[int], n: int) -> list[int]:
    """The tokens that would end a run of `n` tokens which `ids` hold already."""
    if len(ids) < n:
        return []
    tail = tuple(ids[len(ids) - n + 1 :])
    return [ids[i + n - 1] for i in range(len(ids) - n + 1) if tuple(ids[i : i + n - 1]) == tail]


def completing(ids: Sequence[int], words: Sequence[Sequence[int]], ends: Collection[int]) -> list[int]:
    """The tokens that would complete one of `words`. A word that is an end token alone is none: a text may end."""
    return [
        word[-1]
        for word in words
        if tuple(ids[len(ids) - len(word) + 1 :]) == tuple(word[:-1]) and not (len(word) == 1 and word[0] in ends)
    ]


@dataclass(frozen=True)
class Beams:
    """How hypotheses are ranked: by log-probability over length to the power of `penalty`. `early`: whether a search
    ends with the first full set of them, or goes on while a better one may be found (`"never"`: of any length)."""

    penalty: float = 1.0
    early: Early = False

    def __post_init__(self) -> None:
        require(
            self.early in (True, False, "never"), f"early_stopping must be true, false or 'never', not {self.early!r}"
        )


def rules(
    model: Model,
    *,
    max_new_tokens: int | None,
    min_new_tokens: int | None,
    no_repeat_ngram_size: int | None,
    forced_bos_token_id: int | str | None,
    forced_eos_token_id: int | str | None,
    ignore_eos: bool,
) -> Rules:
    """The rules of a call: what it gives, else what the checkpoint says."""
    whole = {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "no_repeat_ngram_size": no_repeat_ngram_size,
    }
    for name, number in whole.items():
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise UsageError(f"{name} must be a whole number, not {number!r}")
    vocab, answers = model.dims.vocab, model.encoder is not None
    return Rules(
        max_new_tokens if max_new_tokens is not None else habits.length(model) or LENGTH,
        least=habits.count(model, "min_new_tokens") if min_new_tokens is None else min_new_tokens,
        least_whole=habits.count(model, "min_length") if min_new_tokens is None else 0,
        ngram=habits.count(model, "no_repeat_ngram_size") if no_repeat_ngram_size is None else no_repeat_ngram_size,
        first=habits.tokens(model, "forced_bos_token_id", forced_bos_token_id, own=answers),
        last=habits.tokens(model, "forced_eos_token_id", forced_eos_token_id, own=not ignore_eos),
        banned=tuple(i for i in habits.ids(model, "suppress_tokens") if i < vocab),
        banned_first=tuple(i for i in habits.ids(model, "begin_suppress_tokens") if i < vocab),
        words=tuple(run for run in habits.runs(model, "bad_words_ids") if max(run) < vocab),
    )


def beams(model: Model, length_penalty: float | None, early_stopping: Early | None) -> Beams:
    """How a call ranks hypotheses: as it says, else as the checkpoint does."""
    penalty = habits.number(model, "length_penalty", 1.0) if length_penalty is None else length_penalty
    early = habits.habits(model).get("early_stopping") if early_stopping is None else early_stopping
    return Beams(float(penalty), False if early is None else early)
