"""The command `data clean`: reads a text, writes a folder of JSON lines and a report."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stemma import disk
from stemma import spec as values
from stemma.data.cleaning import Tally, clean, nothing_left
from stemma.data.documents import Document
from stemma.data.sources import read
from stemma.data.steps import CleaningStep
from stemma.errors import UsageError

PART = 64_000_000  # bytes of text of one file, about
REPORT = "report.json"


def row(document: Document) -> dict[str, Any]:
    """A document as a JSON row without empty fields, as `stemma.data.sources` reads it."""
    held = {("lang" if k == "language" else k): v for k, v in document._asdict().items() if v or k == "text"}
    held.pop("part", None)
    return held


def ready(out: Path, about: dict[str, Any], going_on: bool) -> None:
    """Make the folder `out`. Raises UsageError if it holds anything but, with `going_on`, the same plan."""
    work = out / ".work" / "plan.json"
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; a cleaned text needs a directory")
    held = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    same = going_on and work.is_file() and disk.read_json(work) == about
    stale = [name for name in held if not (name == ".work" or (name.startswith(".") and name.endswith(".tmp")))]
    if stale or (".work" in held and not same):
        what = "holds a cleaning of another plan" if not stale else f"is not empty (it holds {stale[0]})"
        raise UsageError(f"{out} {what}; choose a new directory")
    with disk.writing(out):
        (out / ".work" if going_on else out).mkdir(parents=True, exist_ok=True)
    if going_on:
        disk.write_json(work, about, indent=None)


def describe(spec: str, steps: Sequence[CleaningStep], tasks: int) -> dict[str, Any]:
    """The plan of a cleaning as plain data."""
    return {"source": spec, "steps": [values.to_dict(step) for step in steps], "tasks": tasks}


def write(spec: str, out: Path, steps: Sequence[CleaningStep]) -> dict[str, Any]:
    """Clean `spec` into `out/text` in this process and return the report. An interrupted one can be run again."""
    source = read(spec)
    ready(out, describe(spec, steps, 1), False)
    scratch = out / f".{secrets.token_hex(6)}.tmp"
    report: list[Tally] = []
    with disk.lock(out):
        for left in out.glob(".*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            with disk.writing(out):
                scratch.mkdir()
            number = size = 0
            file = None
            try:
                for document in clean(source.documents(), steps, report):
                    with disk.writing(out):
                        if file is None or size >= PART:
                            if file is not None:
                                file.close()
                                number, size = number + 1, 0
                            file = open(scratch / f"part-{number:05d}.jsonl", "w", encoding="utf-8", newline="\n")  # noqa: SIM115
                        line = disk.to_json(row(document), indent=None)
                        file.write(line)
                        size += len(line) - 1
                if file is not None:
                    with disk.writing(out):
                        file.flush()
                        os.fsync(file.fileno())
            finally:
                if file is not None:
                    file.close()
            return finish(out, scratch, report, describe(spec, steps, 1))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def finish(out: Path, text: Path, report: Sequence[Tally], about: dict[str, Any]) -> dict[str, Any]:
    """Move the cleaned text to its place, write the report and return it. Raises DataError if no document is left."""
    for left in text.glob(".*.tmp"):  # of a task that was killed
        left.unlink()
    parts = sorted(text.glob("part-*.jsonl"))
    digest, documents = hashlib.sha256(), 0
    for path in parts:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                documents += block.count(b"\n")
    if not documents and report:
        raise nothing_left(str(about["source"]), report)
    found = about | {
        "documents": documents,
        "sha256": digest.hexdigest(),
        "report": [{k: v for k, v in dataclasses.asdict(tally).items() if k != "places"} for tally in report],
    }
    with disk.writing(out):
        if (out / "text").exists():
            shutil.rmtree(out / "text")
        text.rename(out / "text")
    disk.write_json(out / REPORT, found, indent=1)
    return found
