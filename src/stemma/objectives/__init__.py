"""What a model is trained to predict, each as a value with a collator and a loss.

`objective(spec, setting)` makes the `Objective` that a declared value (`CLM`, `MLM`, `Spans`, ...) speaks of. Its
examples come in an order that depends on the seed alone, and a `Cursor` of two integers says where to go on, so that a
stopped run resumes where it stood without replaying anything.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from stemma.declare import objectives as declared
from stemma.declare.family import Text
from stemma.nn.parts import Arch, Dims
from stemma.objectives.base import ALONE, Batch, Cursor, Example, Loss, Nets, Objective, Setting, View
from stemma.objectives.blanks import BlankInfilling
from stemma.objectives.clm import NextToken
from stemma.objectives.contrast import Pairs
from stemma.objectives.corruption import Deshuffling, TokenCorruption
from stemma.objectives.denoise import Restoration
from stemma.objectives.denoisers import Mixture
from stemma.objectives.distil import Distilled, Relations
from stemma.objectives.fragment import MaskedRun
from stemma.objectives.infill import Infilling
from stemma.objectives.mixed import MixedMasked
from stemma.objectives.mlm import Masked
from stemma.objectives.pairs import MaskedPairs
from stemma.objectives.plm import Permuted
from stemma.objectives.prefix import Continuation
from stemma.objectives.rtd import ReplacedTokens
from stemma.objectives.spans import SpanCorruption
from stemma.objectives.tlm import Translated
from stemma.objectives.translation import SentencePairs

# what a special token is called, and how many sentinels there are, where a family has none
MARKS: dict[str, Any] = {
    "bos": "<s>", "eos": "</s>", "mask": "<mask>", "cls": "<cls>", "sep": "<sep>", "sentinels": 100
}  # fmt: skip

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
    "incompatible_reason",
    "objective",
    "suited",
    "teacher_mismatch",
    "tokens",
]


def kind(spec: declared.Objective) -> Any:
    """The class that runs a declared objective."""
    match spec:
        case declared.CLM():
            return NextToken
        case declared.MLM(pairs=None):
            return Masked
        case declared.MLM():
            return MaskedPairs
        case declared.RTD():
            return ReplacedTokens
        case declared.Spans():
            return SpanCorruption
        case declared.PLM():
            return Permuted
        case declared.MixedMLM():
            return MixedMasked
        case declared.Distillation():
            return Distilled
        case declared.AttentionDistillation():
            return Relations
        case declared.Contrastive():
            return Pairs
        case declared.Blanks():
            return BlankInfilling
        case declared.Infill():
            return Infilling
        case declared.TLM():
            return Translated
        case declared.Translation():
            return SentencePairs
        case declared.PrefixLM():
            return Continuation
        case declared.Corruption():
            return TokenCorruption
        case declared.Deshuffle():
            return Deshuffling
        case declared.Denoisers():
            return Mixture
        case declared.Denoise():
            return Restoration
        case declared.Fragment():
            return MaskedRun
    raise AssertionError(spec)


def incompatible_reason(spec: declared.Objective, arch: Arch) -> str | None:
    """Why a network of design `arch` cannot be trained on a declared objective; None if it can."""
    found: str | None = kind(spec).incompatible_reason(spec, arch)
    return found


def teacher_mismatch(spec: declared.Objective, student: tuple[Arch, Dims], teacher: tuple[Arch, Dims]) -> str | None:
    """Why a network of one design cannot learn a declared objective from one of another; None if it can."""
    found: str | None = kind(spec).teacher_mismatch(spec, student, teacher)
    return found


def tokens(spec: declared.Objective, text: Text) -> tuple[str, ...]:
    """Names of special tokens without a role that a tokenizer needs for a declared objective."""
    found: tuple[str, ...] = kind(spec).tokens(spec, text)
    return found


def suited(spec: declared.Objective, text: Text) -> Text:
    """`text` with the special tokens that a declared objective needs and it lacks, for a tokenizer that is trained for
    the run: a mask token for a T5 that learns MASS's fragments, sentinels for a BART that learns T5's spans."""
    found: dict[str, Any] = {}
    for roles in kind(spec).needs(spec, text):
        if not any(getattr(text, role) for role in roles):
            found[roles[0]] = MARKS[roles[0]]
    return dataclasses.replace(text, **found) if found else text


def objective(spec: declared.Objective, setting: Setting) -> Objective:
    """The runnable form of a declared objective. Raises UsageError where the tokenizer lacks a token that the objective
    needs."""
    made: Objective = kind(spec)(spec, setting)
    return made
