"""A folder of rows that grow by whole rounds, so that work that was stopped or killed goes on where it was.

OUT/NAME           the rows, JSON lines
OUT/state.json     the plan, how far it is, and what was left out, by reason
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from stemma import disk
from stemma.errors import CheckpointError, UsageError

SHAPE = {"plan": {str: Any}, "bytes": int}  # of every state


class Ledger:
    """The rows of a folder `out`, in its file `name`. `plan`: what may not change between two commands."""

    def __init__(self, out: str | Path, name: str, plan: Mapping[str, Any]) -> None:
        self.out, self.rows, self.plan = Path(out), Path(out, name), dict(plan)

    def restored(self, shape: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]] | None:
        """(state, rows) of what was committed; None where nothing was begun, and then the folder is made. `shape`: of
        the state beside SHAPE. Raises UsageError for a folder of another plan, and one with rows and no state."""
        state = self.out / "state.json"
        if not state.is_file():
            if self.rows.exists():
                raise UsageError(f"{self.rows} is there, and no state.json beside it; choose a new directory")
            with disk.writing(self.out):
                self.out.mkdir(parents=True, exist_ok=True)
            return None
        held = disk.read_object(state)
        disk.typed(state, held, {**SHAPE, **shape})
        for key, value in self.plan.items():
            if (was := held["plan"].get(key)) != value:
                raise UsageError(f"{self.out} was begun with {key}={was}, not {value}; choose a new directory")
        with disk.writing(self.out), open(self.rows, "ab") as file:
            if file.tell() < held["bytes"]:
                raise CheckpointError(f"{self.rows} is shorter than it was written; put it back or begin anew")
            file.truncate(held["bytes"])  # what a killed process wrote of a round
        lines = self.rows.read_text("utf-8").split("\n")[:-1]  # other ends of lines may stand in a text
        return held, [json.loads(line) for line in lines]

    def commit(self, rows: Sequence[Any], state: Mapping[str, Any], plan: Mapping[str, Any] | None = None) -> None:
        """Add the rows of a round, and then the state. `plan`: with what may change, where that is kept too."""
        raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        with disk.writing(self.out), open(self.rows, "ab") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        held = {"plan": dict(plan or self.plan), "bytes": size, **state}
        disk.write_json(self.out / "state.json", held)


@dataclass
class Progress:
    """How far work is: items asked for, rows kept, and how many items gave none, by reason."""

    asked: int = 0
    kept: int = 0
    counts: Counter[str] = field(default_factory=Counter)


class RowMaker(ABC):
    """Rows that a model makes of `items`, `size` of them a round, in the folder `out` (`Ledger`). `made`: all rows so
    far. Raises UsageError for a folder of another plan."""

    def __init__(
        self, out: str | Path, plan: Mapping[str, Any], items: Sequence[Any], size: int, progress: Any = None
    ) -> None:
        self.items, self.size = list(items), size
        self.ledger = Ledger(out, "rows.jsonl", plan)
        self.made: list[dict[str, Any]] = []
        self.progress: Any = progress or Progress()
        shape = {f.name: {str: int} if f.name == "counts" else int for f in fields(self.progress)}
        if (held := self.ledger.restored(shape)) is not None:
            state, self.made = held
            for name in shape:
                setattr(self.progress, name, Counter(state[name]) if name == "counts" else state[name])

    @property
    def rows(self) -> Path:
        """The file of the rows."""
        return self.ledger.rows

    @abstractmethod
    def round(self, first: int, items: Sequence[Any]) -> list[dict[str, Any]]:
        """The rows of the next `items`, of which the first has the number `first`. Counts in `progress.counts` why an
        item gives none."""

    def run(self, said: Callable[[Any], None] = lambda _: None) -> Any:
        """Make what is left, and tell the progress after each round; returns the progress."""
        done = self.progress
        with disk.lock(self.ledger.out):
            while done.asked < len(self.items):
                items = self.items[done.asked : done.asked + self.size]
                new = self.round(done.asked, items)
                done.asked, done.kept = done.asked + len(items), done.kept + len(new)
                self.ledger.commit(new, asdict(done) | {"counts": dict(done.counts)})
                self.made += new
                said(done)
        return done
