"""Rows of data as examples of a task: which columns they have, what is wrong with them, and their ids."""

from __future__ import annotations

import functools
import importlib
import pkgutil


@functools.cache
def load_all() -> None:
    """Import the modules of this folder: each says whose rows its classes read."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
