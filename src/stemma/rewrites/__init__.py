"""A built model changed by a table of module paths: adapters, quantised matrices, frozen parts.

    model = stemma.load("llama-2-7b", rewrites=(WeightOnly(("*.blocks.*",)),))

A rewrite is a value (`kinds`, no torch). `engine` applies rewrites to a model, undoes them and merges them back into
plain modules; `modules` is what a replaced module must be able to do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stemma.rewrites.kinds import NF4, LoRA, Prefix, Rewrite, SoftPrompt, Trainable, TrainableTokens, WeightOnly

_WHERE = {
    **dict.fromkeys(("apply", "complete", "merge", "undo", "unmergeable"), "stemma.rewrites.engine"),
    **dict.fromkeys(("Rewritten", "Wrapped", "load_tensor"), "stemma.rewrites.modules"),
}

__all__ = [
    "NF4", "LoRA", "Prefix", "Rewrite", "Rewritten", "SoftPrompt", "Trainable", "TrainableTokens", "WeightOnly",
    "Wrapped", "apply", "complete", "load_tensor", "merge", "undo", "unmergeable",
]  # fmt: skip

if TYPE_CHECKING:
    from stemma.rewrites.engine import apply, complete, merge, undo, unmergeable
    from stemma.rewrites.modules import Rewritten, Wrapped, load_tensor


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'stemma.rewrites' has no attribute {name!r}")
