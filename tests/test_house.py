"""Rules of the house that the code itself can be asked about."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import stemma
from stemma.families import size_names, tree

SOURCE = Path(stemma.__file__).parent
NAMES = {*tree(), *size_names()}


def strings(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


def questions(module: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of every string that a condition of the module compares with."""
    for node in ast.walk(module):
        match node:
            case ast.Compare():
                found = list(strings(node))
            case ast.MatchValue(value):
                found = list(strings(value))
            case ast.Call(ast.Attribute(attr="startswith" | "endswith" | "removeprefix")):
                found = [s for a in node.args for s in strings(a)]
            case _:
                continue
        yield from ((node.lineno, text) for text in found)


def named(code: str) -> list[tuple[int, str]]:
    return [(line, text) for line, text in questions(ast.parse(code)) if text in NAMES]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_code_asks_for_a_familys_name(path: Path) -> None:
    """What a family does follows from what it is declared to be."""
    assert named(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "code",
    [
        "x = 1 if family.name == 'bert' else 2",
        "if name in ('gpt2', 'other'): pass",
        "match name:\n    case 'llama' | 'x': pass",
        "if not model.family.name.startswith('t5'): pass",
        "y = [f for f in g if f.name != 'bert-base-uncased']",
    ],
)
def test_the_question_is_noticed(code: str) -> None:
    assert named(code)


ROOMS = ("errors", "spec", "nn", "families", "text", "formats", "data", "objectives", "parallel", "train", "planning", "decoding", "report", "pictures", "cli")  # fmt: skip
UP = {("nn/model.py", "formats")}  # model.save(...) reaches up when it is called


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    name = str(path.relative_to(SOURCE))
    room = name.split("/")[0].removesuffix(".py")
    if room not in ROOMS:
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        targets = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        targets += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        for target in targets:
            words = target.split(".")
            if words[0] == "stemma" and len(words) > 1 and words[1] in ROOMS and (name, words[1]) not in UP:
                assert ROOMS.index(words[1]) <= ROOMS.index(room), f"{name}:{node.lineno} imports {target}"
