"""Tuning: from a pretrained model of any lineage and rows of data to a model that does a task or follows
instructions. `tune` carries it out; `tuning.plans` makes the plan, which is that of a run like any other."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.tuning.predicting import predict
    from stemma.tuning.run import tune

_WHERE = {"tune": "tuning.run", "predict": "tuning.predicting"}

__all__ = ["predict", "tune"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"stemma.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'stemma.tuning' has no attribute {name!r}")
