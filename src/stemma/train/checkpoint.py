"""Checkpoints of a run: `checkpoints/step-000050/{model.safetensors, optimizer.safetensors, state.json}`.

A checkpoint is written under a temporary name, forced to disk and renamed: it exists whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from stemma.errors import CheckpointError, ResourceError


def write(path: Path, data: str | bytes) -> None:
    """Write a file so that it is seen whole or not at all. Raises ResourceError if the disk refuses."""
    raw = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ResourceError(f"{path} could not be written: {error.strerror or error}") from error


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON, atomically."""
    write(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON. Raises CheckpointError if the file is missing or malformed."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def save(
    run: Path,
    place: tuple[int, int],
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Any,
    keep: int,
    *,
    shards: Path | None = None,
) -> Path:
    """Write the checkpoint of a `place` (times the run went back, step) and remove all but the last `keep`. Returns its
    directory. `shards`: a folder that holds the tensors already, to be moved into the checkpoint."""
    rewinds, step = place
    parent = run / "checkpoints"
    final = parent / (f"step-{step:06d}" + (f"-{rewinds}" if rewinds else ""))
    if (final / "state.json").is_file():
        return final
    temporary = parent / f".{final.name}.{os.getpid()}.tmp"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in parent.glob(".*.tmp"):  # of a process that was killed while writing
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        if shards is not None:
            _sync(shards)
            os.replace(shards, temporary / "shards")
        for name, held in (("model", model), ("optimizer", optimizer)) if shards is None else ():
            tensors = {k: v.detach().contiguous().cpu() for k, v in held.items()}
            save_file(tensors, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n", "utf-8")
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        os.replace(temporary, final)
        _sync(parent)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ResourceError(f"the checkpoint of step {step} could not be written to {parent}: {error}") from error
    for old in steps(run)[:-keep]:
        gone = old.with_name(f".{old.name}.{os.getpid()}.tmp")  # a half-removed one must not look like a checkpoint
        os.replace(old, gone)
        shutil.rmtree(gone, ignore_errors=True)
    return final


def steps(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first: those from before the run went back come before those after it."""
    found = [p for p in (run / "checkpoints").glob("step-*") if (p / "state.json").is_file()]
    return sorted(found, key=_place)


def step_of(path: Path) -> int:
    """The step of a checkpoint, from its name."""
    return _place(path)[1]


def _place(path: Path) -> tuple[int, int]:
    step, _, rewinds = path.name.removeprefix("step-").partition("-")
    return int(rewinds or 0), int(step)


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run, if it has one."""
    found = steps(run)
    return found[-1] if found else None


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Weights, optimiser tensors and state of a checkpoint, whole, whether one process wrote it or several. Raises
    CheckpointError if it is damaged."""
    if (path / "shards").is_dir():
        from stemma.parallel.checkpoint import read

        found = read(path / "shards")
        return found["model"], found["optimizer"], read_json(path / "state.json")
    try:
        return (
            load_file(path / "model.safetensors"),
            load_file(path / "optimizer.safetensors"),
            read_json(path / "state.json"),
        )
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {error}") from None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
