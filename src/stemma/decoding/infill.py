"""Prompts of models that fill in the middle of a text (Bavarian et al. 2022; Roziere et al. 2023, section 2.3)."""

from __future__ import annotations

from typing import NamedTuple

from stemma.declare.family import INFILL_NAMES, LLAMA_INFILL
from stemma.nn.model import Model


class InfillTokens(NamedTuple):
    """The ids of the tokens before a prefix, a suffix and a middle, and of the token that ends the middle."""

    prefix: int
    suffix: int
    middle: int
    end: int


def infill_tokens(model: Model) -> InfillTokens | None:
    """By the family's names, or the usual ones, or Code LLaMA's; None unless the tokenizer has all four of them."""
    text, tokenizer = model.text, model.tokenizer
    if text is None or tokenizer is None:
        return None
    for names in (text.infill, INFILL_NAMES, LLAMA_INFILL):
        ids = [i for name in names if (i := tokenizer.id(name)) is not None and i < model.dims.vocab]
        if len(ids) == 4:
            return InfillTokens(*ids)
    return None


def prompt(model: Model, prefix: str, suffix: str) -> list[int]:
    """`bos PRE prefix SUF suffix MID`; the middle comes next."""
    tokens, tokenizer = infill_tokens(model), model.tokenizer
    assert tokens is not None
    first = [] if tokenizer.bos_id is None else [int(tokenizer.bos_id)]
    before, after = tokenizer.encode(prefix, add_special=False), tokenizer.encode_continuation(suffix)
    return [*first, tokens.prefix, *before, tokens.suffix, *after, tokens.middle]
