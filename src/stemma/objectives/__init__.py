"""What a model is trained to predict, each as a value with a collator and a loss.

`objective(spec, setting)` makes the `Objective` that a declared value (`CLM`, `MLM`, `Spans`, ...) speaks of. Its
examples come in an order that depends on the seed alone, and a `Cursor` of two integers says where to go on, so that a
stopped run resumes where it stood without replaying anything.
"""

from __future__ import annotations

from typing import Any

from stemma.errors import UsageError
from stemma.families import goals
from stemma.families.declare import Text
from stemma.nn.parts import Arch, Dims
from stemma.objectives.base import ALONE, Batch, Cursor, Example, Loss, Nets, Objective, Setting, View
from stemma.objectives.blanks import BlankInfilling
from stemma.objectives.clm import NextToken
from stemma.objectives.contrast import Pairs
from stemma.objectives.distil import Distilled, Relations
from stemma.objectives.infill import Infilling
from stemma.objectives.mixed import MixedMasked
from stemma.objectives.mlm import Masked
from stemma.objectives.pairs import MaskedPairs
from stemma.objectives.plm import Permuted
from stemma.objectives.rtd import ReplacedTokens
from stemma.objectives.spans import SpanCorruption
from stemma.objectives.tlm import Translated
from stemma.objectives.translation import SentencePairs

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
    "tokens",
    "why_not",
    "why_unmatched",
]


def kind(spec: goals.Objective) -> Any:
    """The class that runs a declared objective; None where there is none yet."""
    match spec:
        case goals.CLM():
            return NextToken
        case goals.MLM(pairs=None):
            return Masked
        case goals.MLM():
            return MaskedPairs
        case goals.RTD():
            return ReplacedTokens
        case goals.Spans():
            return SpanCorruption
        case goals.PLM():
            return Permuted
        case goals.MixedMLM():
            return MixedMasked
        case goals.Distillation():
            return Distilled
        case goals.AttentionDistillation():
            return Relations
        case goals.Contrastive():
            return Pairs
        case goals.Blanks():
            return BlankInfilling
        case goals.Infill():
            return Infilling
        case goals.TLM():
            return Translated
        case goals.Translation():
            return SentencePairs
    return None


def why_not(spec: goals.Objective, arch: Arch | None = None) -> str | None:
    """Why a declared objective cannot be trained here, or not with a network of design `arch`; None if it can."""
    runs = kind(spec)
    if runs is not None:
        return None if arch is None else runs.unfit(spec, arch)
    return f"training on {type(spec).__name__} is not implemented yet; set objective to CLM, MLM or Spans"


def why_unmatched(spec: goals.Objective, student: tuple[Arch, Dims], teacher: tuple[Arch, Dims]) -> str | None:
    """Why a network of one design cannot learn a declared objective from one of another; None if it can."""
    runs = kind(spec)
    return None if runs is None else runs.unmatched(spec, student, teacher)


def tokens(spec: goals.Objective, text: Text) -> tuple[str, ...]:
    """Names of special tokens without a role that a tokenizer needs for a declared objective."""
    runs = kind(spec)
    return () if runs is None else runs.tokens(spec, text)


def objective(spec: goals.Objective, setting: Setting) -> Objective:
    """The runnable form of a declared objective. Raises UsageError where the tokenizer lacks a token that the objective
    needs, and for objectives that cannot be trained here."""
    if (why := why_not(spec)) is not None:
        raise UsageError(why)
    return kind(spec)(spec, setting)
