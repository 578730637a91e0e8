"""One self-contained HTML file about one or several runs.

`write([run, ...], "report.html")` reads nothing but the run directories (`run.json`, `metrics.jsonl`, `summary.json`,
`samples.json`) and the family tree; the file it writes asks nothing of the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stemma.report.read import Run, read

__all__ = ["Run", "read", "write"]


def write(runs: Iterable[str | Path], out: str | Path = "report.html", *, title: str | None = None) -> Path:
    """Write the report of the given run directories to the file `out`, and return its path.

    Raises UsageError if a directory is no run, DataError if one of its files is damaged.
    """
    from stemma.report.page import render

    path = Path(out)
    text = render([read(run) for run in runs], title=title)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return path
