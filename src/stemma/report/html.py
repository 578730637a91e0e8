"""What every page that Stemma writes has in common: the frame, assets, rows of changes, and how it reaches the disk."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from stemma import disk
from stemma.errors import UsageError
from stemma.report.words import value_text


def document(title: str, body: str, style: str, *, root: str = "") -> str:
    """A whole page that loads nothing. `title` is text, `body` markup, `style` CSS after the common one, `root`
    attributes of the root element."""
    return f"""<!doctype html>
<html lang="en"{root}>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{asset("base.css")}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def asset(name: str, room: str = "stemma.report") -> str:
    return files(room).joinpath(name).read_text(encoding="utf-8")


def change_row(path: str, old: Any, new: Any) -> str:
    old, new = (escape(value_text(v, path)) for v in (old, new))
    return (
        f'<li><span class="path mono">{escape(path)}</span> <span><span class="old">{old}</span> '
        f'<span class="new">{new}</span></span></li>'
    )


def save(text: str, path: Path) -> Path:
    """Write a page whole or not at all. Raises UsageError for an existing file that is no page; ResourceError."""
    if path.exists() and not is_page(path):
        raise UsageError(f"{path} exists and is no HTML page; it was left alone, name another file")
    disk.write(path, text)
    return path


def is_page(path: Path) -> bool:
    """Whether a file is empty or begins as an HTML page does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(512).decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n").lower()
    return not head or head.startswith(("<!doctype html", "<html", "<!--"))
