"""Several processes as one: a mesh of them, tables that say which weights are split how, and what that makes of a step.

Everything here is applied from outside: a model knows nothing of it. `World` and `world`, which need torch, load on
first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stemma.parallel.mesh import Mesh, mesh

if TYPE_CHECKING:
    from stemma.parallel.processes import World, world

__all__ = ["Mesh", "World", "mesh", "world"]


def __getattr__(name: str) -> Any:
    if name not in ("World", "world"):
        raise AttributeError(f"module 'stemma.parallel' has no attribute {name!r}")
    return getattr(importlib.import_module("stemma.parallel.processes"), name)
