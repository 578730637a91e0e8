"""Functions of Python's standard library, answered by what they do, in the words of their docstring: Codex-D's rows
(Chen et al. 2021, arXiv:2107.03374, section 5), made of the functions of `functions`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stemma.samples import functions
from stemma.samples.functions import LICENCE as LICENCE
from stemma.samples.functions import Function
from stemma.samples.functions import stamp as stamp


def described(function: Function) -> dict[str, Any]:
    """A row that asks for the docstring, which follows the code."""
    return {"prompt": f"{function.code}\n\n", "completion": f'"""{function.words}"""'}


def rows() -> Iterator[dict[str, Any]]:
    """Rows of prompt and completion."""
    return map(described, functions.library())


def held_out() -> Iterator[dict[str, Any]]:
    """The same of modules that `rows` leaves out."""
    return map(described, functions.library(held=True))
