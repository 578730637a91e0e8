"""A budget of time, tokens or work as a number of steps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stemma.declare import ramps
from stemma.declare.ramps import Ramp
from stemma.declare.recipes import Recipe, Schedule
from stemma.objectives import Objective
from stemma.parallel import World
from stemma.train.assemble import loop_of, objective_of, with_steps
from stemma.train.config import Budget, Plan, budget
from stemma.train.loop import Loop

COUNTED = 500_000  # examples that are counted for a budget in epochs
SAMPLED = 2_000  # examples from which the epochs of a run are foretold
MEASURED = 4  # steps that are timed to turn seconds into a number of steps


def sets_warmup(changes: Mapping[str, Any]) -> bool:
    """Whether changes give a warm-up: by its own path, or within a schedule or a recipe that is given as a whole."""
    for path, value in changes.items():
        if path == "recipe.schedule.warmup":
            return True
        if path in ("recipe", "recipe.schedule"):
            schedule = value.schedule if isinstance(value, Recipe) else value
            if schedule.warmup > 0 if isinstance(schedule, Schedule) else "warmup" in str(schedule):
                return True
    return False


def with_budget(plan: Plan, tokenizer: Any, train: Any, fixed_warmup: bool, world: World | None = None) -> Plan:
    """`plan` with the number of steps that its budget buys (`steps_of`); of a budget of time also with the seconds that
    are left of it, by which the run adjusts its length."""
    begin = time.perf_counter()
    steps, seconds = steps_of(plan, tokenizer, train, world), budget(plan.train.budget).seconds
    if seconds is not None:
        seconds = max(1e-3, seconds - (time.perf_counter() - begin))
    steps, seconds = (steps, seconds) if world is None else world.broadcast((steps, seconds))
    return with_steps(replace(plan, train=replace(plan.train, seconds=seconds)), steps, fixed_warmup)


def steps_of(plan: Plan, tokenizer: Any, train: Any, world: World | None = None) -> int:
    """How many steps the budget buys. Seconds are turned into steps by timing a few on a model that is thrown away."""
    limit: Budget = budget(plan.train.budget)
    goal, ramp = objective_of(plan, tokenizer), plan.recipe.ramp
    rows = goal.rows
    full = goal.examples_of_step(plan)
    step_tokens = full * (goal.size(train) if goal.of_rows else rows * plan.context)
    if limit.steps is not None:
        return limit.steps
    if limit.tokens is not None:
        return ramps.nearest(ramp, full, limit.tokens / step_tokens)
    if limit.epochs is not None:
        return ramps.nearest(ramp, full, examples_in(goal, train, limit.epochs) / full)
    constant = replace(plan, recipe=replace(plan.recipe, ramp=None))
    trial = loop_of(with_steps(constant, MEASURED, False), tokenizer, train, world, started=False)
    if limit.flops is not None:
        return ramps.nearest(ramp, full, limit.flops / (trial.cost() * step_tokens))
    assert limit.seconds is not None
    return _steps_in(limit.seconds, trial, ramp, full)


def examples_in(goal: Objective, view: Any, epochs: float) -> float:
    """The examples of so many epochs of a text: counted, or, past `COUNTED`, as many more in proportion."""
    read, count = 0.0, 0
    for _, follow in itertools.islice(goal.lazy_examples(view), COUNTED):
        read, count = goal.epochs(view, follow), count + 1
        if read >= epochs:
            return count
    return count * epochs / read


def epochs_of(goal: Objective, view: Any, examples: int) -> float:
    """How many times so many examples read a text, judged by the first of them."""
    first = itertools.islice(goal.lazy_examples(view), max(1, min(examples, SAMPLED)))
    found = [goal.epochs(view, follow) for _, follow in first]
    return found[-1] * examples / len(found)


def _steps_in(seconds: float, trial: Loop, ramp: Ramp | None, full: int) -> int:
    """The steps that fit into `seconds`, by the clock. A tenth is kept for checkpoints and the evaluation at the
    end."""
    begin, source = time.perf_counter(), trial.source
    each = _timed(trial)
    if ramp is None:
        return max(1, int(0.9 * (seconds - (time.perf_counter() - begin)) / each))
    # a step costs a constant and so much an example: two sizes give both
    least = -(-ramps.examples(ramp, full, 0, 1) // source.readers) * source.readers
    source.full, source.micro = least, min(source.micro, least // source.readers)
    small = min(each, _timed(trial))
    slope = (each - small) / (full - least) if full > least else 0.0
    left = 0.9 * (seconds - (time.perf_counter() - begin))
    return ramps.longest(ramp, full, left, lambda size: small + slope * max(0, size - least))


def _timed(trial: Loop) -> float:
    """Seconds of a step, the median of a few."""
    trial.advance()  # the first step is slower: pages, kernels, compilation
    times = []
    for _ in range(MEASURED):
        start = time.perf_counter()
        trial.advance()
        times.append(time.perf_counter() - start)
    trial.close()
    return sorted(times)[len(times) // 2]
