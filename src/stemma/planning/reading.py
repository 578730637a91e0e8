"""What a run that learns from rows will read: its own batches, made by its own source before it is begun. Of a run
that samples, each answer is taken to be as long as it may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stemma.alignment.experience import Experience, Facts
from stemma.alignment.online import OnlineSource
from stemma.alignment.rollouts import Rollout
from stemma.declare.alignment import Online, Reward
from stemma.objectives import Batch, Objective, reference
from stemma.planning.live import with_values
from stemma.train.assemble import fit_to_tokenizer, objective_of, with_steps
from stemma.train.budgets import steps_of
from stemma.train.config import Plan, budget
from stemma.train.prepare import prepare, split
from stemma.train.source import MICRO, Source, source_of
from stemma.train.start import inspect

LOOKED_AT = 4000  # texts of the first steps whose batches are made
VALUES = ("keep", "rows", "groups", "liked", "sizes")  # tensors of a batch on whose values the shapes of a loss depend
SILENT = Reward("builtin:words:1")  # in the place of rewards that judge nothing here


class Size(NamedTuple):
    """How large a batch is: its `rows` and the places of one, its targets, all places that some network reads (those
    of mismatched answers too), and whether gradients of others are there already (`later`)."""

    rows: int
    width: int
    targets: int
    read: int
    later: bool = False


@dataclass(frozen=True)
class Reading:
    """What a run reads. `steps`: None where a budget of time decides; `examples`: rows or prompts of a step; `micro`:
    of them, or of answers, at once; `updates`, `batches`: of a step, the most micro-batches of an update; `tokens`: of
    an update pass over a step, its mean; `largest`: batches among
    which the dearest is, each with whether it is a later one of its update; `seen`: steps whose batches
    were made; `bytes`: of the largest step's batches; `prompt`: tokens of the longest one; `written`: tokens of the
    answers of a step with their prompts."""

    plan: Plan
    objective: Objective
    rows: int
    held: int
    steps: int | None
    examples: int
    micro: int
    updates: int
    batches: int
    tokens: float
    mismatched: float
    largest: tuple[tuple[Batch, bool], ...]
    seen: int
    bytes: int
    prompt: int = 0
    written: float = 0.0
    readers: int = 1

    def batch(self, chosen: Batch) -> Batch:
        """A batch on the meta device."""
        return {k: with_values(v) if k in VALUES else v.to("meta") for k, v in chosen.items()}


def size_of(batch: Batch, later: bool = False) -> Size:
    """The size of a batch."""
    ids = batch["input_ids"]
    read = sum(t.numel() for name, t in batch.items() if name.endswith("input_ids"))
    rows, width = ids.shape
    return Size(rows, width, len(batch["targets"]) if "targets" in batch else 0, read, later)


def read(plan: Plan, folder: Path, kind: str, readers: int = 1, micro: int | None = None) -> Reading:
    """What the run of a plan reads on a device of this `kind` (cpu, cuda), as one of `readers` processes. `folder`: for
    the store of its rows, which a later run finds in the cache."""
    source, objective, plan, amounts, steps = opened(plan, folder, kind, readers, micro)
    taken: list[list[list[Batch]]] = []
    seen = 0
    for updates in _steps(source, objective):
        taken.append(updates)
        seen += sum(len(b["input_ids"]) for batches in updates for b in batches)
        if seen >= LOOKED_AT or (steps is not None and len(taken) == steps):
            break
    every = [(batch, i > 0) for updates in taken for batches in updates for i, batch in enumerate(batches)]
    sizes = [size_of(*one) for one in every]
    written = prompt = 0.0
    if isinstance(source, OnlineSource):
        answers = [one for one in _experience(source, 0, 0).rollouts]
        prompt = max(len(source.prompts[i].ids) for i in range(len(source.prompts)))
        written = sum(len(one.prompt.ids) + len(one.ids) for one in answers)
    passes = [sum(size_of(b).read for batches in updates for b in batches) for updates in taken]
    other = [sum(b["other_input_ids"].numel() for bs in updates for b in bs if "other_input_ids" in b)
             for updates in taken]  # fmt: skip
    return Reading(
        plan, objective, *amounts, steps, source.full, source.micro, len(taken[0]),
        max(len(batches) for updates in taken for batches in updates),
        readers * sum(passes) / len(taken), readers * sum(other) / len(taken),
        tuple(every[i] for i in _dearest(sizes)), len(taken),
        max(sum(t.nbytes for bs in updates for b in bs for t in b.values()) for updates in taken),
        int(prompt), written, readers,
    )  # fmt: skip


def opened(
    plan: Plan, folder: Path, kind: str, readers: int = 1, micro: int | None = None
) -> tuple[Source, Objective, Plan, tuple[int, int], int | None]:
    """(the source of a plan's batches, its objective, the plan as a run would have it, rows that are learnt and held
    out, the steps that its budget buys). Rewards are not loaded."""
    if isinstance(goal := plan.objective, Online) and goal.rewards:
        plan = replace(plan, objective=replace(goal, rewards=(SILENT,)))
    tokenizer, least = inspect(plan)
    store, tokenizer = prepare(plan, folder, tokenizer, True)
    plan = fit_to_tokenizer(plan, tokenizer, store.languages)
    plan = replace(plan, dims=replace(plan.dims, vocab=max(plan.dims.vocab, least)))
    train, held = split(plan, store)
    limit = budget(plan.train.budget)
    steps = None if limit.seconds or limit.flops else steps_of(plan, tokenizer, train)
    plan = with_steps(plan, steps or plan.recipe.steps or 1, True)
    objective = objective_of(plan, tokenizer)
    if getattr(goal, "precompute", False):  # the reference is gone before the first step
        plan = replace(plan, nets=tuple(net for net in plan.nets if net.role != reference.ROLE))
        objective.known = reference.Unknown()  # type: ignore[attr-defined]
    rows = micro or plan.train.micro or _micro(plan, objective, train, kind)
    plan = replace(plan, train=replace(plan.train, micro=rows))
    source = source_of(plan, objective, train, folder)
    source.share(0, readers)
    return source, objective, plan, (len(train), len(held)), steps


def _micro(plan: Plan, objective: Objective, view: Any, kind: str) -> int:
    """Rows that a device of this kind takes at once where nobody says, as the run's source decides."""
    own = objective.size(view)
    long = plan.context if isinstance(plan.objective, Online) else min(plan.context, -(-own // objective.rows))
    return max(1, MICRO[kind] // long)


def _steps(source: Source, objective: Objective) -> Iterator[list[list[Batch]]]:
    """The micro-batches of each update, step after step."""
    if not isinstance(source, OnlineSource):
        for draw in source.draws(source.cursor_type(), 0):
            yield draw.updates
        return
    step = slot = 0
    while True:
        experience = _experience(source, step, slot)
        yield source.updates(experience)
        step, slot = step + 1, slot + source.full


def _experience(source: OnlineSource, step: int, slot: int) -> Experience:
    """A step of answers that are as long as they may be, of which nothing is known but zeros."""
    objective = source.objective
    slots = range(slot, slot + source.full)
    found = objective.offline_answers(source, slots)
    if found is None:
        found = [one for i in slots for one in _answers(source, i)]
    facts = [_facts(source, one) for one in found]
    cursor = replace(source.cursor_type(), slot=slots.stop)
    experience = Experience(step, found, torch.zeros(len(found)), cursor, facts)
    objective.set_advantages(experience)
    return experience


def _answers(source: OnlineSource, slot: int) -> Sequence[Rollout]:
    """The longest answers to the prompt at an index of the order."""
    prompt, how = source.prompts[source.order[slot][0]], source.how
    none = (0.0,) * how.tokens
    return [Rollout(prompt, k, (0,) * how.tokens, none, none, True, "", 0) for k in range(how.samples)]


def _facts(source: OnlineSource, one: Rollout) -> Facts:
    """What the losses ask of an answer's tokens."""
    objective = source.objective
    names = ["keep", *(("old", "raw", "entropy") if objective.remembers else ())]
    names += (["reference"] if objective.spec.kl else []) + (["values"] if "value" in objective.spec.networks else [])
    return {name: torch.full((len(one.ids),), float(name == "keep")) for name in names}


def _dearest(sizes: Sequence[Size]) -> list[int]:
    """The batches of which none is as large in all ways as another; at most a few."""
    kept: dict[Size, int] = {}
    for i, one in enumerate(sizes):
        if any(all(a >= b for a, b in zip(other, one, strict=True)) for other in kept):
            continue
        kept = {o: at for o, at in kept.items() if not all(a >= b for a, b in zip(one, o, strict=True))} | {one: i}
    best = sorted(kept, key=lambda s: -(s.read + s.targets))
    return [kept[one] for one in best[:4]]
