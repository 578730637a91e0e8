"""`generate --batch`: a file of requests in OpenAI's batch format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stemma import disk
from stemma.cli import console, echo
from stemma.errors import UsageError, require


def run(path: str, load: Callable[[], Any], batch: str, out: str | None) -> None:
    """Answer the requests of the file `batch` that the file `out` has no answers to yet. `load()` gives the model."""
    for package in ("starlette", "pydantic", "prometheus_client"):
        require(package, "--batch", "'stemma-lm[serve]'")
    if out is None:
        raise UsageError("--batch needs --out FILE, to which the answers are added as they are done")
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from stemma.serve import batches
    from stemma.serve.models import Served
    from stemma.serve.settings import Settings

    asked = batches.lines(Path(batch))
    done = batches.answered(Path(out), asked)
    left = [line for line in asked if line.custom_id not in done]
    if done:
        disk.tell(f"{out} has {len(done)} of {len(asked)} answers; {len(left)} are left")
    if not left:
        return
    from stemma.tuning.predicting import task_of

    model = load()
    served = Served(Path(path).name, model, task_of(model), Settings())
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console(stderr=True), transient=True) as progress:
            bar = progress.add_task("answers", total=len(asked), completed=len(done))
            counts = batches.run(served, left, Path(out), lambda: progress.advance(bar))
    except KeyboardInterrupt:
        disk.tell(f"stopped; the same command goes on with what {out} has no answer to")
        raise
    finally:
        served.close(drain=False, timeout=5)
    wrong = sum(n for status, n in counts.items() if status != 200)
    echo(f"{sum(counts.values())} answers in {out}" + (f", {wrong} of them errors" if wrong else ""))
