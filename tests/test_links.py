"""Links between the pages lead somewhere, and every page can be reached from the README."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import site_pages  # noqa: E402

PAGES = [*(ROOT / name for name in site_pages.TOP), *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as sites of code and mkdocs make them."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    heads = re.findall(r"^#+ (.*)$", text, re.M)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h)).strip().lower() for h in heads]
    return {re.sub(r" +", "-", h) for h in plain} | {h.replace(" ", "-") for h in plain}


def links(page: Path) -> list[tuple[str, str]]:
    """(path, anchor) of each link to a file."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    found = [target for _, _, target in site_pages.LINK.findall(text) if not re.match(r"[a-z]+:", target)]
    return [(path, anchor) for path, _, anchor in (target.partition("#") for target in found)]


def test_links_lead_somewhere() -> None:
    wrong = []
    for page in PAGES:
        for path, anchor in links(page):
            target = page if not path else (page.parent / path).resolve()
            if not target.exists():
                wrong.append(f"{page.relative_to(ROOT)}: no {path}")
            elif anchor and target.suffix == ".md" and anchor not in anchors(target):
                wrong.append(f"{page.relative_to(ROOT)}: {path} has no heading #{anchor}")
    assert not wrong, "\n".join(wrong)


def test_every_page_is_reached_from_the_readme() -> None:
    reached, new = set[Path](), {ROOT / "README.md"}
    while new:
        page = new.pop()
        reached.add(page)
        targets = {(page.parent / path).resolve() for path, _ in links(page) if path.endswith(".md")}
        new |= targets - reached
    assert not [str(p.relative_to(ROOT)) for p in PAGES if p not in reached]
