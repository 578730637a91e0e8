"""The checkpoint's generation_config.json (in old checkpoints: config.json), whose values are the defaults of a call.

Every key that changes tokens is followed, or a warning names it and says why it is not. Ignored: the `max_length` of a
decoder, which counts the prompt too; and keys that change no token (how many texts, what is returned, the cache).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from stemma import families
from stemma.decoding import infill
from stemma.decoding.sampling import SamplingParams, Token
from stemma.errors import CheckpointError, UsageError
from stemma.nn.model import Model

TOP_K = 50  # transformers' default, of a file that asks for drawing without a top_k

# keys that change tokens and are not followed: the values that change nothing, and the reason
IGNORED: dict[str, tuple[tuple[Any, ...], str]] = {
    "encoder_no_repeat_ngram_size": ((0,), "what a prompt says may be said again here"),
    "encoder_repetition_penalty": ((1,), "there is no penalty on what a prompt does not say"),
    "epsilon_cutoff": ((0,), "tokens are drawn by top_k, top_p, min_p and typical_p"),
    "eta_cutoff": ((0,), "tokens are drawn by top_k, top_p, min_p and typical_p"),
    "top_h": ((), "tokens are drawn by top_k, top_p, min_p and typical_p"),
    "num_beam_groups": ((1,), "beams are one group"),
    "renormalize_logits": ((), "scores are not made probabilities again after the rules"),
    "constraints": ((), "a search has no words that it must come to"),
    "force_words_ids": ((), "a search has no words that it must come to"),
    "penalty_alpha": ((0,), "ask for contrastive search in the call (penalty_alpha)"),
    "dola_layers": ((), "tokens are chosen by the last layer"),
    "guidance_scale": ((1,), "there is no guidance by a second prompt"),
    "exponential_decay_length_penalty": ((), "an end does not become likelier with length"),
    "sequence_bias": ((), "runs of tokens can be forbidden (bad_words_ids), not favoured"),
    "stop_strings": ((), "give them to the call (stop)"),
    "watermarking_config": ((), "texts are not marked"),
    "prefix": (("",), "write it before the prompt"),
}


def generation_config(model: Model) -> Mapping[str, Any]:
    """The checkpoint's keys; empty if it has none."""
    extras = model.extras or {}
    found: Mapping[str, Any] = extras.get("generation_config", extras.get("config", {}))
    return found


def warn_ignored(model: Model) -> None:
    """Warn of keys that change tokens and are not followed."""
    for name, (neutral, why) in IGNORED.items():
        value = generation_config(model).get(name)
        if value is not None and value is not False and value not in neutral:
            warnings.warn(f"the checkpoint's {name}={value!r} is not followed: {why}", stacklevel=4)


# ---------------------------------------------------------------- values by key


def integer(model: Model, name: str) -> int:
    """A whole number; 0 where there is none."""
    value = generation_config(model).get(name)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise wrong(name, value, "a whole number")
    return value


def number(model: Model, name: str, default: float) -> float:
    value = generation_config(model).get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise wrong(name, value, "a number")
    if value and not 1e-6 <= abs(value) <= 1e6:
        raise wrong(name, value, "a number between 1e-6 and 1e6")
    return value


def token_ids(model: Model, name: str) -> tuple[int, ...]:
    """A token id, or a list of them."""
    value = generation_config(model).get(name)
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(_is_id(i) for i in listed):
        raise wrong(name, value, "a token's number or a list of them")
    return tuple(listed)


def token_runs(model: Model, name: str) -> tuple[tuple[int, ...], ...]:
    """A list of lists of token ids."""
    value = generation_config(model).get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(r, list) and r and all(_is_id(i) for i in r) for r in value):
        raise wrong(name, value, "a list of lists of tokens' numbers")
    return tuple(tuple(run) for run in value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def wrong(name: str, value: Any, right: str) -> CheckpointError:
    return CheckpointError(f"generation_config.json: {name}={value!r} should be {right}")


# ---------------------------------------------------------------- values by meaning


def eos_ids(model: Model) -> tuple[int, ...]:
    """The tokens that end a text, a filled blank, or a middle. Ids without an embedding are left out: they are never
    written."""
    found = token_ids(model, "eos_token_id") if "generation_config" in (model.extras or {}) else ()
    text, tokenizer = model.text, model.tokenizer
    if not found and text is not None:
        found = text.eos_ids
        if not found and text.blanks and tokenizer is not None and text.eos is not None:
            end = tokenizer.id(text.eos)
            found = () if end is None else (end,)
    tokens = infill.infill_tokens(model)
    if tokens is not None and tokens.end not in found:
        found = (*found, tokens.end)
    return tuple(i for i in found if i < model.dims.vocab)


def special_id(model: Model, text: str) -> int | None:
    """The id of the special token that is named `text`, if there is one with an embedding."""
    found = None if model.tokenizer is None else model.tokenizer.id(text)
    if found is None or found not in model.tokenizer.special_ids or found >= model.dims.vocab:
        return None
    return int(found)


def max_new_tokens(model: Model) -> int | None:
    """The most new tokens that the checkpoint asks for, if it does."""
    if found := integer(model, "max_new_tokens"):
        return found
    if model.encoder is not None and (whole := integer(model, "max_length")) > 1:
        return whole - 1  # one is the start token
    return None


def num_beams(model: Model, params: SamplingParams) -> int:
    """The beams of a call: its own number, else the checkpoint's unless the call draws."""
    width = params.num_beams
    if width is None:
        draws = params.temperature is not None and params.temperature > 0
        width = 1 if draws else max(integer(model, "num_beams"), 1)
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise UsageError(f"num_beams must be a whole number of at least 1, not {width}")
    return width


def start_token(model: Model, given: Token | None = None) -> int:
    """The first token of a decoder's input: the one given, else the checkpoint's, else padding where the family names
    none either, as objectives have it. Raises UsageError if there is none."""
    found: Any = given
    if found is None:
        found = next(iter(token_ids(model, "decoder_start_token_id")), None)
    if found is None and model.text is not None:
        found = model.text.start_id
        if found is None and model.text.shift == "start" and _nameless(model):
            found = model.text.pad_id
    if found is None:
        raise UsageError(
            "this model's config names no decoder_start_token_id, which decoding starts from; give one to generate "
            "(decoder_start_token_id; --decoder-start of `stemma generate`)"
        )
    return token_id(model, "decoder_start_token_id", found)


def _nameless(model: Model) -> bool:
    """Whether a model is of a declared family whose decoder begins with no token of its own."""
    name = model.design.name if model.design is not None else ""
    known = families.size_names() | {own: own for own in families.tree()}
    return name in known and families.family(name).text.start_id is None


def token_id(model: Model, name: str, token: Any) -> int:
    """The id of a token given by its id or its exact name. Raises UsageError for one that does not exist."""
    if isinstance(token, str):
        found = None if model.tokenizer is None else model.tokenizer.id(token)
        if found is None:
            held = "has no token of that name" if model.tokenizer is not None else "came without a tokenizer"
            raise UsageError(f"{name}={token!r} is no token: this model {held}")
        token = found
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < model.dims.vocab:
        raise UsageError(f"{name}={token!r} is no token: this model's ids are 0 to {model.dims.vocab - 1}")
    return token


def option_ids(model: Model, name: str, given: Token | Sequence[Token] | None, own: bool) -> tuple[int, ...]:
    """The token ids of an option; where it is None and `own` holds, the checkpoint's."""
    found = (token_ids(model, name) if own else ()) if given is None else given
    listed = [found] if isinstance(found, int | str) else found
    return tuple(token_id(model, name, token) for token in listed)
