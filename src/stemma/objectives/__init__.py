"""What a model is trained to predict, each as a value with a collator and a loss.

`objective(spec, setting)` makes the `Objective` that a declared value (`CLM`, `MLM`, `Spans`, ...) speaks of. Its
examples come in an order that depends on the seed alone, and a `Cursor` of two integers says where to go on, so that a
stopped run resumes where it stood without replaying anything.
"""

from __future__ import annotations

from typing import Any

from stemma.errors import UsageError
from stemma.families import goals
from stemma.nn.parts import Arch
from stemma.objectives.base import ALONE, Batch, Cursor, Example, Loss, Nets, Objective, Setting, View
from stemma.objectives.clm import NextToken
from stemma.objectives.corruption import Deshuffling, TokenCorruption
from stemma.objectives.denoise import Restoration
from stemma.objectives.denoisers import Mixture
from stemma.objectives.fragment import MaskedRun
from stemma.objectives.mlm import Masked
from stemma.objectives.pairs import MaskedPairs
from stemma.objectives.prefix import Continuation
from stemma.objectives.spans import SpanCorruption

__all__ = [
    "ALONE",
    "Batch",
    "Cursor",
    "Example",
    "Loss",
    "Nets",
    "Objective",
    "Setting",
    "View",
    "objective",
    "why_not",
]


def kind(spec: goals.Objective) -> Any:
    """The class that runs a declared objective; None where there is none yet."""
    match spec:
        case goals.CLM():
            return NextToken
        case goals.MLM(pairs=True):
            return MaskedPairs
        case goals.MLM():
            return Masked
        case goals.Spans():
            return SpanCorruption
        case goals.PrefixLM():
            return Continuation
        case goals.Corruption():
            return TokenCorruption
        case goals.Deshuffle():
            return Deshuffling
        case goals.Denoisers():
            return Mixture
        case goals.Denoise():
            return Restoration
        case goals.Fragment():
            return MaskedRun
    return None


def why_not(spec: goals.Objective, arch: Arch | None = None) -> str | None:
    """Why a declared objective cannot be trained here, or not with a network of design `arch`; None if it can."""
    runs = kind(spec)
    if runs is not None:
        return None if arch is None else runs.unfit(spec, arch)
    if isinstance(spec, goals.Translation):
        return f"training on {spec} is not built: it needs sentence pairs in two languages"
    return f"training on {type(spec).__name__} is not implemented yet; set objective to CLM, MLM or Spans"


def objective(spec: goals.Objective, setting: Setting) -> Objective:
    """The runnable form of a declared objective. Raises UsageError where the tokenizer lacks a token that the objective
    needs, and for objectives that cannot be trained here."""
    if (why := why_not(spec)) is not None:
        raise UsageError(why)
    return kind(spec)(spec, setting)
