"""Rules that a text obeys whatever the model says: forced first and last tokens, a least length, penalties on
repetition, forbidden tokens and words. Each row of a batch has its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stemma.decoding.sampling import Early
from stemma.errors import UsageError
from stemma.spec import require

MAX_NEW_TOKENS = 32  # where neither call nor checkpoint has a number


@dataclass(frozen=True)
class Rules:
    """Options of `SamplingParams` and of the checkpoint, under their names. `min_length` counts prompt (or start token)
    and text. One of `forced_bos` is forced at the first place, one of `forced_eos` at the last. Tokens of `suppress`
    never occur, those of `begin_suppress` not at the first free place, runs of tokens in `bad_words` nowhere. `eos`:
    the tokens that end a text."""

    max_new_tokens: int = MAX_NEW_TOKENS
    eos: tuple[int, ...] = ()
    min_new_tokens: int = 0
    min_length: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    no_repeat_ngram_size: int = 0
    forced_bos: tuple[int, ...] = ()
    forced_eos: tuple[int, ...] = ()
    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        new, least, ngram = self.max_new_tokens, self.min_new_tokens, self.no_repeat_ngram_size
        require(new >= 1, f"max_new_tokens must be a whole number of at least 1, not {new}")
        require(least >= 0, f"min_new_tokens must not be negative, not {least}")
        require(ngram >= 0, f"no_repeat_ngram_size must not be negative, not {ngram}")
        require(self.repetition_penalty > 0, f"repetition_penalty must be positive, not {self.repetition_penalty}")

    @cached_property
    def free(self) -> bool:
        """Whether no rule changes a score."""
        return self == Rules(self.max_new_tokens, self.eos)

    def apply(self, scores: Tensor, ids: Sequence[int], new: int) -> None:
        """Change the scores (V) of a row's next token in place; -inf: an excluded token. `ids`: the row's tokens so
        far, of which `new` are new."""
        if self.repetition_penalty != 1.0:
            penalise(scores, ids, self.repetition_penalty)
        if new and (self.presence_penalty or self.frequency_penalty):
            subtract(scores, ids[len(ids) - new :], self.presence_penalty, self.frequency_penalty)
        for token, bias in self.logit_bias:
            scores[token] += bias
        if self.no_repeat_ngram_size and (banned := repeated(ids, self.no_repeat_ngram_size)):
            scores[banned] = -math.inf
        if self.bad_words and (banned := completing(ids, self.bad_words, self.eos)):
            scores[banned] = -math.inf
        if self.eos and (new < self.min_new_tokens or len(ids) < self.min_length):
            scores[list(self.eos)] = -math.inf
        for forced, now in ((self.forced_bos, new == 0), (self.forced_eos, new == self.max_new_tokens - 1)):
            if forced and now:
                scores.fill_(-math.inf)
                scores[list(forced)] = 0.0
        if self.suppress:
            scores[list(self.suppress)] = -math.inf
        if self.begin_suppress and new == (1 if self.forced_bos else 0):
            scores[list(self.begin_suppress)] = -math.inf


def constrained(scores: Tensor, rows: Sequence[tuple[Rules, Sequence[int], int]]) -> Tensor:
    """Scores (B V) after the rules of each row: (its rules, its tokens so far, how many of them are new)."""
    bound = [(i, row) for i, row in enumerate(rows) if not row[0].free]
    if not bound:
        return scores
    scores = scores.clone()
    for i, (rules, ids, new) in bound:
        rules.apply(scores[i], ids, new)
    return scores


def dead_end() -> UsageError:
    """Of a row whose every token is excluded."""
    return UsageError(
        "no token is left that may follow: min_new_tokens, no_repeat_ngram_size or the checkpoint's "
        "suppress_tokens and bad_words_ids ask too much"
    )


def penalise(scores: Tensor, ids: Sequence[int], penalty: float) -> None:
    """Divide positive scores (V) of `ids` by `penalty`, multiply negative ones by it, in place."""
    at = torch.tensor(sorted(set(ids)), dtype=torch.int64, device=scores.device)
    scores[at] = torch.where(scores[at] > 0, scores[at] / penalty, scores[at] * penalty)


def subtract(scores: Tensor, new: Sequence[int], presence: float, frequency: float) -> None:
    """Take `presence` from the scores (V) of tokens among the `new` ones, and `frequency` for each time, in place."""
    for token, times in Counter(new).items():
        scores[token] -= presence + frequency * times


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
    """Hypotheses are ranked by log-probability / length ** `length_penalty`. A search ends with the first `num_beams`
    finished ones (`early_stopping` True), or when no running one ranks higher at its length (False) or at any length
    ("never")."""

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: Early = False

    def __post_init__(self) -> None:
        early = self.early_stopping
        require(early in (True, False, "never"), f"early_stopping must be true, false or 'never', not {early!r}")
