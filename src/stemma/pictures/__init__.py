"""Two pictures as self-contained HTML pages: the family tree over the years, and two networks side by side.

`write_tree("tree.html")` and `write_diff("bert", "roberta", "diff.html")` read declarations only; torch is not
loaded, and a page asks nothing of the network.
"""

from __future__ import annotations

from pathlib import Path

from stemma.errors import UsageError

__all__ = ["write_diff", "write_tree"]


def write_tree(out: str | Path, *, root: str | None = None) -> Path:
    """Write the picture of the whole tree, or of the part below the family `root`, and return its path.

    Raises UsageError for an unknown name and for a file name that is no page's.
    """
    from stemma.markup import save
    from stemma.pictures.tree import render

    path = page_path(out)
    return save(render(root), path)


def write_diff(a: str, b: str, out: str | Path) -> Path:
    """Write the picture of what changes going from `a` to `b` (families or sizes), and return its path.

    Raises UsageError for an unknown name and for a file name that is no page's.
    """
    from stemma.markup import save
    from stemma.pictures.diff import render

    path = page_path(out)
    return save(render(a, b), path)


def page_path(out: str | Path) -> Path:
    """`out` as a path. Raises UsageError unless it is named as an HTML page is."""
    path = Path(out)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"a page's file name ends in .html, and {str(out)!r} does not; write NAME before --html")
    return path
