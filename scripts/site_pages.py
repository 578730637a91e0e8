"""The documentation as a site: the pages of this checkout, put together for mkdocs (`make site`).

README.md becomes the first page; links into the source, which the site does not hold, become plain words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "site-src"
TOP = ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def address(page: Path, target: str) -> str | None:
    """Where a link of `page` (a path in the checkout) leads on the site; None for what the site does not hold."""
    if re.match(r"[a-z]+:", target) or target.startswith("#"):
        return target
    path, hash_, anchor = target.partition("#")
    found = (ROOT / page.parent / path).resolve().relative_to(ROOT)
    if found == Path("README.md"):
        found = Path("index.md")
    elif found.parts[0] == "docs":
        found = Path(*found.parts[1:])
    elif str(found) not in TOP:
        return None
    own = page.parts[1:-1] if page.parts[0] == "docs" else ()
    return "../" * len(own) + str(found) + hash_ + anchor


def moved(page: Path, text: str) -> str:
    """The text of a page with the links of the site."""

    def link(found: re.Match[str]) -> str:
        where = address(page, found[3])
        return found[2] if where is None else f"{found[1]}[{found[2]}]({where})"

    return LINK.sub(link, text)


def assemble() -> None:
    """Fill site-src anew."""
    shutil.rmtree(TARGET, ignore_errors=True)
    pages = [path.relative_to(ROOT) for path in sorted((ROOT / "docs").rglob("*")) if path.is_file()]
    for page in [*pages, *(Path(name) for name in TOP if (ROOT / name).is_file())]:
        name = Path(*page.parts[1:]) if page.parts[0] == "docs" else page
        target = TARGET / ("index.md" if page == Path("README.md") else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if page.suffix == ".md":
            target.write_text(moved(page, (ROOT / page).read_text("utf-8")), "utf-8")
        else:
            shutil.copyfile(ROOT / page, target)


if __name__ == "__main__":
    assemble()
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"], cwd=ROOT, env=quiet)
    shutil.rmtree(TARGET, ignore_errors=True)
    if done.returncode == 0:
        print(f"wrote {ROOT / 'site' / 'index.html'}")
    sys.exit(done.returncode)
