"""What a model is trained to predict, each as a value with a collator and a loss.

`objective(spec, tokenizer, text, context, seed)` makes the `Objective` that a declared value (`CLM`, `MLM`, `Spans`)
speaks of. Its examples come in an order that depends on (seed, epoch) alone, and a `Cursor` of three integers says
where to go on, so that a stopped run resumes where it stood without replaying anything.
"""

from __future__ import annotations

from typing import Any

from stemma.errors import UsageError
from stemma.families import declare, goals
from stemma.objectives.base import Batch, Cursor, Example, Loss, Objective, View
from stemma.objectives.clm import NextToken
from stemma.objectives.mlm import Masked
from stemma.objectives.pairs import MaskedPairs
from stemma.objectives.spans import SpanCorruption

__all__ = ["Batch", "Cursor", "Example", "Loss", "Objective", "View", "objective"]


BUILT = (goals.CLM, goals.MLM, goals.Spans)


def why_not(spec: goals.Objective) -> str | None:
    """Why a declared objective cannot be trained here; None if it can."""
    if isinstance(spec, BUILT):
        return None
    if isinstance(spec, goals.Translation):
        return f"training on {spec} is not built: it needs sentence pairs in two languages"
    return f"training on {type(spec).__name__} is not implemented yet; set objective to CLM, MLM or Spans"


def objective(
    spec: goals.Objective, tokenizer: Any, text: declare.Text, context: int, seed: int, mixed: bool = False
) -> Objective:
    """The runnable form of a declared objective.

    `tokenizer` names the special ids, `text` the start token of decoders, `context` the tokens of a row; `mixed` rows
    hold several documents that see each other. Raises UsageError where the tokenizer lacks a token that the
    objective needs, and for objectives that cannot be trained here.
    """
    if (why := why_not(spec)) is not None:
        raise UsageError(why)
    match spec:
        case goals.CLM():
            return NextToken(tokenizer, context, seed, mixed)
        case goals.MLM(pairs=True):
            return MaskedPairs(spec, tokenizer, context, seed)
        case goals.MLM():
            return Masked(spec, tokenizer, context, seed, mixed)
        case goals.Spans():
            return SpanCorruption(spec, tokenizer, text, context, seed, mixed)
    raise AssertionError(spec)
