"""What the plan of a task with a head has beside others: its columns, its labels, its head, its recipe."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple

from stemma import disk, spec
from stemma.declare.recipes import AdamW, Recipe, Schedule
from stemma.declare.tasks import HeadTask, Labels
from stemma.errors import DataError, UsageError, brief, require
from stemma.formats.heads import body_for, heads_for, task_of, with_heads
from stemma.nn.model import Model
from stemma.nn.parts import Arch, Task
from stemma.rewrites.kinds import Rewrite, Trainable
from stemma.tasks import head_columns as columns
from stemma.tasks.base import reader
from stemma.tasks.encoder import raw_rows
from stemma.tasks.heads import HeadReader

FIRST = 200  # rows by which columns are found
MOST = 1000  # labels
BALANCED = "balanced"  # in place of the weights of labels
EXAMPLES = 32  # of a step (Devlin et al. 2018, appendix A.3; Radford et al. 2018, section 4.1)
HELD = 0.1  # share of the rows by which a model is judged

# peak rate, and steps of warm-up in a thousand: Devlin et al. 2018, appendix A.3 (with the warm-up of the released
# code); Radford et al. 2018, section 4.1
RATES = {"encoder": (3e-5, 100), "decoder": (6.25e-5, 2), "encoder-decoder": (1e-4, 100)}

# by which a checkpoint is the best
BEST = {"single": "accuracy", "multi": "f1_micro", "regression": "spearman"}
BEST |= {"tag": "f1", "answer": "f1", "choose": "accuracy"}


class Wanted(NamedTuple):
    """The network with the head that learns a task, and what it learns."""

    arch: Arch
    objective: Labels


def wanted(task: HeadTask, there: Model, data: str, changes: Mapping[str, Any], context: int) -> Wanted:
    """What a model learns of the rows of `data` for a task, after the `changes` of the objective. Raises UsageError for
    columns and labels that do not fit, DataError for rows of which nothing can be learnt."""
    require("sklearn", f"stemma tune {task.word}", "'stemma-lm[tune]'")
    own = {path.partition(".")[2]: value for path, value in changes.items() if path.startswith("objective.")}
    even = own.get("weights") == BALANCED and own.pop("weights")
    objective = spec.edit(Labels(task=task), own)
    goal = objective.task
    assert isinstance(goal, HeadTask)
    goal = filled(goal, data)
    fresh = "task" in str(changes.get("train.new", ""))
    if hasattr(goal, "labels"):
        goal = labelled(goal, there, data, context, fresh)
    if (even or objective.weights) and getattr(goal, "several", False):
        raise UsageError(f"objective.weights are of labels of which a row has one, and the rows of {data} have lists")
    if even:
        objective = replace(objective, weights=balanced(goal, there, data, context))
    if objective.weights and len(objective.weights) != len(getattr(goal, "labels", ())):
        raise UsageError(
            f"objective.weights has {len(objective.weights)} numbers, and the task {len(getattr(goal, 'labels', ()))} "
            f"labels: {', '.join(getattr(goal, 'labels', ())) or 'none'}"
        )
    objective = replace(objective, task=goal)
    return Wanted(arch_for(goal, there, bool(objective.lm), fresh), objective)


def filled(task: HeadTask, data: str) -> HeadTask:
    """`task` with the columns of the rows of `data`, and with `several` where a row has a list of labels."""
    first = list(itertools.islice(raw_rows(data), FIRST))
    if not first:
        raise DataError(f"{data} has no rows")
    found = columns.named(task, first)
    assert isinstance(found, HeadTask)
    if hasattr(found, "several") and any(isinstance(row.get(spec.get(found, "label")), list) for row in first):
        found = spec.edit(found, {"several": True})
    return found


def counted(task: HeadTask, there: Any, data: str, context: int) -> Counter[str]:
    """How many rows of `data` have each label. Raises DataError if none has one."""
    read = reader(task, there.tokenizer, context, there.arch.structure)
    assert isinstance(read, HeadReader)
    counts: Counter[str] = Counter()
    first: DataError | None = None
    for row in raw_rows(data):
        try:
            counts.update(read.expected(row))
        except DataError as error:
            first = first or error
    if not counts and first is not None:
        raise DataError(f"{data}: no row can be learnt from; of the first: {first}")
    return counts


def labelled(task: HeadTask, there: Model, data: str, context: int, fresh: bool) -> HeadTask:
    """`task` with its labels: those of the model's own head, with their numbers, or else those of the data."""
    counts = counted(task, there, data, context)
    known: tuple[str, ...] = spec.get(task, "labels")
    held = () if fresh else own_labels(task, there, counts)
    if known and held and known != held:
        raise UsageError(f"{there.origin} has a head with the labels {listed(held)}; {NEW}")
    names = known or held or tuple(ordered(counts))
    if len(counts) < 2 and not held and not getattr(task, "several", False):
        one = next(iter(counts), "none")
        raise DataError(f"every row of {data} has the label {brief(one)}: there is nothing to tell apart")
    if len(names) > MOST:
        raise UsageError(
            f"the labels of {data} have {len(names):,} different values, such as {brief(names[0])}; numbers are learnt "
            "by `stemma tune regress`, texts by `stemma tune write`"
        )
    return spec.edit(task, {"labels": names})


NEW = "take its labels, or draw a new head (--new-head; train.new)"


