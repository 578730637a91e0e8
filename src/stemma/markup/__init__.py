"""What all HTML pages share: the frame, assets, rows of changes, and saving."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from stemma import disk
from stemma.errors import UsageError
from stemma.words import value_text

THEME = '<button type="button" id="theme" aria-label="Colours: as the system has them">Theme</button>'


def document(title: str, body: str, style: str, *, root: str = "") -> str:
    """A whole page that loads nothing. `title`: plain text; `body`: markup; `style`: CSS after the common rules;
    `root`: attributes of the root element."""
    return f"""<!doctype html>
<html lang="en"{root}>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{asset(__file__, "base.css")}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def theme_script() -> str:
    """What the button `THEME` does: light, dark, or as the system has them."""
    return asset(__file__, "theme.js")


def asset(module: str, name: str) -> str:
    """The text of the file `name` beside a module, given by its `__file__`."""
    return Path(module).with_name(name).read_text(encoding="utf-8")


def change_row(path: str, old: Any, new: Any) -> str:
    """A list item for the change of the value at `path`."""
    old, new = (escape(value_text(v, path)) for v in (old, new))
    return (
        f'<li><span class="path mono">{escape(path)}</span> <span><span class="old">{old}</span> '
        f'<span class="new">{new}</span></span></li>'
    )


def save(text: str, path: Path) -> Path:
    """Write a page whole or not at all. Raises UsageError for an existing file that is no page; ResourceError."""
    if path.exists() and not is_page(path):
        raise UsageError(f"{path} exists and is no HTML page; it was left alone, name another file")
    disk.write(path, text.encode("utf-8", "replace"))  # a file's text may have lone surrogates
    return path


def is_page(path: Path) -> bool:
    """Whether a file is empty or begins as an HTML page does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(512).decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n").lower()
    return not head or head.startswith(("<!doctype html", "<html", "<!--"))
