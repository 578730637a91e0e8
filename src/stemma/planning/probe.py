"""A few real steps on this machine, which say how fast it is."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch

from stemma.nn.model import Model
from stemma.planning import trace
from stemma.train.config import Plan
from stemma.train.loop import Loop
from stemma.train.run import objective_of, settled

STEPS = 5


def loop(plan: Plan, steps: int = STEPS) -> Loop:
    """A loop over texts without meaning, of the plan's own shapes."""
    plan = replace(settled(plan, steps, False), nets=())
    words = trace.Words(plan.text, plan.dims.vocab)
    model = Model(plan.arch, plan.dims).initialise(plan.seed)
    return Loop(plan, model, objective_of(plan, words), trace.Texts(words, plan.context))


def timed(plan: Plan, steps: int = STEPS) -> float:
    """Seconds of a step here: the median of `steps` after one that warms up."""
    trial = loop(plan, steps + 1)
    times = []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        trial.advance()
        if trial.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])
