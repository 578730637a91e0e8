"""Rules that a text obeys whatever the model says: forced first and last tokens, a least length, penalties on
repetition, forbidden tokens and words. Each row of a batch has its own."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stemma.decoding.sampling import Early
from stemma.errors import UsageError
from stemma.spec import require

LENGTH = 32  # max_new_tokens where neither call nor checkpoint says


@dataclass(frozen=True)
class Rules:
    """`length`: the most new tokens; `eos`: tokens that end a text; `least`: new tokens before an end, and
    `least_whole`: tokens of prompt (or start token) and text before an end; `penalty`: on tokens that the row holds
    (1: none); `ngram`: no run of so many tokens occurs twice (0: off); `first`, `last`: one of these tokens is forced
    at the first place, and at the last; `banned`: tokens that never occur; `banned_first`: not at the first free place;
    `words`: runs of tokens that never occur."""

    length: int = LENGTH
    eos: tuple[int, ...] = ()
    least: int = 0
    least_whole: int = 0
    penalty: float = 1.0
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
        require(self.penalty > 0, f"repetition_penalty must be positive, not {self.penalty}")

    @property
    def free(self) -> bool:
        """Whether no rule changes a score."""
        return self == Rules(self.length, self.eos)

    def apply(self, scores: Tensor, ids: Sequence[int], new: int) -> None:
        """Change the scores (V) of a row's next token in place; -inf: an excluded token. `ids`: the row's tokens so
        far, of which `new` are new."""
        if self.penalty != 1.0:
            penalise(scores, ids, self.penalty)
        if self.ngram and (banned := repeated(ids, self.ngram)):
            scores[banned] = -math.inf
        if self.words and (banned := completing(ids, self.words, self.eos)):
            scores[banned] = -math.inf
        if self.eos and (new < self.least or len(ids) < self.least_whole):
            scores[list(self.eos)] = -math.inf
        for forced, now in ((self.first, new == 0), (self.last, new == self.length - 1)):
            if forced and now:
                scores.fill_(-math.inf)
                scores[list(forced)] = 0.0
        if self.banned:
            scores[list(self.banned)] = -math.inf
        if self.banned_first and new == (1 if self.first else 0):
            scores[list(self.banned_first)] = -math.inf


def constrained(scores: Tensor, rows: Sequence[tuple[Rules, Sequence[int], int]]) -> Tensor:
    """Scores (B V) after the rules of each row: (its rules, its tokens so far, how many of them are new). Raises
    UsageError where every token of a row is excluded."""
    bound = [(i, row) for i, row in enumerate(rows) if not row[0].free]
    if not bound:
        return scores
    scores = scores.clone()
    for i, (rules, ids, new) in bound:
        rules.apply(scores[i], ids, new)
    if not bool((scores > -math.inf).any(1).all()):
        raise UsageError(
            "no token is left that may follow: min_new_tokens, no_repeat_ngram_size or the checkpoint's "
            "suppress_tokens and bad_words_ids ask too much"
        )
    return scores


def penalise(scores: Tensor, ids: Sequence[int], penalty: float) -> None:
    """Divide positive scores (V) of `ids` by `penalty`, multiply negative ones by it, in place."""
    at = torch.tensor(sorted(set(ids)), dtype=torch.int64, device=scores.device)
    scores[at] = torch.where(scores[at] > 0, scores[at] / penalty, scores[at] * penalty)


def repeated(ids: Sequence[int], n: int) -> list[int]:
    """The tokens that would end a run of `n` tokens which `ids` hold already."""
    if len(ids) < n:
        return []
    tail = tuple(ids[len(ids) - n + 1 :])
    return [ids[i + n - 1] for i in range(len(ids) - n + 1) if tuple(ids[i : i + n - 1]) == tail]


def completing(ids: Sequence[int], words: Sequence[Sequence[int]], eos: Collection[int]) -> list[int]:
    """The tokens that would complete one of `words`. A word that is one end token does not count: a text may end."""
    return [
        word[-1]
        for word in words
        if tuple(ids[len(ids) - len(word) + 1 :]) == tuple(word[:-1]) and not (len(word) == 1 and word[0] in eos)
    ]


@dataclass(frozen=True)
class BeamRules:
    """`width` beams; hypotheses are ranked by log-probability / length ** `penalty`. `early`: whether a search ends
    with the first `width` finished ones (True), goes on while a running one ranks higher at its length (False) or at
    any length ("never")."""

    width: int = 1
    penalty: float = 1.0
    early: Early = False

    def __post_init__(self) -> None:
        require(
            self.early in (True, False, "never"), f"early_stopping must be true, false or 'never', not {self.early!r}"
        )
