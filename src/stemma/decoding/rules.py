"""What a continuation must be, whatever the model says: its first and last token, its least length, no repetition.

A checkpoint's own habits, in its generation_config.json (in old ones, config.json), hold where a call does not say
otherwise. They are those without which its texts are not what it was trained to write: forced tokens, least lengths,
repetition of n-grams, the scoring of beams and, of an encoder-decoder, how long a text may be. How the search is made
(greedy, drawn, with how many beams) is the call's alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from stemma.errors import CheckpointError, UsageError
from stemma.nn.model import Model
from stemma.spec import require

LENGTH = 32  # new tokens where neither call nor checkpoint says how many
Early = bool | Literal["never"]


@dataclass(frozen=True)
class Rules:
    """`length`: the most new tokens; `least`: the fewest before an end, and `least_whole` the fewest of prompt (or
    start token) and text together; `ngram`: no run of so many tokens occurs twice (0: all may); `first`, `last`: tokens
    of which one is forced as the first new one, and as the last where a text has not ended before."""

    length: int = LENGTH
    least: int = 0
    least_whole: int = 0
    ngram: int = 0
    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(self.length >= 1, f"max_new_tokens must be a whole number of at least 1, not {self.length}")
        require(self.least >= 0, f"min_new_tokens must not be negative, not {self.least}")
        require(self.ngram >= 0, f"no_repeat_ngram_size must not be negative, not {self.ngram}")

    @property
    def free(self) -> bool:
        """Whether there is no rule."""
        return not (self.least or self.least_whole or self.ngram or self.first or self.last)

    def apply(self, scores: Tensor, seen: Sequence[Sequence[int]], new: int, ends: Collection[int]) -> Tensor:
        """`scores` (B V), -inf where a token is out. `seen`: the ids that each row holds, of which `new` are new."""
        if self.free:
            return scores
        scores = scores.clone()
        for row, ids in zip(scores, seen, strict=True):
            if self.ngram and (banned := repeated(ids, self.ngram)):
                row[banned] = -math.inf
            if ends and (new < self.least or len(ids) < self.least_whole):
                row[list(ends)] = -math.inf
        for forced, now in ((self.first, new == 0), (self.last, new == self.length - 1)):
            if forced and now:
                scores = torch.full_like(scores, -math.inf)
                scores[:, list(forced)] = 0.0
        if not bool((scores > -math.inf).any(1).all()):
            raise UsageError("no token is left that may follow: min_new_tokens or no_repeat_ngram_size ask too much")
        return scores


def repeated(ids: Sequence[int], n: int) -> list[int]:
    """The tokens that would end a run of `n` tokens which `ids` hold already."""
    if len(ids) < n:
        return []
    tail = tuple(ids[len(ids) - n + 1 :])
    return [ids[i + n - 1] for i in range(len(ids) - n + 1) if tuple(ids[i : i + n - 1]) == tail]


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


def habits(model: Model) -> Mapping[str, Any]:
    """What the checkpoint of a model says of generation; empty if it says nothing."""
    extras = model.extras or {}
    return extras.get("generation_config", extras.get("config", {}))


def rules(
    model: Model,
    *,
    max_new_tokens: int | None,
    min_new_tokens: int | None,
    no_repeat_ngram_size: int | None,
    forced_bos_token_id: int | None,
    forced_eos_token_id: int | None,
    ignore_eos: bool,
) -> Rules:
    """The rules of a call: what it gives, else what the checkpoint says."""
    own, answers = habits(model), model.encoder is not None
    whole = {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "no_repeat_ngram_size": no_repeat_ngram_size,
    }
    for name, number in whole.items():
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise UsageError(f"{name} must be a whole number, not {number!r}")
    length = max_new_tokens
    if length is None and answers:
        length = _count(own, "max_new_tokens") or max(_count(own, "max_length") - 1, 0)
    first = _tokens(model, "forced_bos_token_id", forced_bos_token_id, own if answers else {})
    last = _tokens(model, "forced_eos_token_id", forced_eos_token_id, {} if ignore_eos else own)
    return Rules(
        length if length is not None and (max_new_tokens is not None or length > 0) else LENGTH,
        least=_count(own, "min_new_tokens") if min_new_tokens is None else min_new_tokens,
        least_whole=_count(own, "min_length") if min_new_tokens is None else 0,
        ngram=_count(own, "no_repeat_ngram_size") if no_repeat_ngram_size is None else no_repeat_ngram_size,
        first=first,
        last=last,
    )


def beams(model: Model, length_penalty: float | None, early_stopping: Early | None) -> Beams:
    """How a call ranks hypotheses: as it says, else as the checkpoint does."""
    own = habits(model)
    penalty = own.get("length_penalty") if length_penalty is None else length_penalty
    early = own.get("early_stopping") if early_stopping is None else early_stopping
    return Beams(1.0 if penalty is None else float(penalty), False if early is None else early)


def start_token(model: Model, given: int | None = None) -> int:
    """The first token of a decoder's input: the one given, else the model's own. Raises UsageError if there is none."""
    found = given
    if found is None and model.text is not None:
        found = model.text.start_id
    if found is None:
        found = habits(model).get("decoder_start_token_id")
    if found is None:
        raise UsageError(
            "this model's config names no decoder_start_token_id, which decoding starts from; "
            "give decoder_start_token_id to generate"
        )
    return _known(model, "decoder_start_token_id", found)


def _count(own: Mapping[str, Any], name: str) -> int:
    number = own.get(name)
    if number is None:
        return 0
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise CheckpointError(f"generation_config.json: {name}={number!r} should be a whole number")
    return number


def _tokens(model: Model, name: str, given: int | None, own: Mapping[str, Any]) -> tuple[int, ...]:
    found: Any = own.get(name) if given is None else given
    if found is None:
        return ()
    return tuple(_known(model, name, token) for token in (found if isinstance(found, list) else [found]))


def _known(model: Model, name: str, token: Any) -> int:
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < model.dims.vocab:
        raise UsageError(f"{name}={token!r} is no token: this model's ids are 0 to {model.dims.vocab - 1}")
    return token
