"""What `stemma plan` predicts beside what a step takes here: memory and time.

    python bench/plan.py [--cases N] [--json FILE]

Memory: bytes that torch's CPU allocator holds at once during the third step of the real loop (its own events, by the
profiler), and with them the weights and the optimiser's state that were there before. That is what the plan predicts:
tensors, not the interpreter, the libraries or the allocator's slack. Time: the median of twenty steps of another loop,
beside the probe's own median; on the clock, which other work on the machine moves, and in seconds of the CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from stemma.nn.parts import Dropout
from stemma.parallel import Mesh
from stemma.planning import HARDWARE, Outlook, estimate
from stemma.planning.device import forgetful
from stemma.planning.probe import loop, timed
from stemma.train import resolve

SETTINGS = {"train.precision": "fp32", "train.micro": 8, "train.threads": 1, "dims.vocab": 2000}
CASES: list[tuple[str, dict[str, Any], bool]] = [
    ("bert", {}, False),
    ("roberta", {"recipe.batch": 4096, "dims.layers": 4}, False),
    ("gpt2", {"recipe.batch": 2048}, False),
    ("llama", {"dims.layers": 6, "recipe.batch": 2048}, False),
    ("t5", {"recipe.optimizer": "AdamW()", "recipe.lr": 1e-3}, False),
    ("bert", {"dims.layers": 8}, True),
    ("llama", {"dims.layers": 8, "arch.dropout": Dropout()}, True),
]


def planned(name: str, changes: dict[str, Any]) -> Any:
    return resolve(name, budget="20 steps", overrides=SETTINGS | changes)


def predicted(plan: Any, recompute: bool) -> float:
    """Bytes of a step, by the plan alone."""
    view = Outlook(plan, recompute=recompute)
    return estimate(view, Mesh(), HARDWARE["cpu"], plan.train.micro).memory


def measured(plan: Any, recompute: bool) -> float:
    """Bytes that a step holds at once."""
    trial = loop(plan)
    if recompute:
        forgetful(trial.model)
    for _ in range(2):
        trial.advance()
    held = [*trial.model.parameters(), *(t for s in trial.optimizer.state.values() for t in s.values())]
    held += [*(p for net in trial.nets.values() for p in net.parameters()), *trial.model.buffers()]
    held = list({id(t): t for t in held}.values())
    before = sum(t.numel() * t.element_size() for t in held)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof:
        trial.advance()
    live = peak = 0
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return float(before + peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first so many")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, changes, recompute in CASES[: options.cases]:
        plan = planned(name, changes)
        a, b = predicted(plan, recompute), measured(plan, recompute)
        row: dict[str, Any] = {"name": name, "layers": plan.dims.layers, "recompute": recompute}
        row |= {"predicted_mb": a / 1e6, "measured_mb": b / 1e6, "off": a / b - 1}
        if not recompute:
            said, trial, times = timed(plan), loop(plan, 22), []
            for _ in range(22):
                begin, busy = time.perf_counter(), time.process_time()
                trial.advance()
                times.append((time.perf_counter() - begin, time.process_time() - busy))
            real, cpu = (statistics.median(part) for part in zip(*times[2:], strict=True))
            row |= {"steps": said.steps, "probe_s": said.seconds, "step_s": real, "time_off": said.seconds / real - 1}
            row |= {"probe_cpu_s": said.cpu, "step_cpu_s": cpu, "cpu_off": said.cpu / cpu - 1}
        rows.append(row)
        print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
