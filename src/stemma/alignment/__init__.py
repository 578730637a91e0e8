"""Alignment: from compared answers and rewards to a model that follows. `align` carries it out, `plans` makes the plan,
which is that of a run like any other. What samples is here; losses are in `objectives`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.alignment.run import align

_WHERE = {"align": "alignment.run"}

__all__ = ["align"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"stemma.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'stemma.alignment' has no attribute {name!r}")
