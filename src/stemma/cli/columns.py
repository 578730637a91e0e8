"""The options that name columns of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

COLUMNS = {
    "text": "The column with the text.",
    "pair": "The column with a second text.",
    "label": "The column with the label, the labels or the number.",
    "target": "The column with what is to be written.",
}


def columns(called: Callable[..., Any]) -> Callable[..., Any]:
    """A command with an option for each column; it gets them as keywords, None where they are left out."""
    for name, words in reversed(COLUMNS.items()):
        called = click.option(f"--{name}", metavar="COLUMN", help=words)(called)
    return called
