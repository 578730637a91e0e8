"""Prompts and options of a call made into requests, which leave nothing open."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stemma.decoding import blanks
from stemma.decoding import generation_config as config
from stemma.decoding.guides import Matcher, matcher
from stemma.decoding.inputs import answers, check_model, extends, generates, language_of
from stemma.decoding.rules import MAX_NEW_TOKENS, BeamRules, Rules
from stemma.decoding.sampling import REPORTS, Draft, Lookup, Sampler, SamplingParams, Token, per_prompt
from stemma.errors import CheckpointError, UsageError
from stemma.nn.model import Model
from stemma.nn.parts import Causal, Cycle, Prefix, Sliding

Prompts = str | Sequence[str | Sequence[int]]


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt (token ids) and how it is continued. `start`: the first token of an encoder-decoder's text; `answers`:
    the text does not go on from the prompt; `width`: texts that are written, of which the best `n` are returned;
    `adapter`: which one an engine computes with (`Engine.submit`)."""

    prompt: list[int]
    sampler: Sampler
    rules: Rules
    beams: BeamRules
    stop: tuple[str, ...]
    language: int | None
    start: int | None
    answers: bool
    seed: int = 0
    n: int = 1
    width: int = 1
    penalty_alpha: float = 0.0
    adapter: str | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    sampled_logprobs: bool = False
    matcher: Matcher | None = None
    speculate: Lookup | Draft | None = None

    @property
    def written(self) -> list[int]:
        """The tokens before the first new one."""
        if self.start is not None:
            return [self.start]
        return [] if self.answers else list(self.prompt)


