"""Refresh what README.md and docs/cli.md cut from the program (the tree, and each command's help), the table of rooms
in docs/architecture.md, docs/python.md, and the pages made from the declarations (docs/families, docs/support.md).

`--check` changes nothing and only says whether they are current.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from pathlib import Path

from stemma.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/cli.md")


def says(*args: str) -> str:
    """What `stemma ARGS` prints into 80 columns without colours."""
    os.environ |= {"COLUMNS": "80", "NO_COLOR": "1"}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main([*args])
        except SystemExit as left:
            if left.code:
                raise
    return out.getvalue().rstrip()


def refreshed(text: str) -> str:
    """`text` with the output of each `<!-- $ stemma ARGS -->` up to the `<!-- / -->` after it."""
    between = re.compile(r"(<!-- \$ stemma ([^\n]*?) -->\n).*?(<!-- / -->)", re.S)
    return between.sub(lambda m: f"{m[1]}```text\n{says(*m[2].split())}\n```\n{m[3]}", text)


if __name__ == "__main__":
    stale = []
    for page in PAGES:
        path = ROOT / page
        old = path.read_text(encoding="utf-8")
        new = refreshed(old)
        if new != old:
            stale.append(page)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    import house
    import python_page
    from pages import pages

    wanted = {house.PAGE: house.refreshed(house.PAGE.read_text(encoding="utf-8"))} | pages()
    wanted[python_page.PAGE] = python_page.page()
    for path, new in wanted.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != new:
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in sys.argv:
                path.parent.mkdir(exist_ok=True)
                path.write_text(new, encoding="utf-8")
    for path in (ROOT / "docs/families").glob("*.md"):
        if path not in wanted:
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in sys.argv:
                path.unlink()
    if "--check" in sys.argv and stale:
        sys.exit(f"{' and '.join(stale)}: not current; run `make docs`")
