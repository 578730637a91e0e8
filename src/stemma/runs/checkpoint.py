"""Checkpoints of a run: `checkpoints/step-000050/{model.safetensors, optimizer.safetensors, state.json}`.

A checkpoint is written under a temporary name, forced to disk and renamed: it exists whole or not at all. `state.json`
has checksums of the tensors' files and of itself, so that later damage is noticed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from stemma import disk
from stemma.errors import CheckpointError, MalformedError, brief

STATE = "state.json"
TENSORS = ("model.safetensors", "optimizer.safetensors")
SUMS, OWN = "crc32", "crc32_state"  # in the state: of the tensors' files, and of all else in it
SHAPE = {"step": int, f"{SUMS}?": {str: int}, "frozen?": {"names": [str], "fingerprint": str}}
FILE = re.compile(r"(model|optimizer)\.safetensors|shards/[^/]+")  # what has a checksum
NAME = re.compile(r"step-(\d+)(?:-(\d+))?")


def name(rewinds: int, step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{step:06d}" + (f"-{rewinds}" if rewinds else "")


def save(
    run: Path,
    place: tuple[int, int],
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Any,
    keep: int,
    *,
    every: int = 1,
    shards: Path | None = None,
) -> Path:
    """Write the checkpoint of a `place` (rewinds, step) and remove all but the last `keep` and the best, which their
    states name. Returns its folder.

    `every`: a checkpoint of a step that is no multiple of it (left by a stop) does not count, and is removed with the
    next one. `shards`: a folder that already holds the tensors, to be moved into the checkpoint. Raises
    ResourceError."""
    parent, step = run / "checkpoints", place[1]
    final = parent / name(*place)
    if (final / STATE).is_file():
        return final
    temporary = parent / f".{final.name}.{os.getpid()}.tmp"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in parent.glob(".*.tmp"):  # of a process that was killed while writing
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        if shards is not None:
            disk.sync(shards)
            os.replace(shards, temporary / "shards")
        for kind, held in (("model", model), ("optimizer", optimizer)) if shards is None else ():
            tensors = {k: v.detach().contiguous().cpu() for k, v in held.items()}
            save_file(tensors, temporary / f"{kind}.safetensors")
        written = TENSORS if shards is None else [f"shards/{p.name}" for p in sorted((temporary / "shards").iterdir())]
        state = {**state, SUMS: {file: _sum(temporary / file) for file in written}}
        state = {**state, OWN: _own(state)}
        (temporary / STATE).write_text(disk.to_json(state, ascii=True), "utf-8")
        for file in temporary.iterdir():
            disk.sync(file)
        disk.sync(temporary)
        os.replace(temporary, final)
        disk.sync(parent)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        then = f"go on with: stemma resume {run}"
        raise disk.refused(f"the checkpoint of step {step} in {parent}", error, then=then) from error
    there = steps(run)
    kept = [*[p for p in there if step_of(p) % every == 0][-keep:], there[-1]]
    named = [best_of(p) for p in kept] if state.get("best") else []
    for old in there:
        if old not in kept and old.name not in named:
            remove(old)
    return final


def best_of(path: Path) -> str | None:
    """The name of the best checkpoint, as the checkpoint `path` has it."""
    best = peek(path).get("best")
    return best.get("checkpoint") if isinstance(best, dict) else None


def remove(path: Path) -> None:
    """Remove a checkpoint; if the disk refuses, one too many does no harm."""
    gone = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # a half-removed one must not look like a checkpoint
    with contextlib.suppress(OSError):
        os.replace(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def steps(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first: by rewinds, then by step."""
    return sorted(
        (p for p in (run / "checkpoints").glob("step-*") if NAME.fullmatch(p.name) and p.is_dir()), key=_place
    )


def step_of(path: Path) -> int:
    """The step of a checkpoint, from its name."""
    return _place(path)[1]


def _place(path: Path) -> tuple[int, int]:
    found = NAME.fullmatch(path.name)
    assert found is not None, path
    return int(found[2] or 0), int(found[1])


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run, if it has one."""
    found = steps(run)
    return found[-1] if found else None


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Weights, optimiser tensors and state of a checkpoint, whole, whether one rank wrote it or several. Raises
    CheckpointError if it is damaged, with what to do."""
    state = verify(path)
    if (path / "shards").is_dir():
        from stemma.parallel.checkpoint import read

        with with_advice(path):
            found = read(path / "shards")
        return found["model"], found["optimizer"], state
    with with_advice(path):
        for file in TENSORS:
            disk.regular(path / file)
        model, optimizer = (load_file(path / file) for file in TENSORS)
    return model, optimizer, state


def peek(path: Path) -> dict[str, Any]:
    """The state of a checkpoint, unchecked; empty if it cannot be read."""
    try:
        state = disk.read_json(path / STATE)
    except CheckpointError:
        return {}
    return state if isinstance(state, dict) else {}


def verify(path: Path) -> Any:
    """The state of a checkpoint whose files pass their checksums. Raises CheckpointError if one does not."""
    with with_advice(path):
        if not (path / STATE).exists():
            raise CheckpointError(f"the checkpoint {path} is damaged: there is no {STATE}")
        state = disk.read_json(path / STATE)
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise CheckpointError(f"{path / STATE} is damaged: it has no step")
        if OWN not in state:
            raise CheckpointError(f"{path / STATE} is damaged, or of an older version: it has no checksum")
        if state[OWN] != _own(state):
            raise CheckpointError(f"{path / STATE} is damaged: it is not what was written")
        disk.typed(path / STATE, state, SHAPE)
        for file, expected in (state.get(SUMS) or {}).items():
            if not FILE.fullmatch(file):
                raise CheckpointError(f"{path / STATE} is damaged: it names {brief(file)}, which is no file of it")
            if _sum(path / file) != expected:
                raise CheckpointError(f"{path / file} is damaged: it is not what was written")
    return state


@contextlib.contextmanager
def with_advice(path: Path) -> Iterator[None]:
    """Add what to do to the error of a checkpoint that cannot be read. Raises CheckpointError."""
    try:
        yield
        return
    except FileNotFoundError as error:
        why = f"the checkpoint {path} is damaged: there is no {Path(str(error.filename)).name}"
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or path} cannot be read: {error.strerror or error}; make it readable"
        ) from None
    except safetensors.SafetensorError as error:
        why = f"the checkpoint {path} is damaged: {error}"
    except CheckpointError as error:
        why = str(error)
        if "damaged" not in why and not isinstance(error, MalformedError):
            raise
    run = path.parent.parent
    others = [p for p in steps(run) if _place(p) < _place(path)] if NAME.fullmatch(path.name) else []
    then = f"go on from {others[-1].name}" if others else "begin again from the first step"
    raise CheckpointError(f"{why}; delete the folder {path} to {then} with: stemma resume {run}")


def _sum(path: Path) -> int:
    """The checksum (CRC-32) of a file."""
    disk.regular(path)
    total = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


def _own(state: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps({k: v for k, v in state.items() if k != OWN}, sort_keys=True).encode())
