"""The folder of a run: `run.json`, its lock, and what stands in the way of a run.

RUN/run.json        the resolved plan, the command, versions, and facts of the kind of run
RUN/metrics.jsonl   one line a step
RUN/checkpoints/    the last few
RUN/model/          the trained model in its publisher's layout, at the end
RUN/summary.json    what came out
RUN/stages.json, RUN/stages/   of tuning in several stages: what was asked for, and the runs before this one
RUN/rounds.json, RUN/chain.json   the same of rejection sampling, and of a published recipe's whole chain
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

import stemma
from stemma import disk
from stemma.errors import CheckpointError, LostError, MalformedError, ResourceError, UsageError
from stemma.parallel import World
from stemma.parallel.processes import lost_connection

T = TypeVar("T")
STAGES = "stages.json"  # what was asked of a chain of runs, whose last one the folder holds
ROUNDS = "rounds.json"  # ... of rounds of rejection sampling
CHAIN = "chain.json"  # ... of all stages of a published recipe
CHAINS = (STAGES, ROUNDS, CHAIN)
SUMMARY = {"steps?": int, "tokens?": float, "val?": {str: float}, "baselines?": {"unigram_bits_per_byte?": float, "xz_bits_per_byte?": float}, "best?": {"step": int, "values": {str: float}}}


def resume_command(run: Path) -> str:
    """The command that resumes a run, and of a stage the whole chain."""
    while run.parent.name == "stages" and any((run.parent.parent / name).is_file() for name in CHAINS):
        run = run.parent.parent
    return f"stemma resume {run}"


def exists(run: Path) -> bool:
    """Whether the folder holds a run."""
    return (run / "run.json").exists()


def lock(run: Path) -> contextlib.AbstractContextManager[bool]:
    """Hold the folder. Raises UsageError if another process trains in it."""
    busy = f"another process is training in {run}; wait until it ends, or choose another directory"
    return disk.lock(run, busy=busy)


def check_free(out: Path, resume: bool = False, leftovers: Collection[str] = ()) -> None:
    """Refuse a folder that no run can begin in (or, with `resume`, go on in): one with a run or with other files, but
    for the `leftovers` of a run that was killed while it began. Raises UsageError, and ResourceError for a folder that
    cannot be made or written."""
    try:
        _check_empty(out, resume, leftovers)
        place = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
        if not place.is_dir():
            raise UsageError(f"the run cannot be written to {out}: {place} is a file; choose another directory")
        if not os.access(place, os.W_OK | os.X_OK):
            raise ResourceError(
                f"the run cannot be written to {out}: no permission to write in {place}; choose another directory"
            )
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ResourceError(f"the run cannot be written to {out}: {why}; choose another directory") from None


def _check_empty(out: Path, resume: bool, leftovers: Collection[str]) -> None:
    if exists(out):
        if not resume:
            raise UsageError(f"{out} holds a run already; resume it, or choose another directory")
        return
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; a run needs a directory")
    if out.exists() and (
        others := sorted({p.name for p in out.iterdir() if not p.name.startswith(".")}.difference(leftovers))
    ):
        raise UsageError(f"{out} is not empty (it holds {others[0]}); choose a new directory for the run")


def begin(out: Path, plan: Mapping[str, Any], device: torch.device, facts: Mapping[str, Any]) -> None:
    """Write `run.json`: from now on the folder holds a run. `facts`: what the kind of run must find again."""
    about = {
        "format": 1,
        "plan": plan,
        "command": sys.argv,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"stemma": stemma.__version__, "torch": torch.__version__, "python": sys.version.split()[0]},
        "device": str(device),
        **facts,
    }
    disk.write_json(out / "run.json", about)


def read(run: Path, parse: Callable[[Any], T]) -> T:
    """What `parse` makes of `run.json`. Raises CheckpointError where there is none, or one that cannot be parsed."""
    path = run / "run.json"
    if not path.exists():
        raise CheckpointError(f"{run} holds no run to resume (there is no run.json)")
    try:
        return parse(disk.read_json(path))
    except MalformedError as error:
        why = str(error)
    except KeyError as error:
        why = f"it has no {error.args[0]!r}"
    except (TypeError, AttributeError, RecursionError, OverflowError):
        why = "it is no table of settings"
    except UsageError as error:
        why = str(error)
    raise CheckpointError(
        f"{path} is not a run that this version can read: {why}; put back the file as it was, or begin anew elsewhere"
    )


def summary(run: Path) -> dict[str, Any]:
    """The summary of a finished run whose model is there; else empty. Raises CheckpointError for a damaged one."""
    path = run / "summary.json"
    if not path.exists() or not any((run / "model").glob("*.safetensors")):
        return {}
    try:
        return dict(disk.typed(path, disk.read_json(path), SUMMARY))
    except MalformedError:
        raise CheckpointError(
            f"{path} is damaged; delete it to have it written again with: {resume_command(run)}"
        ) from None


@contextlib.contextmanager
def watch_ranks(world: World | None, run: Path) -> Iterator[None]:
    """Raise LostError, with what to do, where torch says that a connection to another rank broke."""
    try:
        yield
    except RuntimeError as error:
        if world is None or not lost_connection(error):
            raise
        resume = f"go on from the last checkpoint, on any mesh or alone, with: {resume_command(run)}"
        raise LostError(
            f"process {world.rank} of mesh {world.shape} lost another one, which ended or cannot be reached (it may "
            f"have said why); {resume if exists(run) else 'begin again'}"
        ) from None
