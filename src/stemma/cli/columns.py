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
    "words": "The column with words to be tagged.",
    "tags": "The column with their tags.",
    "question": "The column with a question.",
    "context": "The column with the text that answers it.",
    "answers": "The column with the answers and their places.",
    "choices": "The column with a list of texts to choose from, or a column each.",
}


def columns(called: Callable[..., Any]) -> Callable[..., Any]:
    """A command with an option for each column; it gets them as keywords, None where they are left out."""
    for name, words in reversed(COLUMNS.items()):
        several = {"callback": split, "metavar": "COLUMN[,COLUMN...]"} if name == "choices" else {"metavar": "COLUMN"}
        called = click.option(f"--{name}", help=words, **several)(called)
    return called


def split(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Names with commas between them."""
    return None if value is None else tuple(name.strip() for name in value.split(","))