def own_labels(task: HeadTask, there: Model, counts: Counter[str]) -> tuple[str, ...]:
    """The labels of the head that a model has for a task, by number; none if it has no such head. Raises UsageError if
    the data has others."""
    held = there.arch.heads.task
    if held is None or type(held) is not type(head_of(task, there, 2)):
        return ()
    if task.problem is not None and getattr(held, "problem", None) != task.problem:
        return ()
    names = there.labels or tuple(f"LABEL_{i}" for i in range(getattr(held, "labels", 0)))
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names) and counts.keys() <= set(map(str, range(len(names)))):
        names = tuple(map(str, range(len(names))))
    if other := sorted(counts.keys() - set(names)):
        raise UsageError(f"the label {brief(other[0])} is not among those of {there.origin}: {listed(names)}; {NEW}")
    return names


def balanced(task: HeadTask, there: Any, data: str, context: int) -> tuple[float, ...]:
    """A weight for each label of a task, so that all weigh alike over the rows of `data`: n / (k * count), of k labels
    that have n targets together (King & Zeng 2001; scikit-learn's "balanced"); 1 for a label that has none. Raises
    UsageError for a task without labels."""
    names: tuple[str, ...] = getattr(task, "labels", ())
    if not names:
        raise UsageError(f"{task.word} has no labels that weights could balance")
    counts = counted(task, there, data, context)
    held = {name: count for name, count in counts.items() if name in names}
    total = sum(held.values())
    return tuple(total / (len(held) * held[name]) if name in held else 1.0 for name in names)


def listed(names: tuple[str, ...]) -> str:
    """Some names for a message."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def ordered(names: Mapping[str, int]) -> list[str]:
    """Labels in order: numbers by their size, names by their letters."""
    if all(re.fullmatch(r"-?\d{1,15}", name) for name in names):
        return sorted(names, key=int)
    return sorted(names)


def head_of(task: HeadTask, there: Model, labels: int | None) -> Task:
    """The head that a model's family has for a task. Raises UsageError if it has none."""
    count = 1 if task.problem == "regression" else labels if task.head in ("classify", "tag") else None
    return task_of(there.family, task.head, count, task.problem)


def arch_for(task: HeadTask, there: Model, lm: bool, fresh: bool = False) -> Arch:
    """The network of a model with the head of a task: its own where it has that head, else a new one. `lm`: it keeps
    its language-model head. Raises UsageError where the family has no such head."""
    design, heads = there.design, there.arch.heads
    wanted = head_of(task, there, len(getattr(task, "labels", ())) or None)
    if lm and heads.lm is None:
        raise UsageError(f"objective.lm needs a language-model head, and {there.origin} has none")
    if (
        not fresh
        and type(heads.task) is type(wanted)
        and (task.problem in (None, getattr(heads.task, "problem", None)))
    ):
        return there.arch
    made = heads_for(wanted, design, there.family)
    design = with_heads(design, replace(made, lm=heads.lm if lm else made.lm))
    if body_for(design) != design:
        raise UsageError(f"{there.origin} is an encoder-decoder, and words are tagged by an encoder: begin from one")
    arch: Arch = design.arch
    return arch


def recipe(structure: str, context: int, adapted: float | None) -> Recipe:
    """The recipe of a head. `adapted`: the rate of adapters, where they learn in place of the weights."""
    rate, warm = RATES[structure]
    return Recipe(
        optimizer=AdamW(weight_decay=0.0 if adapted else 0.01),
        lr=adapted or rate,
        schedule=Schedule("linear", warmup=warm),
        steps=1000,  # of which the warm-up is a share
        batch=EXAMPLES * context,
        clip=1.0,
        mixed=False,
    )


def learning(there: Model, arch: Arch) -> tuple[Rewrite, ...]:
    """What lets the heads learn that are new, where adapters freeze all else."""
    pooler = arch.heads.pooler is not None and there.arch.heads.pooler is None
    return (Trainable(("task.*", "pooler.*") if pooler else ("task.*",)),)


def told(objective: Labels, there: Any, data: str, context: int) -> Iterator[str]:
    """Lines on what is about to be learnt: columns, labels with their counts, three examples as the model sees them."""
    task = objective.task
    assert isinstance(task, HeadTask)
    named = [(name, columns.columns_of(task, name)) for name in (f.name for f in fields(task))]
    yield "columns: " + ", ".join(f"{name} = {'+'.join(found)}" for name, found in named if found)
    if hasattr(task, "labels"):
        counts = counted(task, there, data, context)
        most = [f"{name} {counts[name]:,}" for name in list(task.labels)[:30]]
        yield f"labels: {', '.join(most)}{', ...' if len(task.labels) > 30 else ''}"
        if objective.weights:
            yield f"weights: {', '.join(f'{w:.3g}' for w in objective.weights[:30])}"
    read = reader(task, there.tokenizer, context, there.arch.structure)
    shown = 0
    for row in raw_rows(data):
        try:
            read.check(row)
            yield f"example: {read.shown(row)}"
        except DataError:
            continue
        shown += 1
        if shown == 3:
            return


def tell(objective: Labels, there: Any, data: str, context: int) -> None:
    """Print these lines."""
    for line in told(objective, there, data, context):
        disk.tell(line)


def best(task: HeadTask) -> str:
    """The metric by which a checkpoint is the best."""
    return BEST[task.problem or task.word]