def requests(
    model: Model,
    prompts: Prompts,
    params: SamplingParams | Sequence[SamplingParams] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[GenerationRequest]:
    """A request for every prompt; `params` and `options` as in `per_prompt`. Raises UsageError for what cannot be."""
    check_model(model)
    if not generates(model):
        if model.lm is None:
            raise UsageError("this model has no language-model head, so it cannot continue a text")
        raise UsageError("an encoder cannot continue a text; use stemma.fill (or `stemma fill`) with this model")
    rows = [prompts] if isinstance(prompts, str) else list(prompts)
    own = per_prompt(params, options or {}, len(rows))
    known: dict[SamplingParams, GenerationRequest] = {}
    if not own:  # options that cannot be are refused without a prompt too
        own = per_prompt(None if isinstance(params, Sequence) else params, options or {}, 1)
    for p in own:
        seedless = replace(p, seed=None)
        if seedless not in known:
            known[seedless] = _request(model, seedless)
    config.warn_ignored(model)
    if model.tokenizer is None and any(p.stop for p in own):
        raise UsageError("stop strings need a tokenizer, and this model came without one")
    return [
        replace(known[replace(p, seed=None)], prompt=encode(model, prompt), seed=p.seed or 0)
        for p, prompt in zip(own, rows, strict=False)
    ]


def _request(model: Model, params: SamplingParams) -> GenerationRequest:
    """Options without a prompt: each the call's, else the checkpoint's, else the default."""
    rules = _rules(model, params)
    if params.decoder_start_token_id is not None and model.encoder is None:
        raise UsageError("decoder_start_token_id is for an encoder-decoder; a decoder goes on from its prompt")
    both = model.arch.structure == "encoder-decoder"
    width = config.num_beams(model, params)
    if width > 1:
        _check_search(params, width)
    if params.sampled_logprobs and (width > 1 or params.penalty_alpha):
        raise UsageError("sampled_logprobs are of tokens that are drawn, and a search draws none")
    if params.penalty_alpha:
        _check_contrast(model, params)
    for name in REPORTS:
        if (getattr(params, name) or 0) > model.dims.vocab:
            raise UsageError(f"{name}={getattr(params, name)} is more than this model's {model.dims.vocab} tokens")
    if params.prompt_logprobs is not None and not _causal(model):
        raise UsageError("prompt_logprobs are those of a decoder that reads every prompt from left to right")
    return GenerationRequest(
        prompt=[],
        sampler=_sampler(model, params, width),
        rules=rules,
        beams=_beams(model, params, width),
        stop=tuple(text for text in params.stop if config.special_id(model, text) is None),
        language=language_of(model, params.language),
        start=config.start_token(model, params.decoder_start_token_id) if both else None,
        answers=answers(model),
        n=params.n,
        width=params.width,
        penalty_alpha=params.penalty_alpha,
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
        sampled_logprobs=params.sampled_logprobs,
        speculate=_guesses(model, params.speculate),
        matcher=None if params.guide is None else matcher(model, params.guide),
    )


def _check_search(params: SamplingParams, beams: int) -> None:
    for name in ("best_of", *REPORTS, "guide", "speculate"):
        if getattr(params, name) is not None:
            raise UsageError(f"a search of {beams} beams goes without {name}")
    if params.n > beams:
        raise UsageError(f"a search of {beams} beams has at most n={beams} texts, not {params.n}")


def _causal(model: Model) -> bool:
    return model.arch.structure == "decoder" and isinstance(model.arch.mask, Causal | Sliding | Cycle)


def _check_contrast(model: Model, params: SamplingParams) -> None:
    """Raises UsageError for what goes not with contrastive search."""
    if not _causal(model) or not extends(model):
        raise UsageError("contrastive search (penalty_alpha) is for decoders that read from left to right")
    if (params.top_k or 0) < 2:
        raise UsageError("contrastive search (penalty_alpha) chooses among top_k tokens: give top_k of at least 2")
    others = ("temperature", "num_beams", "best_of", *REPORTS, "guide", "speculate", "language")
    if used := [name for name in others if getattr(params, name) not in (None, 0, 1)] + ["stop"] * bool(params.stop):
        raise UsageError(f"contrastive search (penalty_alpha) goes without {used[0]}")
    if params.n > 1:
        raise UsageError("contrastive search (penalty_alpha) draws nothing: it has one text, n=1")


def _guesses(model: Model, how: Lookup | Draft | Model | None) -> Lookup | Draft | None:
    """How next tokens are guessed. Raises UsageError where a model reads no guesses, or a draft makes other tokens."""
    assert not isinstance(how, Model)
    if how is not None and not extends(model):
        raise UsageError("speculate: a model of this kind reads a new text token by token, so guesses help nothing")
    if not isinstance(how, Draft):
        return how
    draft = how.model
    if not generates(draft) or not extends(draft) or draft.arch.structure != model.arch.structure:
        raise UsageError(f"speculate: the draft of this {model.arch.structure} must be one too, and write a text")
    known = [m.tokenizer.fingerprint for m in (model, draft) if m.tokenizer is not None]
    if len(known) == 2 and known[0] != known[1]:
        raise UsageError("speculate: the draft has another tokenizer than the model")
    if len(known) < 2 and draft.dims.vocab != model.dims.vocab:
        raise UsageError(f"speculate: the draft has {draft.dims.vocab} tokens, and the model {model.dims.vocab}")
    return how


def _rules(model: Model, params: SamplingParams) -> Rules:
    vocab, least, ngram = model.dims.vocab, params.min_new_tokens, params.no_repeat_ngram_size
    length, penalty = params.max_new_tokens, params.repetition_penalty
    eos = config.eos_ids(model)
    if params.eos_token_id is not None:
        eos = config.option_ids(model, "eos_token_id", params.eos_token_id, own=False)
    if params.ignore_eos:
        eos = ()
    stops = (config.special_id(model, text) for text in params.stop)  # a special token has no text that could stop
    eos = tuple(dict.fromkeys([*eos, *(i for i in stops if i is not None)]))
    first, last = params.forced_bos_token_id, params.forced_eos_token_id
    return Rules(
        length if length is not None else config.max_new_tokens(model) or MAX_NEW_TOKENS,
        eos=eos,
        min_new_tokens=config.integer(model, "min_new_tokens") if least is None else least,
        min_length=config.integer(model, "min_length") if least is None else 0,
        repetition_penalty=config.number(model, "repetition_penalty", 1.0) if penalty is None else penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=tuple((config.token_id(model, "logit_bias", token), bias) for token, bias in _pairs(params)),
        no_repeat_ngram_size=config.integer(model, "no_repeat_ngram_size") if ngram is None else ngram,
        forced_bos=config.option_ids(model, "forced_bos_token_id", first, own=model.encoder is not None),
        forced_eos=config.option_ids(model, "forced_eos_token_id", last, own=not params.ignore_eos),
        suppress=tuple(i for i in config.token_ids(model, "suppress_tokens") if i < vocab),
        begin_suppress=tuple(i for i in config.token_ids(model, "begin_suppress_tokens") if i < vocab),
        bad_words=tuple(run for run in config.token_runs(model, "bad_words_ids") if max(run) < vocab),
    )


def _pairs(params: SamplingParams) -> Sequence[tuple[Token, float]]:
    assert not isinstance(params.logit_bias, Mapping)
    return params.logit_bias


def _sampler(model: Model, params: SamplingParams, width: int) -> Sampler:
    """A call that draws has no beams, and one with beams draws nothing, unless it asks for both itself."""
    own = config.generation_config(model)
    draws = own.get("do_sample") or False
    if not isinstance(draws, bool):
        raise config.wrong("do_sample", draws, "true or false")
    if width > 1 and draws and params.num_beams is params.temperature is None:
        warnings.warn(f"the checkpoint's do_sample is not followed: its {width} beams draw nothing", stacklevel=5)
    temperature, top_k, top_p, min_p = params.temperature, params.top_k, params.top_p, params.min_p
    typical = params.typical_p
    if temperature is None:
        temperature = config.number(model, "temperature", 1.0) if draws and width == 1 else 0.0
    if top_k is None:
        top_k = config.integer(model, "top_k") if own.get("top_k") is not None else config.TOP_K if draws else 0
    return Sampler(
        temperature,
        top_k,
        config.number(model, "top_p", 1.0) if top_p is None else top_p,
        config.number(model, "min_p", 0.0) if min_p is None else min_p,
        config.number(model, "typical_p", 1.0) if typical is None else typical,
    )


def _beams(model: Model, params: SamplingParams, width: int) -> BeamRules:
    if width == 1:
        return BeamRules()
    penalty, early = params.length_penalty, params.early_stopping
    penalty = config.number(model, "length_penalty", 1.0) if penalty is None else penalty
    early = config.generation_config(model).get("early_stopping") if early is None else early
    return BeamRules(width, float(penalty), False if early is None else early)


def encode(model: Model, prompt: str | Sequence[int]) -> list[int]:
    """The token ids of a prompt."""
    if not isinstance(prompt, str):
        try:
            return [operator.index(token) for token in prompt]
        except TypeError:
            raise UsageError("prompts are texts or lists of whole token ids; one prompt is [[1, 2, 3]]") from None
    if model.tokenizer is None:
        raise CheckpointError(
            "a text needs a tokenizer, and this checkpoint came without one: put its tokenizer.json beside config.json"
        )
    if isinstance(model.arch.mask, Prefix):
        return blanks.prompt(model, prompt)
    # a query stream goes on from the end of a text, which has no special tokens behind it
    return model.tokenizer.encode(prompt, add_special=model.arch.streams is None)
