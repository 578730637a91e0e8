"""The options of a request (`SamplingParams`), and the draw of a token from logits (`Sampler`)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from stemma.decoding.guides import Guide
from stemma.errors import UsageError, did_you_mean
from stemma.nn.model import Model
from stemma.spec import require

Early = bool | Literal["never"]
Token = int | str  # a token's id or its exact name
REPORTS = ("logprobs", "prompt_logprobs")


@dataclass(frozen=True)
class Lookup:
    """Guess next tokens from the text itself (prompt look-up): where the last `ngram` tokens of it, or at least
    `shortest`, stood before, the `tokens` that followed there. For texts that repeat their prompt: summaries, edits,
    code, answers from documents."""

    tokens: int = 8
    ngram: int = 3
    shortest: int = 2

    def __post_init__(self) -> None:
        require(self.tokens >= 1, f"Lookup: tokens must be at least 1, not {self.tokens}")
        fine = 1 <= self.shortest <= self.ngram
        require(fine, f"Lookup: 1 <= shortest <= ngram must hold, not shortest={self.shortest}, ngram={self.ngram}")


@dataclass(frozen=True)
class Draft:
    """Guess the next `tokens` by a smaller model with the same tokenizer."""

    model: Model
    tokens: int = 4

    def __post_init__(self) -> None:
        require(isinstance(self.model, Model), f"Draft: a model is wanted, not {self.model!r:.80}")
        require(self.tokens >= 1, f"Draft: tokens must be at least 1, not {self.tokens}")


@dataclass(frozen=True)
class SamplingParams:
    """How one prompt is continued. An option that is None is read from the checkpoint's generation_config.json; where
    that has no value either, the default in brackets holds. 0 turns a rule off.

    Length: `max_new_tokens` [32; an encoder-decoder's may be given as max_length]; `min_new_tokens`: no end before so
    many new tokens [0, or min_length]; `eos_token_id`: the tokens that end a text [the tokenizer's]; `ignore_eos`:
    always write `max_new_tokens`; `stop`: strings that end a text, and are cut off. The name of a special token
    stands for this token, which stays as an end does.

    Drawing: `temperature` [0: the likeliest token], `top_k` [0, or 50 where the file says do_sample], `top_p` [1],
    `min_p` [0], `typical_p` [1] (Meister et al. 2022); `seed`: where the random numbers start (see `row_seed`).

    Choices: `n` texts of one prompt, which is read once; `best_of`: so many are written, and the `n` with the highest
    mean log-probability are returned [n]. Choice i draws with `choice_seed(seed, i)`.

    Beams: `num_beams` above 1 searches and draws nothing [1]; `length_penalty` [1]: hypotheses are ranked by
    log-probability / length ** length_penalty; `early_stopping` [False]: True ends with the first `num_beams` finished
    hypotheses, "never" goes on while any length may rank higher.

    Contrastive search: `penalty_alpha` above 0 draws nothing: of the `top_k` likeliest tokens it takes the one with the
    highest (1 - penalty_alpha) * probability - penalty_alpha * likeness to what was read and written (Su et al. 2022;
    0.6 and 4 there); for decoders.

    Rules: `repetition_penalty` [1] (Keskar et al. 2019), `presence_penalty` and `frequency_penalty` (OpenAI's: taken
    from the logit of a token that the new text holds, once, and once for each time); `logit_bias`: what is added to
    the logits of tokens, given by id or exact name; `no_repeat_ngram_size` [0]; `forced_bos_token_id`: the first new
    token (mBART-50: the language); `forced_eos_token_id`: the token at the last place, if the text has not ended;
    `decoder_start_token_id`: what an encoder-decoder's text starts after.

    Form: `guide`: a JSON schema, a regular expression or a grammar that the text follows (`decoding.guides`).

    Speed: `speculate`: how next tokens are guessed, so that the model reads several at once: `Lookup()`, or a smaller
    model, or `Draft(model)`. What is written keeps its distribution.

    Reported: `logprobs`: how many of the likeliest tokens, with their log-probabilities, come with each new token;
    `prompt_logprobs`: the same for the tokens of a decoder's prompt. These log-probabilities are those of the model,
    before rules and temperature. `sampled_logprobs`: also the log-probability of each new token under the distribution
    that it was drawn from, after rules, temperature, top-k and the like; 0 where no other token could follow.

    `language`: name or number of the prompt's language, for a model with a table of languages (XLM).
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[Token, float] | Sequence[tuple[Token, float]] = ()
    no_repeat_ngram_size: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: Early | None = None
    penalty_alpha: float = 0.0
    forced_bos_token_id: Token | Sequence[Token] | None = None
    forced_eos_token_id: Token | Sequence[Token] | None = None
    decoder_start_token_id: Token | None = None
    eos_token_id: Token | Sequence[Token] | None = None
    ignore_eos: bool = False
    stop: str | Sequence[str] = ()
    seed: int | None = None
    n: int = 1
    best_of: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    sampled_logprobs: bool = False
    guide: Guide | None = None
    speculate: Lookup | Draft | Model | None = None
    language: str | int | None = None

    def __post_init__(self) -> None:
        for name in ("forced_bos_token_id", "forced_eos_token_id", "eos_token_id", "stop"):
            value = getattr(self, name)
            if name == "stop" and isinstance(value, str):
                value = (value,)
            if value is not None and not isinstance(value, int | str):
                object.__setattr__(self, name, tuple(value))  # hashable, and nobody else's list
        require("" not in self.stop, "a stop string must not be empty: every text ends with nothing")
        for name in ("max_new_tokens", "min_new_tokens", "no_repeat_ngram_size", "seed", "n", "best_of", *REPORTS):
            value = getattr(self, name)
            whole = (value is None and name != "n") or (isinstance(value, int) and not isinstance(value, bool))
            require(whole, f"{name} must be a whole number, not {value!r}")
        for name in ("presence_penalty", "frequency_penalty", "penalty_alpha"):
            _finite(name, getattr(self, name))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        require(0 <= self.penalty_alpha <= 1, f"penalty_alpha must lie in [0, 1], not {self.penalty_alpha}")
        require(self.n >= 1, f"n must be at least 1, not {self.n}")
        require(self.width >= self.n, f"best_of must be at least n={self.n}, not {self.best_of}")
        for name in REPORTS:
            require((getattr(self, name) or 0) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        guided = self.guide is None or isinstance(self.guide, Guide)
        require(guided, f"guide must come from json_schema, regex or grammar (decoding.guides), not {self.guide!r:.80}")
        if isinstance(self.speculate, Model):
            object.__setattr__(self, "speculate", Draft(self.speculate))
        guesses = self.speculate is None or isinstance(self.speculate, Lookup | Draft)
        require(guesses, f"speculate must be Lookup(...), Draft(...) or a model, not {self.speculate!r:.80}")
        if self.seed is not None:
            require(-(2**63) <= self.seed < 2**64, f"seed must fit in 64 bits, not {self.seed}")

    @property
    def width(self) -> int:
        """How many texts are written."""
        return self.n if self.best_of is None else self.best_of

    def changed(self, options: Mapping[str, Any]) -> SamplingParams:
        """These with other `options`. Raises UsageError for a name that is no option."""
        known = [f.name for f in fields(self)]
        for name in options:
            require(name in known, f"{name!r} is no option of generation{did_you_mean(name, known)}")
        return replace(self, **options)


def _finite(name: str, value: Any) -> None:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    require(fine, f"{name} must be a finite number, not {value!r}")


def _biases(given: Any) -> tuple[tuple[Token, float], ...]:
    """`logit_bias` as pairs, which are hashable."""
    try:
        pairs = tuple((token, bias) for token, bias in (given.items() if isinstance(given, Mapping) else given))
    except (TypeError, ValueError):
        raise UsageError(f"logit_bias must map tokens to numbers, as {{50256: -100}} does, not {given!r:.80}") from None
    for token, bias in pairs:
        _finite(f"logit_bias of token {token!r}", bias)
    return pairs


def row_seed(seed: int, index: int) -> int:
    """The seed of prompt `index` of a call with one `seed` for all: `seed` itself for prompt 0, 63 bits of
    BLAKE2b("seed index") for the others. So equal prompts get different texts, and prompt `index` alone with
    `seed=row_seed(seed, index)` gets the text that it got in the call."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest(), "big") >> 1


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of several texts of a prompt whose seed is `seed`: `seed` itself for choice 0, 63 bits of
    BLAKE2b("seed choice i") for the others. A prompt alone with that seed gets the text of that choice."""
    if choice == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed} choice {choice}".encode(), digest_size=8).digest(), "big") >> 1


def per_prompt(
    params: SamplingParams | Sequence[SamplingParams] | None, options: Mapping[str, Any], n: int
) -> list[SamplingParams]:
    """The params of each of `n` prompts, seeds set. `options` replace fields of `params`. A seed that is given once (in
    `options`, or in one `params` for all) becomes `row_seed(seed, i)`; a seed in a list of params stays as it is."""
    if params is None or isinstance(params, SamplingParams):
        params = (params or SamplingParams()).changed(options)
        shared, own = params.seed or 0, [replace(params, seed=None)] * n
    else:
        if len(params) != n:
            raise UsageError(f"{len(params)} sampling params were given for {n} prompts: give one, or one a prompt")
        shared, own = options.get("seed") or 0, [p.changed(options) for p in params]
        if options.get("seed") is not None:
            own = [replace(p, seed=None) for p in own]
    return [replace(p, seed=row_seed(shared, i)) if p.seed is None else p for i, p in enumerate(own)]


@dataclass(frozen=True)
class Sampler:
    """How a token is drawn. `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0, `typical_p` 1 change nothing.

    Order: temperature, top-k, top-p (the smallest set with at least that mass, Holtzman et al. 2019), min-p (tokens
    with at least that share of the likeliest token's probability), typical-p (the smallest set with at least that mass
    of the tokens whose information is nearest to the entropy, Meister et al. 2022).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0

    def __post_init__(self) -> None:
        require(self.temperature >= 0, f"temperature must not be negative, not {self.temperature}")
        require(
            self.temperature == 0 or 1e-6 <= self.temperature <= 1e6,
            f"temperature must be 0 or lie in [1e-6, 1e6], not {self.temperature}",
        )
        require(self.top_k >= 0, f"top_k must not be negative, not {self.top_k}")
        require(0 < self.top_p <= 1, f"top_p must lie in (0, 1], not {self.top_p}")
        require(0 <= self.min_p <= 1, f"min_p must lie in [0, 1], not {self.min_p}")
        require(0 < self.typical_p <= 1, f"typical_p must lie in (0, 1], not {self.typical_p}")

    def scores(self, logits: Tensor) -> Tensor:
        """Logits (B V) to draw from; -inf: an excluded token."""
        if self.temperature == 0:
            return logits
        logits = logits / self.temperature
        out = float("-inf")
        if self.top_k and self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[:, -1:], out)
        if self.top_p < 1:
            ordered, order = logits.sort(descending=True)
            mass = ordered.softmax(-1).cumsum(-1)
            beyond = mass - ordered.softmax(-1) >= self.top_p  # the mass before a token is enough already
            beyond[:, 0] = False  # a top_p that float32 rounds to 0 keeps the likeliest
            logits = logits.masked_fill(beyond.scatter(-1, order, beyond), out)
        if self.min_p:
            share = logits.softmax(-1)
            logits = logits.masked_fill(share < self.min_p * share.amax(-1, keepdim=True), out)
        return logits if self.typical_p == 1 else self._typical(logits)

    def _typical(self, logits: Tensor) -> Tensor:
        """Without the tokens whose information is far from the entropy."""
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).nan_to_num(0.0).sum(-1, keepdim=True)
        far, order = (-logprobs - entropy).abs().sort()
        mass = logprobs.exp().gather(-1, order).cumsum(-1)
        last = (mass < self.typical_p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
        beyond = far > far.gather(-1, last)
        return logits.masked_fill(beyond.scatter(-1, order, beyond), float("-inf"))

    def draw(self, scores: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """One token a row (B). Each row draws from its own generator, on the CPU, once a step, so its numbers depend on
        its seed and on how many tokens it has."""
        if self.temperature == 0:
            return scores.argmax(-1)
        share = scores.softmax(-1)
        if scores.device.type != "cpu":
            return race(share, generators)
        return torch.cat([torch.multinomial(p, 1, generator=g) for p, g in zip(share, generators, strict=True)])


def race(share: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """What `torch.multinomial` draws of each row of probabilities (B V), without bringing them to the CPU: the token
    with the highest share / noise, the noise being exponential."""
    size, device = share.shape[1], share.device
    noise = torch.stack([torch.empty(size, dtype=share.dtype).exponential_(generator=g) for g in generators])
    if device.type == "cuda":
        noise = noise.pin_memory()  # so that the copy does not wait for the device
    return (share / noise.to(device, non_blocking=True)).argmax(-1)


def draw(scores: Tensor, samplers: Sequence[Sampler], generators: Sequence[torch.Generator]) -> Tensor:
    """One token a row (B) from scores (B V), each row by its own sampler."""
    groups: dict[Sampler, list[int]] = {}
    for i, sampler in enumerate(samplers):
        groups.setdefault(sampler, []).append(i)
    if len(groups) == 1:
        return samplers[0].draw(samplers[0].scores(scores), generators)
    tokens = torch.empty(len(samplers), dtype=torch.int64, device=scores.device)
    for sampler, rows in groups.items():
        at = torch.tensor(rows, device=scores.device)
        tokens[at] = sampler.draw(sampler.scores(scores[at]), [generators[i] for i in rows])
    return tokens


def sampled_logprobs(scores: Tensor, samplers: Sequence[Sampler], tokens: Tensor) -> list[float]:
    """The log-probability of each row's token (B) under the distribution that its sampler draws from, given the scores
    (B V) that it read. The likeliest token of a greedy sampler has 0."""
    found = [0.0] * len(samplers)
    for sampler in dict.fromkeys(samplers):
        if sampler.temperature == 0:
            continue
        rows = [i for i, other in enumerate(samplers) if other == sampler]
        at = torch.tensor(rows, device=scores.device)
        own = sampler.scores(scores[at]).log_softmax(-1).gather(1, tokens[at, None])[:, 0].tolist()
        for i, value in zip(rows, own, strict=True):
            found[i] = value
    return found
