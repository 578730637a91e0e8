"""Prompts of models that fill in the middle of a text (Bavarian et al. 2022; Roziere et al. 2023, section 2.3)."""

from __future__ import annotations

from typing import NamedTuple

from stemma.declare.family import INFILL_NAMES
from stemma.nn.model import Model


class Marks(NamedTuple):
    """The ids of the tokens before a prefix, a suffix and a middle, and of the one that ends the middle."""

    prefix: int
    suffix: int
    middle: int
    end: int


def marks(model: Model) -> Marks | None:
    """By the names that the family gives, or the usual ones; None unless the tokenizer has all of them."""
    text, known = model.text, model.tokenizer
    if text is None or known is None:
        return None
    found = [known.id(name) for name in text.infill or INFILL_NAMES]
    ids = [i for i in found if i is not None and i < model.dims.vocab]
    return Marks(*ids) if len(ids) == 4 else None


def prompt(model: Model, prefix: str, suffix: str) -> list[int]:
    """`bos PRE prefix SUF suffix MID`, which the middle follows."""
    known, tokenizer = marks(model), model.tokenizer
    assert known is not None
    first = [] if tokenizer.bos_id is None else [int(tokenizer.bos_id)]
    before, after = tokenizer.encode(prefix, add_special=False), tokenizer.encode_continuation(suffix)
    return [*first, known.prefix, *before, known.suffix, *after, known.middle]
