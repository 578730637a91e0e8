"""Training speed: Stemma's loop beside transformers' Trainer, on the same weights' shape, data and batch.

    python bench/train.py [--threads 2] [--seconds 360] [--json FILE] [--skip-resume] [NAME ...]
    python bench/train.py --alike bf16 [--compile]
    LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4 python bench/train.py

For each design all sides train the same small network on the same token rows: full rows, no padding, no dropout, AdamW
with clipping. Steps are taken in turns in one process (two of Stemma's, two of each other side's, and so on), so that
whatever else the machine does hits all; the table shows the median of the ratios of neighbours, with the extremes.
Masked models predict 15 % of the tokens, chosen beforehand, the same on all sides.

The first command: Stemma as its recipes train on this machine (compiled; bf16 where the processor multiplies it, else
fp32), beside the Trainer with its defaults (fp32, not compiled) and at its best (compiled, the same precision as
Stemma; `--best` names another). ELECTRA and XLNet, which the Trainer has no loss for, stand beside an ordinary loop around
transformers' networks (`bench/training/plain.py`), also twice. `t5-114` is T5 with its published rows, 512 tokens read
and 114 written. `MFU` is the share of the machine's own matrix product, measured in the same precision (1024 x 1024),
that the model's operations make up. The second: both sides in one precision. Under an `LD_PRELOAD` of tcmalloc
everything runs on that allocator, and the first line says so.

The last lines: a run that is stopped in the middle of an epoch and goes on from its checkpoint, beside one that was
not stopped, masks drawn on the way (`bench/training/resume.py`).

What differs on purpose: Stemma reads the vocabulary matrix only for targets, multiplies causal rows in blocks, keeps
freed memory (which helps the others in the same process too), and its optimiser is fused.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from training import PLAIN, TRAINER
from training.ours import ours, plan_of, rows_of
from training.plain import plain
from training.resume import MORE, STOP, compare
from training.trainer import theirs

from stemma.train import meter
from stemma.train.loop import pick_device, pick_precision
from stemma.train.pages import keep_pages

NAMES = (*TRAINER, *PLAIN)


@dataclass(frozen=True)
class Side:
    """One of those that are timed in turns."""

    ours: bool
    precision: str
    compiled: bool
    best: bool = False

    def title(self, name: str) -> str:
        if self.ours:
            return "Stemma"
        return ("Plain loop" if name in PLAIN else "Trainer") + (", best" if self.best else "")


def measure(name: str, sides: tuple[Side, ...], seconds: float, cpu: bool) -> dict[str, Any]:
    """Blocks of steps in turns for `seconds`; tokens a second of each side, and the ratios of the first to the others
    in each turn."""
    clock = time.process_time if cpu else time.perf_counter
    rows = rows_of(name)
    with tempfile.TemporaryDirectory() as folder:
        steppers: list[Callable[[], float]] = []
        counts, cost = [], 0.0
        for i, side in enumerate(sides):
            if side.ours:
                step, loop = ours(name, rows, side.precision, side.compiled)
                cost = loop.cost()
                parameters: Any = loop.learners.parameters()
            else:
                step, net = (
                    plain(name, rows, side.precision, side.compiled)  # type: ignore[arg-type]
                    if name in PLAIN
                    else theirs(name, rows, side.precision, side.compiled, f"{folder}/{i}")  # type: ignore[arg-type]
                )
                parameters = net.parameters()
            steppers.append(step)
            counts.append(sum(p.numel() for p in parameters))
        for step in steppers:
            for _ in range(3):
                step()
        tokens = rows.shape.tokens
        speeds: list[list[float]] = [[] for _ in sides]
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(speeds[0]) < 5:
            for step, found in zip(steppers, speeds, strict=True):
                begin = clock()
                step()
                step()
                found.append(2 * tokens / (clock() - begin))
        for step in steppers:
            if hasattr(step, "finish"):
                step.finish()
    results = []
    for side, count, found in zip(sides, counts, speeds, strict=True):
        ratios = [a / b for a, b in zip(speeds[0], found, strict=True)]
        speed = statistics.median(found)
        results.append(
            {
                "side": side.title(name),
                "precision": side.precision,
                "compiled": side.compiled,
                "parameters": count,
                "tokens_per_second": speed,
                # operations are not counted for two streams, and the machine's peak is one of the wall clock
                "mfu": None if cpu or name == "xlnet" else speed * cost / meter.peak("cpu", side.precision == "bf16"),
                "ratio": statistics.median(ratios),
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
            }
        )
    return {"name": name, "turns": len(speeds[0]), "sides": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=360.0, help="of measuring, over all designs")
    parser.add_argument("--best", choices=("auto", "fp32", "bf16"), default="auto", help="precision of the best sides")
    parser.add_argument("--alike", choices=("fp32", "bf16"), help="both sides in this precision")
    parser.add_argument("--compile", action="store_true", help="with --alike: both sides compiled")
    parser.add_argument(
        "--cpu-time", action="store_true", help="seconds of the processor, for a busy machine; 1 thread"
    )
    parser.add_argument("--skip-resume", action="store_true", help="leave out what a stop in mid-epoch changes")
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("names", nargs="*", default=list(NAMES))
    options = parser.parse_args()
    if options.cpu_time and options.threads != 1:
        parser.error("--cpu-time counts waiting threads too; it needs --threads 1")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    if unknown := [n for n in options.names if n not in NAMES]:
        parser.error(f"no design {unknown[0]!r}; choose from {', '.join(NAMES)}")
    plan = plan_of(NAMES[0], options.best)
    best = pick_precision(plan, pick_device(plan))
    sides: tuple[Side, ...] = (Side(True, best, True), Side(False, "fp32", False), Side(False, best, True, True))
    if options.alike:
        sides = tuple(Side(own, options.alike, options.compile) for own in (True, False))
    kept = keep_pages()
    allocator = "tcmalloc" if "tcmalloc" in os.environ.get("LD_PRELOAD", "") else f"glibc, pages kept: {kept}"
    peaks = {kind: meter.peak("cpu", kind == "bf16") / 1e9 for kind in ("fp32", "bf16")}
    told = ", ".join(f"{kind} {peak:.0f}" for kind, peak in peaks.items())
    print(f"{options.threads} threads, torch {torch.__version__}, {allocator}; matrix product in GFLOP/s: {told}")
    print(f"{'':8}{'':18}{'tokens/s':>10}{'MFU':>6}{'Stemma is':>11}   lowest-highest of turns")
    results = []
    for name in options.names:
        row = measure(name, sides, options.seconds / len(options.names), options.cpu_time)
        results.append(row)
        for i, side in enumerate(row["sides"]):
            ratio = f"{side['ratio']:>10.2f}x   {side['ratio_low']:.2f}-{side['ratio_high']:.2f} of {row['turns']}"
            used = "" if side["mfu"] is None else f"{side['mfu']:.0%}"
            kind = f"{side['precision']}{', compiled' if side['compiled'] else ''}"
            print(
                f"{name if i == 0 else '':8}{side['side']:18}{side['tokens_per_second']:>10,.0f}{used:>6}"
                f"{ratio if i else '':38}{kind}",
                flush=True,
            )
    about: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": options.threads,
        "allocator": allocator,
        "gflops": peaks,
        "clock": "cpu" if options.cpu_time else "wall",
    }
    if not options.skip_resume:
        about["resumed"] = compare()
        for side, apart in about["resumed"].items():
            print(
                f"{side}: stopped after {STOP} steps and resumed, {MORE} steps later parameters differ by {apart:.1e}"
            )
    if options.json:
        Path(options.json).write_text(json.dumps({**about, "results": results}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
