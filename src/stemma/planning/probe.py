"""A few real steps on this machine, which say how fast it is."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import NamedTuple

import torch

from stemma.nn.model import Model
from stemma.planning.batch import Words, texts
from stemma.rewrites.engine import apply
from stemma.train.assemble import nets_of, objective_of, with_steps
from stemma.train.config import Plan
from stemma.train.loop import Loop
from stemma.train.source import TextSource

WARM = 2  # steps that fill caches, allocators and the optimiser's state
STEPS = 5
MOST = 25  # steps at most, on a machine where they differ
APART = 0.1  # how far the middle half of the steps may lie apart


class Timing(NamedTuple):
    """Medians of a step's `seconds` on the clock and of its `cpu` seconds of all threads, over so many `steps`."""

    seconds: float
    cpu: float
    steps: int


def loop(plan: Plan, steps: int = STEPS) -> Loop:
    """A loop over texts without meaning, of the plan's own shapes and settings, at the full batch."""
    plan = with_steps(replace(plan, recipe=replace(plan.recipe, ramp=None)), steps, False)
    words = Words(plan.text, plan.dims.vocab)
    model = Model(plan.arch, plan.dims).initialise(plan.seed)
    apply(model, plan.rewrites, plan.seed)
    nets = nets_of(plan, None) if all(net.learns for net in plan.nets) else {}
    plan = plan if nets else replace(plan, nets=())
    objective = objective_of(plan, words)
    return Loop(plan, model, objective, TextSource(plan, objective, texts(plan, words)), nets)


def timed(plan: Plan, steps: int = STEPS, trial: Loop | None = None) -> Timing:
    """How long a step takes here: medians of `steps` after two that warm up, and of more where other work on the
    machine makes them differ. With the settings of the run: its rows, threads and precision."""
    before = torch.get_num_threads()
    if plan.train.threads is not None:
        torch.set_num_threads(plan.train.threads)
    try:
        trial = trial or loop(plan, WARM + MOST)
        for _ in range(WARM):
            _step(trial)
        found = [_step(trial) for _ in range(steps)]
        while len(found) < MOST and _apart([wall for wall, _ in found]) > APART:
            found += [_step(trial) for _ in range(steps)]
    finally:
        torch.set_num_threads(before)
    seconds, cpu = (statistics.median(part) for part in zip(*found, strict=True))
    return Timing(seconds, cpu, len(found))


def _step(trial: Loop) -> tuple[float, float]:
    begin, busy = time.perf_counter(), time.process_time()
    trial.advance()
    if trial.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, time.process_time() - busy


def _apart(times: list[float]) -> float:
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / middle
