"""What a checkpoint says of generation, in its generation_config.json (in old ones, config.json): a call's defaults.

Every key that changes which tokens come out is followed, or a warning names it and says why it is not. Left to the call
in any case: `max_length` of a decoder, which counts the prompt too; and how many texts, what is returned and how a
cache is held, which change no token.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from stemma.decoding import infill
from stemma.decoding.choose import Choice
from stemma.errors import CheckpointError, UsageError
from stemma.nn.model import Model

Early = bool | Literal["never"]
TOP_K = 50  # of a file that asks for drawing and does not say from how many tokens: what its layout means by that

# keys that change tokens and are not followed: the values that change nothing, and the reason
UNREAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "encoder_no_repeat_ngram_size": ((0,), "what a prompt says may be said again here"),
    "encoder_repetition_penalty": ((1,), "there is no penalty on what a prompt does not say"),
    "typical_p": ((1,), "tokens are drawn by top_k, top_p and min_p"),
    "epsilon_cutoff": ((0,), "tokens are drawn by top_k, top_p and min_p"),
    "eta_cutoff": ((0,), "tokens are drawn by top_k, top_p and min_p"),
    "top_h": ((), "tokens are drawn by top_k, top_p and min_p"),
    "num_beam_groups": ((1,), "beams are one group"),
    "renormalize_logits": ((), "scores are not made probabilities again after the rules"),
    "constraints": ((), "a search has no words that it must come to"),
    "force_words_ids": ((), "a search has no words that it must come to"),
    "penalty_alpha": ((0,), "there is no contrastive search"),
    "dola_layers": ((), "tokens are chosen by the last layer"),
    "guidance_scale": ((1,), "there is no guidance by a second prompt"),
    "exponential_decay_length_penalty": ((), "an end does not become likelier with length"),
    "sequence_bias": ((), "runs of tokens can be forbidden (bad_words_ids), not favoured"),
    "stop_strings": ((), "give them to the call (stop)"),
    "watermarking_config": ((), "texts are not marked"),
    "prefix": (("",), "write it before the prompt"),
}


def habits(model: Model) -> Mapping[str, Any]:
    """What the checkpoint of a model says of generation; empty if it says nothing."""
    extras = model.extras or {}
    found: Mapping[str, Any] = extras.get("generation_config", extras.get("config", {}))
    return found


def told_unread(model: Model) -> None:
    """Warn of what a checkpoint says that is not followed."""
    for name, (neutral, why) in UNREAD.items():
        value = habits(model).get(name)
        if value is not None and value is not False and value not in neutral:
            warnings.warn(f"the checkpoint's {name}={value!r} is not followed: {why}", stacklevel=3)


# ---------------------------------------------------------------- single values


def count(model: Model, name: str) -> int:
    """A whole number that is 0 where nothing is said."""
    value = habits(model).get(name)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _wrong(name, value, "a whole number")
    return value


def number(model: Model, name: str, usual: float) -> float:
    value = habits(model).get(name)
    if value is None:
        return usual
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(name, value, "a number")
    return value


def ids(model: Model, name: str) -> tuple[int, ...]:
    """A token, or a list of them."""
    value = habits(model).get(name)
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(_is_id(i) for i in listed):
        raise _wrong(name, value, "a token's number or a list of them")
    return tuple(listed)


def runs(model: Model, name: str) -> tuple[tuple[int, ...], ...]:
    """A list of runs of tokens."""
    value = habits(model).get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(r, list) and r and all(_is_id(i) for i in r) for r in value):
        raise _wrong(name, value, "a list of lists of tokens' numbers")
    return tuple(tuple(run) for run in value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _wrong(name: str, value: Any, right: str) -> CheckpointError:
    return CheckpointError(f"generation_config.json: {name}={value!r} should be {right}")


# ---------------------------------------------------------------- what a call does


def ends(model: Model) -> tuple[int, ...]:
    """The ids that end a text, what fills a blank, or a middle. Those that a model has no embedding of are never
    written, and left out."""
    found = ids(model, "eos_token_id") if "generation_config" in (model.extras or {}) else ()
    text, tokenizer = model.text, model.tokenizer
    if not found and text is not None:
        found = text.eos_ids
        if not found and text.blanks and tokenizer is not None and text.eos is not None:
            end = tokenizer.id(text.eos)
            found = () if end is None else (end,)
    middle = infill.marks(model)
    if middle is not None and middle.end not in found:
        found = (*found, middle.end)
    return tuple(i for i in found if i < model.dims.vocab)


def length(model: Model) -> int | None:
    """How many new tokens a checkpoint asks for at most, if it does."""
    if found := count(model, "max_new_tokens"):
        return found
    if model.encoder is not None and (whole := count(model, "max_length")) > 1:
        return whole - 1  # one is the start token
    return None


def beams(model: Model, num_beams: int | None, temperature: float | None) -> int:
    """With how many beams a call searches: as it says, else as the checkpoint does where the call does not draw."""
    width = num_beams
    if width is None:
        width = 1 if temperature is not None and temperature > 0 else max(count(model, "num_beams"), 1)
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise UsageError(f"num_beams must be a whole number of at least 1, not {width}")
    return width


def search(
    model: Model,
    *,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
    num_beams: int | None,
) -> tuple[Choice, int]:
    """How tokens are chosen, and with how many beams: as a call says, else as the checkpoint does. A call that draws
    has no beams, and one that has beams draws nothing, unless it says both itself."""
    own = habits(model)
    draws = own.get("do_sample") or False
    if not isinstance(draws, bool):
        raise _wrong("do_sample", draws, "true or false")
    width = beams(model, num_beams, temperature)
    if width > 1 and draws and num_beams is temperature is None:
        warnings.warn(f"the checkpoint's do_sample is not followed: its {width} beams draw nothing", stacklevel=3)
    if temperature is None:
        temperature = number(model, "temperature", 1.0) if draws and width == 1 else 0.0
    if top_k is None:
        top_k = count(model, "top_k") if own.get("top_k") is not None else TOP_K if draws else 0
    return Choice(
        temperature,
        top_k,
        number(model, "top_p", 1.0) if top_p is None else top_p,
        number(model, "min_p", 0.0) if min_p is None else min_p,
        number(model, "repetition_penalty", 1.0) if repetition_penalty is None else repetition_penalty,
    ), width


def start_token(model: Model, given: int | str | None = None) -> int:
    """The first token of a decoder's input: the one given, else the checkpoint's. Raises UsageError if there is
    none."""
    found: Any = given
    if found is None:
        found = next(iter(ids(model, "decoder_start_token_id")), None)
    if found is None and model.text is not None:
        found = model.text.start_id
    if found is None:
        raise UsageError(
            "this model's config names no decoder_start_token_id, which decoding starts from; give one to generate "
            "(decoder_start_token_id; --decoder-start of `stemma generate`)"
        )
    return known(model, "decoder_start_token_id", found)


def known(model: Model, name: str, token: Any) -> int:
    """The id of a token that is given by its id or its exact name. Raises UsageError for one that does not exist."""
    if isinstance(token, str):
        found = None if model.tokenizer is None else model.tokenizer.id(token)
        if found is None:
            held = "has no token of that name" if model.tokenizer is not None else "came without a tokenizer"
            raise UsageError(f"{name}={token!r} is no token: this model {held}")
        token = found
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < model.dims.vocab:
        raise UsageError(f"{name}={token!r} is no token: this model's ids are 0 to {model.dims.vocab - 1}")
    return token


def tokens(model: Model, name: str, given: int | str | Sequence[int | str] | None, own: bool) -> tuple[int, ...]:
    """The tokens of an option, else (with `own`) of the checkpoint."""
    found = (ids(model, name) if own else ()) if given is None else given
    listed = [found] if isinstance(found, int | str) else found
    return tuple(known(model, name, token) for token in listed)
