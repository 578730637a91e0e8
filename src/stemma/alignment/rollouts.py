"""Answers that a model samples while it learns, with what is needed to learn from them.

A rollout knows two log-probabilities of each of its tokens: under the model as it is (`logprobs`, before temperature
and truncation), and under the distribution that the token was really drawn from (`sampled`). Neither is what a loss
compares with: the trainer computes old log-probabilities itself, in its own precision, so that the ratio of the first
update is 1. What decoding says is there to be compared with that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stemma.data import random as draw
from stemma.decoding import SamplingParams, generate
from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.objectives.purposes import ROLLOUT

ROWS = 64  # answers that are written at once
FORCED = -1e-3  # a token below this log-probability that had no other beside it was forced

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class EncodedPrompt:
    """What is to be answered: its `ids`, the `words` of the last turn, its row (`record`), its `place` in the data."""

    ids: tuple[int, ...]
    words: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    place: int = 0


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: `samples` to each prompt, at most `tokens` long; `stops`: texts, or names of special
    tokens, that end an answer beside the tokenizer's end token. Rules of a checkpoint's generation_config.json
    (penalties, forced tokens) are off: a loss would not know them."""

    samples: int = 1
    tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.top_k == 1:
            raise UsageError(
                f"temperature={self.temperature} and top_k={self.top_k} draw nothing: every answer would be the "
                "likeliest one; sampling needs a temperature above 0 and more than one token to choose from"
            )

    @property
    def whole(self) -> bool:
        """Whether tokens are drawn from the whole distribution, so that temperature is all that changes it."""
        return self.top_k == 0 and self.top_p == 1.0

    def params(self, seed: int) -> SamplingParams:
        """The options of one prompt."""
        return SamplingParams(
            max_new_tokens=self.tokens, min_new_tokens=0, temperature=self.temperature, top_k=self.top_k,
            top_p=self.top_p, min_p=0.0, typical_p=1.0, repetition_penalty=1.0, no_repeat_ngram_size=0, num_beams=1,
            forced_bos_token_id=(), forced_eos_token_id=(), stop=self.stops, seed=seed, n=self.samples,
            sampled_logprobs=True,
        )  # fmt: skip


@dataclass(frozen=True)
class Rollout:
    """One answer: its token ids with the end token, if it ended by itself (`finished`), their log-probabilities, and
    its text. `sample`: which one of its prompt's answers; `seed`: what its drawing began with."""

    prompt: EncodedPrompt
    sample: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    sampled: tuple[float, ...]
    finished: bool
    text: str
    seed: int

    @property
    def chosen(self) -> tuple[bool, ...]:
        """Whether each token was drawn among several. One that alone could follow says nothing about the policy."""
        return tuple(drawn < 0 or own > FORCED for drawn, own in zip(self.sampled, self.logprobs, strict=True))


def seed_of(seed: int, slot: int) -> int:
    """The seed of the prompt at index `slot` of the endless order of prompts, so of a step's prompts too; its answers
    take `decoding.sampling.choice_seed` of it."""
    return int(draw.words((seed, ROLLOUT, slot), 1)[0]) >> 1


def sample(
    model: Model,
    prompts: Sequence[EncodedPrompt],
    how: Sampling,
    seeds: Sequence[int],
    rows: int = ROWS,
    autocast: Autocast = contextlib.nullcontext,
) -> list[Rollout]:
    """Answers of the model as it is now, in eval mode: those of the first prompt, then those of the next. `seeds`: one
    a prompt. An answer depends on its prompt, its seed and the weights, not on the other prompts, up to rounding."""
    with autocast():
        params = [how.params(seed) for seed in seeds]
        found = generate(model, [list(p.ids) for p in prompts], params, batch=max(rows, how.samples))
    return [
        Rollout(
            prompt,
            number,
            tuple(one.ids),
            tuple(one.logprobs),
            tuple(one.sampled_logprobs),
            one.reason != "length",
            one.text or "",
            one.seed,
        )
        for prompt, result in zip(prompts, found, strict=True)
        for number, one in enumerate(result.choices)
    ]
