"""The files of a run directory: `run.json` (required), `metrics.jsonl`, `summary.json`, `samples.json` and
`outcome.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stemma import disk
from stemma.errors import CheckpointError, DataError, UsageError

INFO = {"plan?": {"name?": str, "data?": str}}
SUMMARY: dict[str, Any] = {"steps?": float, "tokens?": float, "val?": {}}
FILL = {"parts?": [Any], "truth?": [Any], "guesses?": [[{"text": Any}]]}
REPAIR = {"parts?": [Any], "truth?": [Any], "spans?": [Any]}
SAMPLES = {"fill?": [FILL], "continue?": [{}], "repair?": [REPAIR]}
OUTCOME = {
    "prompts": int, "reference": str, "rewards": [str], "models": {str: {str: Any}},
    "samples": [{"prompt": str, "answers": {str: str}, str: Any}],
}  # fmt: skip


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run directory; missing files are empty."""

    path: Path
    info: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)
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


def read(path: str | Path) -> RunFiles:
    """The run in a directory. Raises UsageError if there is none, DataError for a damaged file."""
    path = Path(path)
    if not (path / "run.json").is_file():
        what = "it holds no run.json" if path.is_dir() else "there is no such directory"
        raise UsageError(f"{path} is not a run: {what}")
    info = _object(path / "run.json", INFO)
    steps, warnings = _lines(path / "metrics.jsonl")
    summary, samples = _object(path / "summary.json", SUMMARY), _object(path / "samples.json", SAMPLES)
    outcome = _object(path / "outcome.json", OUTCOME)
    return RunFiles(path, info, steps, summary, samples, outcome, tuple(warnings))


def _object(path: Path, shape: dict[str, Any]) -> dict[str, Any]:
    """The JSON object of a file, of a `shape` of `disk.typed`; empty if there is none."""
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = disk.typed(path, disk.read_object(path), shape)
        return found
    except CheckpointError as error:
        raise DataError(str(error)) from None


def _lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """(objects of a JSON lines file, warnings). A truncated last line is left out."""
    if not path.is_file():
        return [], []
    try:
        lines = list(disk.read_jsonl(path))
    except CheckpointError as error:
        raise DataError(str(error)) from None
    wrong = [number for number, value in lines if value is disk.BROKEN]
    cut = bool(wrong) and wrong == [lines[-1][0]]
    if wrong and not cut:
        raise DataError(f"{path}, line {wrong[0]} is not JSON")
    found = [value for _, value in lines if isinstance(value, dict)]
    return found, ["the last line of metrics.jsonl was cut off and is left out"] if cut else []
