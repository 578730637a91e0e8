"""Functions of Python's standard library as rows, without running anything: the signature and docstring, behind imports
where some are needed, answered by the body. So are Codex-S's rows (Chen et al. 2021, arXiv:2107.03374, section 4); the
paper's came from competitions and from continuous integration, and were tested.

A function is taken that stands by itself: it has a docstring and code, and needs no other name of its module."""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import json
import symtable
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stemma.samples import python

LICENCE = "PSF-2.0"
HELD = 8  # of so many modules one is held out


class Function(NamedTuple):
    """A function of a module: the `imports` that it needs, its `signature` (with decorators), docstring and `body` as
    they stand in the file, each whole lines, and the `words` of the docstring."""

    name: str
    imports: str
    signature: str
    docstring: str
    body: str
    words: str

    @property
    def code(self) -> str:
        """The function without its docstring."""
        return f"{self.imports}{self.signature}{self.body}".rstrip("\n")


def of(text: str) -> Iterator[Function]:
    """The functions of a file that stand by themselves, in their order; none of what is no Python."""
    if (parsed := python.tree(text)) is None:
        return
    lines, imports = text.splitlines(keepends=True), _imports(parsed)
    for node in parsed.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        words, first = ast.get_docstring(node), node.body[0]
        begin = min([node.lineno, *(mark.lineno for mark in node.decorator_list)]) - 1
        if not words or not words.strip() or first.lineno - 1 <= node.lineno - 1 or first.end_lineno is None:
            continue  # a docstring on the line of `def` leaves no line to cut at
        end, last = first.end_lineno, node.end_lineno or first.end_lineno
        if node.body[1].lineno <= end:
            continue
        whole = "".join(lines[begin:last])
        needed = _names(whole) - {node.name} - {*dir(builtins)}
        if needed <= imports.keys():
            head = "".join(sorted({f"{imports[name]}\n" for name in needed}))
            yield Function(
                node.name,
                f"{head}\n\n" if head else "",
                "".join(lines[begin : first.lineno - 1]),
                "".join(lines[first.lineno - 1 : end]),
                "".join(lines[end:last]).rstrip() + "\n",
                words.strip(),
            )


def _imports(parsed: ast.Module) -> dict[str, str]:
    """The names that a module's imports give, each with its import alone."""
    found: dict[str, str] = {}
    for node in parsed.body:
        if isinstance(node, ast.Import | ast.ImportFrom) and not (isinstance(node, ast.ImportFrom) and node.level):
            for alias in node.names:
                one = (
                    ast.Import([alias])
                    if isinstance(node, ast.Import)
                    else ast.ImportFrom(node.module, [alias], node.level)
                )
                found[alias.asname or alias.name.partition(".")[0]] = ast.unparse(one)
    return found


def _names(code: str) -> set[str]:
    """The names that a function takes from outside of it; an impossible one where that cannot be told."""
    try:
        top = symtable.symtable(code, "function", "exec")
    except (SyntaxError, ValueError, RecursionError):
        return {"?"}
    found = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    tables = list(top.get_children())
    while tables:
        table = tables.pop()
        found |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
        tables += table.get_children()
    return found


def written(function: Function) -> dict[str, Any]:
    """A row that asks for the body."""
    prompt = f"{function.imports}{function.signature}{function.docstring}"
    return {"prompt": prompt, "completion": function.body}


def is_held(module: str) -> bool:
    """Whether a module, with all of its package, is held out."""
    return hashlib.sha256(module.partition(".")[0].encode()).digest()[0] % HELD == 0


def modules(held: bool = False) -> Iterator[str]:
    """The texts of the standard library's files: those to train on, or those that are `held` out."""
    for name, path in python.modules(Path(sysconfig.get_path("stdlib"))):
        if is_held(name) == held and (text := python.source(path)) is not None:
            yield text


@functools.cache
def library(held: bool = False) -> tuple[Function, ...]:
    """The functions of the standard library, no two alike: those to train on, or those of modules that are `held`
    out. The first call takes two seconds."""
    found: dict[str, Function] = {}
    for text in modules(held):
        for function in of(text):
            found.setdefault(function.code, function)
    return tuple(found.values())


def rows() -> Iterator[dict[str, Any]]:
    """Rows of prompt and completion."""
    return map(written, library())


def held_out() -> Iterator[dict[str, Any]]:
    """The same of modules that `rows` leaves out."""
    return map(written, library(held=True))


def stamp() -> str:
    """A text that changes with the rows."""
    return json.dumps([sys.version, sysconfig.get_path("stdlib"), Path(__file__).read_text("utf-8")])
