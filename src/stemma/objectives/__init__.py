"""What a model is trained to predict, each as a value with a collator and a loss.

`objective(spec, setting)` makes the `Objective` that a declared value (`CLM`, `MLM`, `Spans`, ...) speaks of. Its
examples come in an order that depends on the seed alone, and a `Cursor` of two integers says where to go on, so that a
stopped run resumes where it stood without replaying anything.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from typing import Any

from stemma.declare import objectives as declared
from stemma.declare.family import Text
from stemma.nn.parts import Arch, Dims
from stemma.objectives.base import NO_NETS, Batch, Cursor, Example, Loss, Nets, Objective, Setting, View, runnable

# what a special token is called, and how many sentinels there are, where a family has none
MARKS: dict[str, Any] = {
    "bos": "<s>", "eos": "</s>", "mask": "<mask>", "cls": "<cls>", "sep": "<sep>", "sentinels": 100
}  # fmt: skip

__all__ = [
    "NO_NETS",
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
    "teacher_mismatch",
    "tokens",
    "with_special_tokens",
]


@functools.cache
def _found() -> None:
    """Import the modules of this folder: each declares which objectives its classes run."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def objective_class(spec: declared.Objective) -> type[Objective]:
    """The class that runs a declared objective. Raises UsageError if there is none."""
    _found()
    return runnable(spec)


def incompatible_reason(spec: declared.Objective, arch: Arch) -> str | None:
    """Why a network of design `arch` cannot be trained on a declared objective; None if it can."""
    return objective_class(spec).incompatible_reason(spec, arch)


def teacher_mismatch(spec: declared.Objective, student: tuple[Arch, Dims], teacher: tuple[Arch, Dims]) -> str | None:
    """Why a network of one design cannot learn a declared objective from one of another; None if it can."""
    return objective_class(spec).teacher_mismatch(spec, student, teacher)


def tokens(spec: declared.Objective, text: Text) -> tuple[str, ...]:
    """Names of special tokens without a role that a tokenizer needs for a declared objective."""
    return objective_class(spec).tokens(spec, text)


def with_special_tokens(spec: declared.Objective, text: Text) -> Text:
    """`text` with the special tokens that a declared objective needs and it lacks, for a tokenizer that is trained for
    the run: a mask token for a T5 that learns MASS's fragments, sentinels for a BART that learns T5's spans."""
    found: dict[str, Any] = {}
    for roles in objective_class(spec).required_roles(spec, text):
        if not any(getattr(text, role) for role in roles):
            found[roles[0]] = MARKS[roles[0]]
    return dataclasses.replace(text, **found) if found else text


def objective(spec: declared.Objective, setting: Setting) -> Objective:
    """The runnable form of a declared objective. Raises UsageError where the tokenizer lacks a token that the objective
    needs."""
    return objective_class(spec)(spec, setting)
