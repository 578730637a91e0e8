"""Data, fully sharded and tensor parallelism: a mesh of processes, and tables that say which weights are split how.

Applied from outside: model code imports nothing of it. `World` and `init_world` need torch and load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stemma.parallel.mesh import Mesh, mesh

if TYPE_CHECKING:
    from stemma.parallel.processes import World, init_world

__all__ = ["Mesh", "World", "init_world", "mesh"]


def __getattr__(name: str) -> Any:
    if name not in ("World", "init_world"):
        raise AttributeError(f"module 'stemma.parallel' has no attribute {name!r}")
    return getattr(importlib.import_module("stemma.parallel.processes"), name)
