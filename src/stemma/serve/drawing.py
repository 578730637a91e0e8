"""How a request's fields say how its text is written."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from stemma.decoding import SamplingParams
from stemma.decoding.generation_config import generation_config
from stemma.serve.models import Served
from stemma.serve.problems import bad
from stemma.serve.schemas.base import Drawing, Sampling

KNOWN = frozenset(f.name for f in fields(SamplingParams))
SAME = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "ignore_eos")
OLDER = ("frequency_penalty", "presence_penalty", "n")


def params(served: Served, body: Drawing, tokens: int, **more: Any) -> SamplingParams:
    """The options of a request for at most `tokens` new tokens; `more` are further fields of `SamplingParams`, which go
    before the request's. One that is None is left open. Raises Problem for a field that is not known there."""
    asked: dict[str, Any] = {name: getattr(body, name) for name in SAME}
    asked |= {"max_new_tokens": tokens, "min_new_tokens": body.min_tokens, "num_beams": 1}
    if isinstance(body, Sampling):
        asked |= {name: getattr(body, name) for name in OLDER}
        asked["logit_bias"] = {int(i): bias for i, bias in (body.logit_bias or {}).items()} or None
        check_bias(served, asked["logit_bias"] or {})
    asked["seed"] = secrets.randbits(63) if body.seed is None else body.seed
    if body.temperature is None and generation_config(served.model).get("do_sample") is None:
        asked["temperature"] = 1.0
    given = {name: value for name, value in (asked | more).items() if value is not None}
    if given.get("n") == 1:
        del given["n"]
    if given.get("n", 1) > served.rows:
        raise bad(f"n={given['n']} is more than the {served.rows} texts that are written at once here", "n")
    for name in given:
        if name not in KNOWN:
            raise bad(f"{name} is not supported yet", name, "unsupported_parameter")
    return SamplingParams(**given)


def check_bias(served: Served, biases: dict[int, float]) -> None:
    """Raises Problem for a token that the model does not have."""
    vocab = served.model.dims.vocab
    if wrong := [i for i in biases if i >= vocab]:
        raise bad(f"logit_bias: token {wrong[0]} is none of this model's, which are 0 to {vocab - 1}", "logit_bias")


def stops(*given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings of several sources, each once."""
    listed = [[one] if isinstance(one, str) else one or [] for one in given]
    return tuple(dict.fromkeys(text for one in listed for text in one))


def room(served: Served, prompt: Sequence[int], asked: int | None, default: int, param: str) -> int:
    """How many new tokens a request may have behind its prompt. Raises Problem where they do not fit the context."""
    context, both = served.model.dims.context, served.structure == "encoder-decoder"
    left = context if both else context - len(prompt)
    if len(prompt) > context or left < 1:
        raise bad(
            f"this model's context length is {context} tokens, and the prompt alone has {len(prompt)}",
            param, "context_length_exceeded",
        )  # fmt: skip
    if asked is not None and asked > left:
        raise bad(
            f"this model's context length is {context} tokens; {len(prompt)} of the prompt and {asked} new ones were "
            "asked for",
            param, "context_length_exceeded",
        )  # fmt: skip
    return min(default, left) if asked is None else asked
