"""Lines of the core (spec, nn, families, formats), blank lines and comments apart from code."""

from __future__ import annotations

import io
import tokenize
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "stemma"
ROOMS = {
    "errors and spec": ["errors.py", "spec.py"],
    "nn": ["nn/**/*.py"],
    "families: declarations": ["families/[!d_]*.py"],
    "families: what a family is": [
        "declare/*.py",
        "families/declare.py",
        "families/__init__.py",
    ],
    "formats: engines": ["formats/*.py"],
    "formats: tables of publishers": ["formats/hf_*.py"],
    "formats: gguf": ["formats/gguf/*.py"],
}


def code(path: Path) -> int:
    """Lines of a file that hold code or a docstring."""
    skip = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    text = path.read_text("utf-8")
    used: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip:
            used.update(range(token.start[0], token.end[0] + 1))
    return len(used)


if __name__ == "__main__":
    seen: set[Path] = set()
    total = [0, 0]
    for room, patterns in reversed(ROOMS.items()):
        paths = {p for pattern in patterns for p in SOURCE.glob(pattern)} - seen
        seen |= paths
        lines = [sum(len(p.read_text("utf-8").splitlines()) for p in paths), sum(code(p) for p in paths)]
        total = [a + b for a, b in zip(total, lines, strict=True)]
        print(f"{room:<32}{lines[0]:>7} lines{lines[1]:>7} with code  {len(paths):>3} files")
    print(f"{'the core':<32}{total[0]:>7} lines{total[1]:>7} with code")
