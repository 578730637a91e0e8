"""A run directory as values: what it was (`run.json`), how it went (`metrics.jsonl`), what it came to
(`summary.json`), and what the model says (`samples.json`). Only the first must be there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stemma.errors import DataError, UsageError


@dataclass(frozen=True)
class Run:
    """What the files of a run directory say; absent files are empty here."""

    path: Path
    info: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def plan(self) -> dict[str, Any]:
        plan = self.info.get("plan", self.info)
        return plan if isinstance(plan, dict) else {}

    @property
    def name(self) -> str:
        return str(self.plan.get("name") or self.path.name)

    @property
    def structure(self) -> str:
        arch = self.plan.get("arch")
        return str(arch.get("structure", "")) if isinstance(arch, dict) else ""


def read(path: str | Path) -> Run:
    """The run in a directory. Raises UsageError if there is none, DataError for a damaged file."""
    path = Path(path)
    if not (path / "run.json").is_file():
        what = "it holds no run.json" if path.is_dir() else "there is no such directory"
        raise UsageError(f"{path} is not a run: {what}")
    info = _object(path / "run.json")
    steps, warnings = _lines(path / "metrics.jsonl")
    summary, samples = (_object(path / name, optional=True) for name in ("summary.json", "samples.json"))
    return Run(path, info, steps, summary, samples, tuple(warnings))


def _object(path: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(data, dict):
        raise DataError(f"{path} holds a {type(data).__name__}; a JSON object is needed")
    return data


def _lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects of a JSON-lines file. A last line that was cut off (a run stopped while writing) is left out."""
    if not path.is_file():
        return [], []
    found: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            item = json.loads(line) if line.strip() else None
        except ValueError:
            if number == len(lines):
                return found, ["the last line of metrics.jsonl was cut off and is left out"]
            raise DataError(f"{path}, line {number} is not JSON") from None
        if isinstance(item, dict):
            found.append(item)
    return found, []
