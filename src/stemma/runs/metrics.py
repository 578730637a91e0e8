"""`metrics.jsonl`, one line a step, and `rewinds.jsonl`, one line each time a run went back."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stemma import disk
from stemma.errors import CheckpointError, MalformedError, require

Record = dict[str, Any]  # one line of metrics.jsonl


def check_tensorboard() -> None:
    """Raise ResourceError without the package tensorboard."""
    require("tensorboard", "train.tensorboard=true", "'stemma-lm[tensorboard]'")


class Metrics:
    """`metrics.jsonl`: one JSON object a step, whole lines only. Opening it for a run at `step` drops later lines, and a
    line that a killed process left unfinished. Raises ResourceError if the disk refuses."""

    def __init__(self, path: Path, step: int, tensorboard: bool) -> None:
        self.path, self.then = path, f"go on with: stemma resume {path.parent}"
        self.open(step)
        self.board: Any = None
        if tensorboard:
            self.open_board(step)

    def open(self, step: int) -> None:
        """Open the file to append after the line of `step`."""
        path = self.path
        kept = [record for record in records(path) if record["step"] <= step] if path.exists() else []
        if (there := [record["step"] for record in kept]) != list(range(1, step + 1)):
            lost = step - len(set(there))
            warnings.warn(f"{path} lacks {lost} of the {step} steps that the run has taken; it goes on", stacklevel=2)
        disk.write(path, "".join(json.dumps(record) + "\n" for record in kept), then=self.then)
        self.file = disk.Appender(path, then=self.then)

    def open_board(self, step: int) -> None:
        """Write curves that go on after `step`: TensorBoard drops what earlier writers said of later steps."""
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        if self.board is not None:
            self.board.close()
        self.board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=step + 1)

    def rewind(self, record: Record) -> None:
        """Move the lines after step `record["to"]` into `rewinds.jsonl`. Once: if a process was killed before it had gone
        back, the next one comes to the same spike and adds nothing."""
        lost = [line for line in records(self.path) if line["step"] > record["to"]]
        path = self.path.with_name("rewinds.jsonl")
        known = [entry.get("number") for entry in records(path, "number")] if path.exists() else []
        if record["number"] not in known:
            with contextlib.closing(disk.Appender(path, then=self.then)) as file:
                file.add({**record, "lost": lost})

    def reopen(self, step: int) -> None:
        """Go on after the line of `step`."""
        self.file.close()
        self.open(step)
        if self.board is not None:
            self.open_board(step)

    def write(self, record: Record) -> None:
        self.file.add(record)
        if self.board is not None:
            for key, value in record.items():
                if key != "step":
                    self.board.add_scalar(key, value, record["step"])

    def sync(self) -> None:
        self.file.sync()

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
    """The records in a file of metrics. Skips lines that no run writes, such as a half-written one: without a whole
    number `key`, or with a loss that is no number. Raises CheckpointError if the file cannot be read."""
    values = (value for _, value in disk.read_jsonl(path))
    return [value for value in values if _is_record(value, key)]


def _is_record(value: Any, key: str) -> bool:
    try:
        disk.typed(Path(key), value, {key: int, "loss?": float})
    except MalformedError:
        return False
    return value.get("loss", 0) is not None
