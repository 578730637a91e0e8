"""`metrics.jsonl`, one line a step, and `rewinds.jsonl`, one line each time a run went back."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stemma.errors import CheckpointError
from stemma.runs import checkpoint

Record = dict[str, Any]  # one line of metrics.jsonl


class Metrics:
    """`metrics.jsonl`: one JSON object a step, whole lines only. Opening it for a run at `step` drops lines after that
    step, and a line that a killed process left unfinished. Raises ResourceError if the disk refuses."""

    def __init__(self, path: Path, step: int, tensorboard: bool) -> None:
        self.path = path
        self.open(step)
        self.board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=step + 1)

    def open(self, step: int) -> None:
        """Open the file behind the line of `step`."""
        path = self.path
        kept = [record for record in records(path) if record["step"] <= step] if path.exists() else []
        if (there := [record["step"] for record in kept]) != list(range(1, step + 1)):
            lost = step - len(set(there))
            warnings.warn(f"{path} lacks {lost} of the {step} steps that the run has taken; it goes on", stacklevel=2)
        checkpoint.write(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115

    def rewind(self, told: Record) -> None:
        """The run goes back to the step `told["to"]`: what came after it is kept in `rewinds.jsonl`, once, also if a
        process was killed before it had gone back and the next one comes to the same spike."""
        lost = [record for record in records(self.path) if record["step"] > told["to"]]
        path = self.path.with_name("rewinds.jsonl")
        known = [entry.get("number") for entry in records(path, "number")] if path.exists() else []
        if told["number"] not in known:
            with open(path, "ab", buffering=0) as file:
                _append(path, file, json.dumps({**told, "lost": lost}) + "\n")

    def reopen(self, step: int) -> None:
        """Go on behind the line of `step`."""
        self.file.close()
        self.open(step)

    def write(self, record: Record) -> None:
        _append(self.path, self.file, json.dumps(record) + "\n")
        if self.board is not None:
            for key, value in record.items():
                if key != "step":
                    self.board.add_scalar(key, value, record["step"])

    def sync(self) -> None:
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise checkpoint.refused(str(self.path), error, self.path.parent) from error

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


class NoMetrics:
    """Metrics of a rank that writes none."""

    def __enter__(self) -> NoMetrics:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def read_metrics(run: str | Path) -> list[Record]:
    """The records of a run's steps, as far as they are written. Raises CheckpointError if there are none."""
    path = Path(run) / "metrics.jsonl"
    if not path.exists():
        raise CheckpointError(f"{run} holds no metrics.jsonl")
    return records(path)


def records(path: Path, key: str = "step") -> list[Record]:
    """The records in a file of metrics. Skips lines without a whole number `key`, such as a half-written one. Raises
    CheckpointError if the file cannot be read."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; move it away and go on") from None
    found: list[Record] = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get(key), int):
                found.append(record)
    return found


def _append(path: Path, file: Any, line: str) -> None:
    """Append a line to a file, or nothing of it. Raises ResourceError if the disk refuses."""
    raw, size = memoryview(line.encode()), os.fstat(file.fileno()).st_size
    try:
        while raw:
            raw = raw[os.write(file.fileno(), raw) :]
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), size)
        raise checkpoint.refused(str(path), error, path.parent) from error
