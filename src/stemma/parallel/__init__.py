"""Several processes as one: a mesh of them, tables that say which weights are split how, and what that makes of a step.

Everything here is applied from outside: a model knows nothing of it."""

from stemma.parallel.mesh import Mesh, World, mesh, world

__all__ = ["Mesh", "World", "mesh", "world"]
