"""The heads of a model: its family's, those that a file holds, and those of a task."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from stemma import spec
from stemma.declare.family import Design, Family
from stemma.errors import CheckpointError, UsageError, did_you_mean
from stemma.formats.classes import heads_wanted
from stemma.formats.keys import Layout
from stemma.formats.names import Row
from stemma.nn.parts import Full, Heads, Summary, Tag, Task

HEADS = ("lm", "pooler", "pair", "detect", "task")


def part(r: Row) -> str:
    """The part of the model that a row belongs to: a head, the embeddings or a stack."""
    return r.ours[0].split(".")[0]


def with_heads(design: Design, heads: Heads) -> Design:
    """The design with other heads."""
    return replace(design, arch=replace(design.arch, heads=heads))


def every_head(own: Heads, wanted: Heads) -> Heads:
    """All heads that a file might hold: those of the family, and those of its class."""
    pooler = wanted.pooler or own.pooler or Summary()
    return Heads(own.lm, pooler, pair=True, detect=own.detect or wanted.detect, task=wanted.task)


def heads_in_file(
    design: Design,
    raw: Mapping[str, Any],
    layout: Layout | None,
    files: Mapping[str, str],
    new: Collection[str],
    where: str,
    task: Task | None,
    owner: Family | None,
) -> tuple[Design, list[str]]:
    """The design with the heads that the file holds or that `new` names, and the tensors of heads that `task` does
    without. Raises CheckpointError if the file lacks a head that its class needs."""
    if layout is None:
        return (design if task is None else with_heads(design, heads_for(task, design, owner))), []
    wanted = heads_wanted(layout, raw)
    if task is not None:
        wanted = heads_for(task, design, owner) if type(wanted.task) is not type(task) else replace(wanted, task=task)
    every = every_head(design.arch.heads, wanted)
    names: dict[str, list[str]] = {h: [] for h in HEADS}
    left: list[str] = []
    for r in layout.rows(with_heads(design, every)):
        if part(r) in names:
            names[part(r)] += [r.theirs, *r.aliases]
            left += [n for n in (r.theirs, *r.aliases) if n in files]
    for other in layout.classes.values():  # of classes that hold other heads than are wanted
        rows = layout.rows(with_heads(design, every_head(design.arch.heads, other)))
        left += [n for r in rows if part(r) in names for n in (r.theirs, *r.aliases) if n in files]
    has = {h: any(t in files for t in rows) or h in new for h, rows in names.items()}
    needs = {h: getattr(wanted, h) not in (None, False) for h in HEADS}
    if not names["lm"]:  # tied, and without parameters of its own: the class alone tells, where one is named
        has["lm"] = needs["lm"] or not raw.get("architectures") or "lm" in new
    for head in HEADS:
        if needs[head] and names[head] and not has[head] and (task is None or head not in ("task", "pooler")):
            raise CheckpointError(
                f"{where} should hold a {head!r} head (its config.json says so), but {names[head][0]!r} is not "
                f"in it; load(..., new=[{head!r}]) would draw one afresh"
            )
    if task is not None:
        return with_heads(design, wanted), left
    pooler = every.pooler if has["pooler"] or "pair" in new else None
    return with_heads(
        design,
        Heads(
            every.lm if has["lm"] else None,
            pooler,
            pair=has["pair"],
            detect=every.detect if has["detect"] else None,
            task=every.task if has["task"] else None,
        ),
    ), []


# ---------------------------------------------------------------- tasks


def task_of(family: Family | None, task: str | Task, labels: int | None, problem: str | None = None) -> Task:
    """A family's task head by name (`classify`, `tag`, `answer`, `choose`), with `labels` classes. Raises UsageError if
    the family has none."""
    if isinstance(task, str):
        known = family.tasks if family is not None else {}
        if task not in known:
            name = family.name if family is not None else "this model"
            raise UsageError(
                f"{name} has no task head {task!r}; it has {', '.join(known) or 'none'}{did_you_mean(task, known)}"
            )
        found = known[task].task
        assert found is not None
        task = found
    fields = {k: v for k, v in (("labels", labels), ("problem", problem)) if v is not None}
    for name in fields:
        if not hasattr(task, name):
            raise UsageError(f"{name}={fields[name]!r} is for a head with classes, and {type(task).__name__} has none")
    return spec.edit(task, fields)


def wanted_task(
    owner: Family | None,
    layout: Layout | None,
    raw: Mapping[str, Any],
    goal: tuple[str | Task, int | None, str | None],
    new: Collection[str],
) -> Task:
    """The task head that a call asks for. Fields that it leaves open come from the file's head of the same type."""
    name, labels, problem = goal
    task = task_of(owner, name, labels, problem)
    held = heads_wanted(layout, raw).task if layout is not None else None
    if not isinstance(name, str) or type(held) is not type(task) or "task" in new:
        return task
    given = {"labels": labels, "problem": problem}
    return spec.edit(task, {k: getattr(held, k) for k, v in given.items() if v is None and hasattr(held, k)})


def with_task(design: Design, family: Family, task: str) -> Design:
    """The design with the family's head for a task instead of its pretraining heads."""
    return with_heads(design, heads_for(task_of(family, task, None), design, family))


def heads_for(task: Task, design: Design, family: Family | None = None) -> Heads:
    """The heads that a task needs: its own; a pooler if it reads one (the design's, else the family's); the
    language-model head if the family keeps it (GPT's multiple choice)."""
    known = [h for h in (family.tasks.values() if family is not None else ()) if type(h.task) is type(task)]
    lm = design.arch.heads.lm if any(h.lm is not None for h in known) else None
    if not task.reads_pooler:
        return Heads(lm, task=task)
    usual = next((h.pooler for h in known if h.pooler is not None), None)
    return Heads(lm, design.arch.heads.pooler or usual or Summary(), task=task)


def body_for(design: Design) -> Design:
    """The design that a task head is put on. An encoder-decoder that tags tokens keeps its encoder alone: every token
    must see the whole text."""
    if design.arch.structure != "encoder-decoder" or not isinstance(design.arch.heads.task, Tag):
        return design
    return spec.edit(design, {"arch.structure": "encoder", "arch.mask": Full()})
