"""From a model and a task to the plan of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stemma import formats, spec
from stemma.data import read
from stemma.data.sources import options
from stemma.declare.objectives import CLM, Objective
from stemma.declare.recipes import Adafactor, AdamW, Recipe, Schedule
from stemma.declare.tasks import Answers, HeadTask, Replies, RowObjective, RowTask, WriteTask
from stemma.errors import UsageError, did_you_mean
from stemma.formats import peft
from stemma.nn.model import Model
from stemma.nn.parts import Arch
from stemma.objectives import incompatible_reason
from stemma.rewrites import LoRA
from stemma.rewrites.kinds import Rewrite
from stemma.rewrites.paths import linear_paths, patterns
from stemma.tasks import columns
from stemma.tasks.base import reader
from stemma.tasks.encoder import first
from stemma.train.config import Plan, Train
from stemma.train.plans import start_folder
from stemma.tuning import heads, preview, sizes
from stemma.tuning.tokens import needed

SCALE = "tuned"  # what a plan that begins from weights has in place of a scale
ROW = 1024  # tokens of a row at most, where the model reads more
RATES = {"all": 5e-5, "adapter": 5e-4}  # peak learning rates, where no task has its own


def words() -> dict[str, type[RowTask]]:
    """The tasks by WHAT of `stemma tune WHAT`."""
    from stemma.tasks import load_all

    load_all()
    found = {kind.word: kind for kind in RowTask.KINDS.values() if issubclass(kind, RowTask) and kind.word}
    return dict(sorted(found.items()))


def task_of(what: str, settings: Mapping[str, Any]) -> RowTask:
    """The task called `what`. Raises UsageError for an unknown one, and for a setting that it does not have."""
    known = words()
    if what not in known:
        raise UsageError(f"no task is called {what!r}; known: {', '.join(known)}{did_you_mean(what, known)}")
    given = {name: value for name, value in settings.items() if value is not None}
    fields = [f.name for f in dataclasses.fields(known[what])]
    if odd := [name for name in given if name not in fields]:
        names = ", ".join(fields) or "none"
        raise UsageError(f"{what} has no setting {odd[0]!r} (it has: {names}){did_you_mean(odd[0], fields)}")
    return spec.edit(known[what](), given)


def objective_of(task: RowTask, there: Model) -> RowObjective:
    """What a model of this structure learns of a task. Raises UsageError where it cannot."""
    replies = there.arch.structure == "encoder-decoder"
    found = Replies(task=task) if replies else Answers(task=task)
    if (why := incompatible_reason(found, there.arch)) is not None:
        raise UsageError(f"{there.name} cannot be tuned to {task.word}: {why}")
    return found


def resolve(
    what: str,
    start: str,
    data: str,
    budget: str = "3 epochs",
    seed: int = 1,
    *,
    settings: Mapping[str, Any] | None = None,
    lora: int | None = None,
    quantize: str | None = None,
    rewrites: tuple[Rewrite, ...] = (),
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = True,
) -> Plan:
    """The plan of tuning the model `start` (a run, a folder, a GGUF file, a hub id) to the task `what` on the rows of
    `data`. `settings`: fields of the task; `lora`, `quantize`, `rewrites`: as in `tune`. Columns that are not named,
    the length of rows and the batch follow from the data; unless `quiet`, what was found is printed. Raises UsageError
    for what does not fit, DataError for data without rows."""
    there = started(start)
    changes = dict(overrides or {})
    context = min(there.dims.context, ROW)
    task = None if what == "complete" else task_of(what, settings or {})
    if task is None:
        data = text_data(data, settings or {})
    rewrites = (*beside(there, lora, quantize), *rewrites)
    rate = RATES["adapter"] if any(r.freezes for r in rewrites) else None
    train = Train(budget, context=context, start=start, unit="document", piece=None, best="loss")
    if isinstance(task, HeadTask):
        row = int(changes.get("train.context", context))
        found = heads.wanted(task, there, data, changes, row)
        if not quiet:
            heads.tell(found.objective, there, data, row)
        if rate is not None:
            rewrites = (*rewrites, *heads.learning(there, found.arch))
        train = replace(train, val_fraction=heads.HELD, best=heads.best(task))
        changes = {path: value for path, value in changes.items() if not path.startswith("objective.")}
        goal: tuple[Arch, Objective, Recipe] = (*found, heads.recipe(there.arch.structure, row, rate))
    else:
        published = there.design.recipe if isinstance(task, WriteTask) else None
        goal = there.arch, CLM() if task is None else objective_of(task, there), recipe_of(context, rate, published)
    arch, objective, recipe = goal
    text = there.design.text
    plan = Plan(there.name, SCALE, arch, there.dims, objective, text, recipe, train, data, seed, rewrites=rewrites)
    plan = fitting(spec.edit(plan, changes))
    if isinstance(task, HeadTask):
        return needed(plan, there, quiet)[0]
    if task is None:
        fits = sizes.of_texts(read(data).documents(), there.tokenizer, plan.context)
        return spec.edit(plan, {path: value for path, value in fits.items() if not _set(changes, path)})
    plan, tokenizer = needed(plan, there, quiet)
    return fitted(plan, tokenizer, changes, quiet)


# T5's for tuning: Adafactor at a constant rate (Raffel et al. 2019, section 3.1.2)
ADAFACTOR = Recipe(Adafactor(), lr=1e-3, schedule=Schedule("constant"), steps=100, clip=None, mixed=False)


def text_data(data: str, settings: Mapping[str, Any]) -> str:
    """`data` with the column that `settings` name for its text. Raises UsageError for other settings."""
    given = {name: value for name, value in settings.items() if value is not None}
    if odd := [name for name in given if name != "text"]:
        raise UsageError(f"complete learns texts as they are, so it has no setting {odd[0]!r}; it has: text")
    if not given:
        return data
    return f"{data}{'&' if options(data)[1] else '#'}field={given['text']}"


def recipe_of(context: int, adapted: float | None, published: Recipe | None = None) -> Recipe:
    """The recipe of what is learnt as text: AdamW, or T5's for models that were pretrained by Adafactor (`published`).
    `adapted`: the rate of adapters, where they learn in place of the weights."""
    if published is not None and isinstance(published.optimizer, Adafactor) and not adapted:
        return replace(ADAFACTOR, batch=4 * context)
    return Recipe(
        optimizer=AdamW(weight_decay=0.0 if adapted else 0.01),
        lr=adapted or RATES["all"],
        schedule=Schedule("linear", warmup=5),
        steps=100,  # of which the warm-up is a share
        batch=4 * context,
        clip=1.0,
        mixed=False,
    )


def started(start: str) -> Model:
    """The model that tuning begins from, without weights. Raises UsageError for one without a tokenizer, and for an
    adapter, which has no weights of its own to begin from."""
    folder = start_folder(start)
    if peft.is_adapter(Path(folder)):
        raise UsageError(
            f"{start} is an adapter, and tuning begins from a whole model: "
            f"`stemma merge {peft.base_of(Path(folder))} --adapter {start} --out DIR` makes one"
        )
    there = formats.load(folder, device="meta")
    if there.design is None or there.tokenizer is None:
        raise UsageError(f"{start} has no tokenizer, and a model is tuned with the one that it was trained with")
    return there


def packed(objective: RowObjective, whether: bool) -> RowObjective:
    """`objective` with several examples a row, or one, where it can have several."""
    return dataclasses.replace(objective, packed=whether) if isinstance(objective, Answers) else objective


def beside(
    there: Model, lora: int | None, quantize: str | None, alpha: float | None = None, dropout: float = 0.0
) -> tuple[Rewrite, ...]:
    """What `lora` and `quantize` put in place of modules of a model. Raises UsageError where nothing would learn."""
    if quantize is not None and lora is None:
        raise UsageError(f"quantize={quantize!r} freezes the weights, so something else has to learn: give a LoRA rank")
    found = formats.quantized(there, quantize) if quantize is not None else ()
    if lora is None:
        return found
    paths = [path for path in linear_paths(there) if ".blocks." in path]
    return (*found, LoRA(patterns(there, paths), rank=lora, alpha=alpha or 2.0 * lora, dropout=dropout))


def fitted(plan: Plan, tokenizer: Any, changes: Mapping[str, Any], quiet: bool) -> Plan:
    """`plan` with columns, the length of rows, the batch and what is held out as the data have them, but for what
    `changes` set. Unless `quiet`, the columns and some examples are printed."""
    assert isinstance(plan.objective, RowObjective)
    found, whole = first(plan.data, sizes.LOOKED_AT)
    task = columns.named(plan.objective.task, found)
    plan = replace(plan, objective=replace(plan.objective, task=task))
    read = reader(task, tokenizer, plan.context, plan.arch.structure)
    if not quiet:
        preview.tell(task, found, read)
    measured = sizes.measure(found, read, whole)
    fits = sizes.fitting(measured, plan.context, plan.arch.structure == "encoder-decoder")
    return spec.edit(plan, {path: value for path, value in fits.items() if not _set(changes, path)})


def _set(changes: Mapping[str, Any], path: str) -> bool:
    """Whether changes give a setting, by itself or within a part of the plan."""
    return any(path == given or path.startswith(given + ".") for given in changes)


def fitting(plan: Plan) -> Plan:
    """`plan`, if its rows fit the model. Raises UsageError."""
    if plan.context > plan.dims.context:
        raise UsageError(f"train.context={plan.context} exceeds the {plan.dims.context} tokens that the model reads")
    return replace(plan, train=replace(plan.train, start=start_folder(plan.train.start)))
