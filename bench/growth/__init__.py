"""What `bench/growth.py` runs: the parts, and how one try is measured and two sides are compared.

A part is a module here with

    SIDES: tuple[str, ...]          Stemma first
    WORKS: tuple[Work, ...]         the rows
    make(one: Try) -> str           makes the files that all tries read in `one.folder`; says what they are
    warm(one: Try) -> None          imports, and the work on something tiny, in the process of a try
    before(one: Try) -> Any         what is done before the clock starts
    work(one: Try, held: Any) -> Any    what is measured, given what `before` gave. A dictionary of numbers takes the
                                    place of those measured (`{"s": seconds a step}`)

A side that cannot do a kind of work is left out by `Work.sides`.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "src"))

PARTS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__"))
SCRIPT = Path(__file__).resolve().parent.parent / "growth.py"
MEASURES = ("s", "process s", "GB")


@dataclass(frozen=True)
class Work:
    """A row. `bounds`: what Stemma's share of the other's number may be at most, by the name of the measure; `sides`:
    those that can do it (None: all of the part)."""

    name: str
    bounds: tuple[tuple[str, float], ...] = ()
    sides: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Try:
    """One side's try at one kind of work of a part. What it writes goes into `out`, which is removed after it."""

    part: str
    side: str
    work: str
    folder: Path
    scale: float

    @property
    def out(self) -> Path:
        return self.folder / f"out-{self.side}"

    @property
    def ours(self) -> bool:
        return self.side == part_of(self.part).SIDES[0]

    def text(self) -> str:
        return json.dumps(asdict(self) | {"folder": str(self.folder)})

    @staticmethod
    def parse(text: str) -> Try:
        held = json.loads(text)
        return Try(**(held | {"folder": Path(held["folder"])}))


def part_of(name: str) -> Any:
    """The module of a part."""
    return importlib.import_module(f"growth.{name}")


# ---------------------------------------------------------------- one try


def private() -> int:
    """Bytes of memory that only this process has; pages of mapped files too, while they are in memory."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) * 1024


class Peak:
    """The most private memory during a block, in GB."""

    def __enter__(self) -> Peak:
        self.most, self.over = private(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.over.wait(0.005):
            self.most = max(self.most, private())

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.most = max(self.most, private())

    @property
    def gigabytes(self) -> float:
        return self.most / 1e9


def measure(one: Try) -> dict[str, float]:
    """The numbers of a try, in this process."""
    part = part_of(one.part)
    began = time.perf_counter()
    part.warm(one)
    warmed = time.perf_counter() - began
    held = part.before(one)
    with Peak() as peak:
        began = time.perf_counter()
        kept = part.work(one, held)
        seconds = time.perf_counter() - began
    numbers = {"s": seconds, "process s": warmed + seconds, "GB": peak.gigabytes}
    return numbers | kept if isinstance(kept, dict) else numbers


def in_process(one: Try) -> dict[str, float]:
    """The numbers of a try, in a process of its own. What it wrote is removed."""
    done = subprocess.run([sys.executable, str(SCRIPT), "--try", one.text()], capture_output=True, text=True)
    shutil.rmtree(one.out, ignore_errors=True)
    os.sync()  # so that the next one does not wait for this one's pages
    if done.returncode:
        sys.exit(f"{one.side}, {one.work}:\n{done.stdout[-500:]}{done.stderr[-2500:]}")
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


# ---------------------------------------------------------------- sides in turns


def compare(part: Any, work: Work, one: Try, repeats: int) -> dict[str, Any]:
    """The medians of each side, and Stemma's share of each other side: median, least and most of the turns."""
    sides = [s for s in part.SIDES if work.sides is None or s in work.sides]
    turns = [{s: in_process(replace(one, work=work.name, side=s)) for s in sides} for _ in range(repeats)]
    medians = {s: {m: statistics.median(t[s][m] for t in turns) for m in MEASURES if m in turns[0][s]} for s in sides}
    shares: dict[str, dict[str, tuple[float, float, float]]] = {}
    for other in sides[1:]:
        shares[other] = {}
        for m in medians[other]:
            ratios = [t[sides[0]][m] / t[other][m] for t in turns]
            shares[other][m] = statistics.median(ratios), min(ratios), max(ratios)
    return {"medians": medians, "shares": shares}


def heading(sides: tuple[str, ...]) -> str:
    """The first two lines of a table."""
    cells = ["work", *(f"{m}, {s}" for m in MEASURES for s in sides)]
    for m in MEASURES:
        at = cells.index(f"{m}, {sides[-1]}")
        cells[at + 1 : at + 1] = [f"share of {s}" for s in sides[1:]]
    return f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}"


def row(sides: tuple[str, ...], work: Work, found: dict[str, Any]) -> str:
    """A line of the table; a dash for a side that did not take part."""
    cells = [work.name]
    for m in MEASURES:
        cells += [f"{found['medians'].get(s, {})[m]:.2f}" if m in found["medians"].get(s, {}) else "-" for s in sides]
        shares = [found["shares"].get(s, {}).get(m) for s in sides[1:]]
        cells += ["-" if held is None else _share(held, dict(work.bounds).get(m)) for held in shares]
    return f"| {' | '.join(cells)} |"


def _share(ratios: tuple[float, float, float], bound: float | None) -> str:
    median, least, most = ratios
    said = "" if bound is None else f", at most {bound:.2f}{'' if median <= bound else ' ✗'}"
    return f"**{median:.2f}** ({least:.2f}-{most:.2f}{said})"
