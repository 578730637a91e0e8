"""The house as its imports draw it: rooms, what each imports, circles, long files and functions.

A room is a folder or a file of `src/stemma`. An import counts wherever it stands: at the top of a module, inside a
function or under `TYPE_CHECKING`; modules that are found by being in a folder (families, layouts, commands) are not
imports of who looks. `python scripts/house.py` refreshes the table of rooms in docs/architecture.md;
`--check` only says whether it is current. `tests/test_house.py` holds the code to the rules.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "stemma"
PAGE = ROOT / "docs" / "architecture.md"
TOP = "stemma"  # the package's own surface, `__init__.py` and `__main__.py`

# Every room, lowest first: a room may import those before it.
ORDER = (
    "errors",
    "disk",
    "samples",
    "spec",
    "text",
    "nn",
    "declare",
    "families",
    "words",
    "markup",
    "quantize",
    "rewrites",
    "executor",
    "formats",
    "conversations",
    "data",
    "tasks",
    "objectives",
    "decoding",
    "engine",
    "evaluate",
    "instruct",
    "mixtures",
    "judging",
    "support",
    "parallel",
    "runs",
    "train",
    "tuning",
    "alignment",
    "planning",
    "report",
    "pictures",
    "serve",
    "cli",
    TOP,
)
# The imports that may go up: (module, room).
UP = {("nn.model", "formats")}  # `model.save(...)` writes a checkpoint

# What a room's own page is called.
PAGES = {
    "conversations": "conversations.md",
    "data": "data.md",
    "decoding": "generation.md",
    "executor": "engine.md",
    "formats": "formats.md",
    "instruct": "conversations.md",
    "mixtures": "flan.md",
    "judging": "judge.md",
    "parallel": "scale.md",
    "rewrites": "rewrites.md",
    "samples": "systems.md",
    "serve": "serving.md",
    "tuning": "tuning.md",
}


def modules(source: Path = SOURCE) -> dict[str, Path]:
    """Every module by its dotted name below `stemma`; a package has the name of its folder, the top one `stemma`."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[TOP if name in ("", "__main__") else name] = path
    found[TOP] = source / "__init__.py"
    return found


def room(module: str) -> str:
    return module.split(".")[0]


def imports(code: str, known: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of a module of `known` in `code`, wherever it stands.

    `from stemma.nn import parts` imports `nn.parts` where that is a module, else `nn`. A string that names a module
    (`"stemma.formats"`, for an `import_module`) counts too.
    """
    names = set(known)

    def module(words: str) -> str | None:
        below = words.removeprefix("stemma").removeprefix(".")
        return (below or TOP) if words.split(".")[0] == "stemma" and (below or TOP) in names else None

    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import(aliases):
                targets = [a.name for a in aliases]
            case ast.ImportFrom(base, aliases, level=0) if base:
                inner = [f"{base}.{a.name}" for a in aliases]
                targets = [name if module(name) else base for name in inner]
            case ast.ImportFrom(level=level) if level:
                raise SyntaxError(f"line {node.lineno}: a relative import; write `from stemma...`")
            case ast.Constant(str(text)) if re.fullmatch(r"stemma(\.\w+)+", text):
                targets = [text]
            case _:
                continue
        for target in targets:
            found = module(target)
            if found:
                yield node.lineno, found


@functools.cache
def graph(source: Path = SOURCE) -> dict[str, dict[str, int]]:
    """For every module the modules that it imports, each with the line of its first import."""
    paths = modules(source)
    drawn: dict[str, dict[str, int]] = {}
    for name, path in paths.items():
        drawn[name] = {}
        for line, target in sorted(imports(path.read_text("utf-8"), paths)):
            # `stemma/__init__` holds the version; a module that reads it there depends on no other room
            if target not in (name, TOP):
                drawn[name].setdefault(target, line)
    return drawn


def rooms(drawn: dict[str, dict[str, int]]) -> dict[str, set[str]]:
    """For every room the other rooms that its modules import."""
    found: dict[str, set[str]] = {room(name): set() for name in drawn}
    for name, targets in drawn.items():
        found[room(name)] |= {room(t) for t in targets if (name, room(t)) not in UP} - {room(name)}
    return found


def circles(drawn: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The strongly connected sets of more than one module (Tarjan's algorithm), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in drawn[name]:
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in drawn:
        if name not in index:
            visit(name)
    return sorted(found)


def functions(code: str) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function; a method is `Class.method`, decorators count."""

    def within(node: ast.AST, outer: str) -> Iterator[tuple[str, int]]:
        for inner in ast.iter_child_nodes(node):
            match inner:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    first = min([inner.lineno, *(d.lineno for d in inner.decorator_list)])
                    yield outer + inner.name, (inner.end_lineno or first) - first + 1
                    yield from within(inner, outer + inner.name + ".")
                case ast.ClassDef():
                    yield from within(inner, outer + inner.name + ".")
                case _:
                    yield from within(inner, outer)

    return within(ast.parse(code), "")


def purpose(path: Path) -> str:
    """The first paragraph of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).removesuffix(".").replace("|", "\\|")


def table() -> str:
    """The rooms from the lowest to the highest: what each is for, and the rooms it imports."""
    paths = modules()
    below = rooms(graph())
    rows = ["| room | what it holds | imports |", "|---|---|---|"]
    for name in ORDER:
        seen = ", ".join(f"`{r}`" for r in ORDER if r in below.get(name, ())) or "nothing"
        shown = "`stemma` itself" if name == TOP else f"`{name}`"
        more = f" ([more]({PAGES[name]}))" if name in PAGES else ""
        rows.append(f"| {shown} | {purpose(paths[name])}{more} | {'all, on first use' if name == TOP else seen} |")
    up = ", ".join(f"`{name}` imports `{target}`" for name, target in sorted(UP))
    return "\n".join([*rows, "", f"Imports go up this list only, but for: {up}."])


def refreshed(text: str) -> str:
    """`text` with the table of today between `<!-- rooms -->` and `<!-- /rooms -->`."""
    return re.sub(r"(?s)(<!-- rooms -->\n).*?(\n<!-- /rooms -->)", lambda m: m[1] + table() + m[2], text)


if __name__ == "__main__":
    old = PAGE.read_text("utf-8")
    new = refreshed(old)
    if new != old and "--check" in sys.argv:
        sys.exit("docs/architecture.md: the table of rooms is not current; run `make docs`")
    PAGE.write_text(new, "utf-8")
