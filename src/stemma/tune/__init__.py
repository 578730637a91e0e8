"""Tuning: from a pretrained model of any lineage and rows of data to a model that does a task or follows
instructions. `tune` carries it out; `tune.plans` makes the plan, which is that of a run like any other."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.tune.predicting import predict
    from stemma.tune.run import tune

_WHERE = {"tune": "tune.run", "predict": "tune.predicting"}

__all__ = ["predict", "tune"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"stemma.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'stemma.tune' has no attribute {name!r}")
