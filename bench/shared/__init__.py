"""What the benches of tuned systems share: runs that go on when a script is started again, and figures of seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def finished(run: Any) -> Any:
    """A run, if it came to its end; one that was interrupted goes on when the script is started again."""
    if not run.finished:
        raise SystemExit(130)
    return run


def spread(values: Sequence[float], form: str = ".3f", width: int = 0) -> str:
    """The mean over the seeds, `width` wide, and of several the least and the most."""
    more = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{format(statistics.mean(values), form):>{width}}{more}"
