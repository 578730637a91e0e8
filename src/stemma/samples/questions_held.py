"""Prompts as those of `questions`, in other words, by which a model is judged that learnt from those."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stemma.samples.preferences import stamp
from stemma.samples.questions import asked

__all__ = ["LICENCE", "rows", "stamp"]
LICENCE = "Apache-2.0"


def rows() -> Iterator[dict[str, Any]]:
    """Rows of prompt and `unsafe`."""
    yield from asked(1)
