"""Long real text: modules of Python's standard library, as they are installed."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LICENCE = "PSF-2.0"
BYTES = (8_000, 30_000)  # of a module
MANY = 60


def files() -> list[Path]:
    """The first modules by name that are long, and not too long."""
    found = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [path for path in found if BYTES[0] <= path.stat().st_size <= BYTES[1]][:MANY]


def stamp() -> str:
    """The text depends on the version of Python."""
    return sys.version


def rows() -> Iterator[dict[str, Any]]:
    """A document for each module."""
    for path in files():
        yield {"text": path.read_text("utf-8")}
