"""One self-contained HTML file about one or several runs.

`write([run, ...], "report.html")` reads the run directories (`run.json`, `metrics.jsonl`, `summary.json`,
`samples.json`) and the family tree. The page loads nothing from the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stemma.report.read import RunFiles, read

__all__ = ["RunFiles", "read", "write"]


def write(runs: Iterable[str | Path], out: str | Path = "report.html", *, title: str | None = None) -> Path:
    """Write the report of the given run directories to the file `out`, and return its path.

    Raises UsageError if a directory is not a run, DataError for a damaged file, ResourceError if the disk refuses.
    """
    from stemma.markup import save
    from stemma.report.page import render

    return save(render([read(run) for run in runs], title=title), Path(out))
