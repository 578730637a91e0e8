"""Rules of the house that the code itself can be asked about."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import house
import pytest

import budget
from stemma.families import size_names, tree

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


def test_no_code_asks_for_a_familys_name() -> None:
    """What a family does follows from what it is declared to be."""
    found = {name: named(path.read_text("utf-8")) for name, path in house.modules().items()}
    assert {name: asked for name, asked in found.items() if asked} == {}


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


def test_every_room_has_its_place() -> None:
    assert sorted(house.rooms(house.graph())) == sorted(house.ORDER), "see ORDER in scripts/house.py"


def test_imports_go_down() -> None:
    place = house.ORDER.index
    drawn = house.graph()
    lines = {(name, house.room(t)): line for name, targets in drawn.items() for t, line in targets.items()}
    up = {(name, target) for name, target in lines if place(target) > place(house.room(name))}
    assert up == house.UP, "imports of a room above, (module, room), beside the declared ones of scripts/house.py"


def test_no_circles_between_or_inside_rooms() -> None:
    drawn = house.graph()
    free = {name: [t for t in targets if (name, house.room(t)) not in house.UP] for name, targets in drawn.items()}
    assert house.circles(free) == []


def test_no_file_is_long() -> None:
    counted = {name: len(path.read_text("utf-8").splitlines()) for name, path in house.modules().items()}
    assert {name: n for name, n in counted.items() if n > 500} == {}


def test_no_function_is_long() -> None:
    long = {
        f"{name}:{function}": lines
        for name, path in house.modules().items()
        for function, lines in house.functions(path.read_text("utf-8"))
        if lines > 60
    }
    assert long == {}


def test_the_table_of_rooms_is_current() -> None:
    """Its rooms and imports; what it says of a room is compared with all other generated text (test_cli)."""
    page = house.PAGE.read_text("utf-8")

    def ends(text: str) -> list[tuple[str, str]]:
        cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
        return [(row[0], row[-1]) for row in cells]

    assert ends(house.refreshed(page)) == ends(page), "run `python scripts/house.py`"
    assert all(f"`{name}`" in page for name in house.ORDER)


KNOWN = ["stemma", "nn", "nn.parts", "formats", "formats.hf", "cli"]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from stemma.nn import parts", "nn.parts"),
        ("from stemma.nn import Model", "nn"),
        ("from stemma import formats", "formats"),
        ("from stemma import load", "stemma"),
        ("import stemma.formats.hf as hf", "formats.hf"),
        ("import stemma", "stemma"),
        ("def f():\n    from stemma.formats import save", "formats"),
        ("if TYPE_CHECKING:\n    from stemma.cli import main", "cli"),
        ("import_module('stemma.formats')", "formats"),
    ],
)
def test_the_import_is_noticed(code: str, found: str) -> None:
    assert [name for _, name in house.imports(code, KNOWN)] == [found]


@pytest.mark.parametrize("code", ["import torch", "from stemmata import nn", "x = 'stemma is a tree'", "import re"])
def test_what_is_no_import_of_the_house(code: str) -> None:
    assert list(house.imports(code, KNOWN)) == []


def test_relative_imports_are_refused() -> None:
    with pytest.raises(SyntaxError, match="relative"):
        list(house.imports("from . import parts", KNOWN))


def test_circles_are_found() -> None:
    drawn = {"a": ["b"], "b": ["c", "d"], "c": ["a"], "d": ["e"], "e": [], "f": ["g", "a"], "g": ["f"]}
    assert house.circles(drawn) == [["a", "b", "c"], ["f", "g"]]


def test_functions_are_measured() -> None:
    code = "class A:\n    @property\n    def b(self):\n        def c():\n            pass\n        return c\n"
    assert list(house.functions(code)) == [("A.b", 5), ("A.b.c", 2)]


def test_a_file_beyond_its_budget_is_named() -> None:
    spent = {"test_a.py": 4.0, "test_b.py": 30.0, "test_parity.py": 49.0}
    assert budget.over(spent, 1.0) == [("test_b.py", 30.0, 5.0), ("test_parity.py", 49.0, 25.0)]
    assert budget.over(spent, 2.0) == [("test_b.py", 15.0, 5.0)]
    assert budget.work() > 0 and budget.used() > 0


def test_budgets_are_of_files_that_are_there() -> None:
    tests = house.ROOT / "tests"
    assert [name for name in budget.BUDGETS if not (tests / name).is_file()] == []
