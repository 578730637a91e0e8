"""What a model was tuned for, in a file beside it: `task.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stemma import disk, spec
from stemma.declare.tasks import RowObjective, RowTask
from stemma.errors import CheckpointError, StemmaError

FILE = "task.json"


def save(objective: Any, folder: Path) -> None:
    """Write the task of an objective into the folder of its model, if it has one."""
    if isinstance(objective, RowObjective):
        disk.write_json(folder / FILE, spec.to_dict(objective.task))


def load(folder: Path) -> RowTask | None:
    """The task in the folder of a model; None if there is no file. Raises CheckpointError for one that cannot be
    read."""
    path = folder / FILE
    if not path.is_file():
        return None
    held = disk.read_object(path)
    try:
        return spec.from_dict(RowTask, held)
    except StemmaError as error:
        raise CheckpointError(f"{path} holds no task: {error}") from None
