"""Requests for a function of Python's standard library by its name, arguments and docstring, answered by its code: they
stand in for Code LLaMA's self-instruct (Roziere et al. 2023, arXiv:2308.12950, section 2.5)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from stemma.samples import functions
from stemma.samples.functions import LICENCE as LICENCE
from stemma.samples.functions import Function
from stemma.samples.functions import stamp as stamp


def asked(function: Function) -> dict[str, Any]:
    """A row of instruction and output."""
    definition = ast.parse(function.code).body[-1]
    assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef)
    call = f"{function.name}({ast.unparse(definition.args)})"
    return {
        "instruction": f"Write a Python function `{call}`. {function.words}",
        "output": f"```python\n{function.code}\n```",
    }


def rows() -> Iterator[dict[str, Any]]:
    """Rows of instruction and output."""
    return map(asked, functions.library())


def held_out() -> Iterator[dict[str, Any]]:
    """The same of modules that `rows` leaves out."""
    return map(asked, functions.library(held=True))
