"""The tuned families of the tree as recipes that any model of a fitting structure can be tuned by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stemma import disk, families, spec
from stemma.conversations.templates import NAMES
from stemma.data import cleaning
from stemma.data.sources import options, pieces
from stemma.declare.family import Design, Text
from stemma.declare.objectives import Objective
from stemma.declare.recipes import AdamW, Recipe
from stemma.declare.tasks import ChatTask
from stemma.declare.tuning import SFT, LoRA, Pretraining, SoftPrompt, Stage, Template
from stemma.errors import UsageError, did_you_mean
from stemma.nn.model import Model
from stemma.nn.parts import (
    Dims,
    Dropout,
    Llama3Scaling,
    Mask,
    Memory,
    Position,
    Rotary,
    TruncatedScaling,
    YarnScaling,
)
from stemma.objectives import incompatible_reason, with_special_tokens
from stemma.rewrites import kinds
from stemma.rewrites.kinds import Rewrite
from stemma.train.config import Plan, Train
from stemma.tuning.ahead import VECTORS, behind, padded, prompts_of
from stemma.tuning.plans import SCALE, beside, fitting, objective_of, packed, started
from stemma.tuning.tokens import needed

EXAMPLES = 16  # of a step, in a scaled run
FASTER = 10.0  # times the published rate at most, in a scaled run
WARMUP = 0.03  # share of the steps, where none is published
DEFAULT, PLAIN = "chatml", "plain"  # templates, where none is published: of tokens of its own, or of text alone
UNKNOWN = 5e-5  # peak rate, where none is published
UNTOLD = "3 epochs"  # where neither epochs nor steps are


@dataclass(frozen=True)
class System:
    """A tuned family's `stage` on examples, and the `design` that it was published with. `number` of `many` stages."""

    design: Design
    stage: SFT | Pretraining
    number: int
    many: int

    def of(self, value: Any) -> Any:
        """Of values by size, that of the design's."""
        if not isinstance(value, tuple):
            return value
        sizes = [*families.family(self.design.name).sizes]
        return value[sizes.index(self.design.name) if self.design.name in sizes else 0]


def names() -> list[str]:
    """The families whose weights were trained on in a stage that runs here, of a design that is known."""
    known = {name: f.tuning for name, f in families.tree().items() if f.tuning and f.edge != "unpublished"}
    return [name for name, tuning in known.items() if runnable(tuning.stages)]


def runnable(stages: tuple[Stage, ...]) -> list[SFT | Pretraining]:
    """Those of a family's stages that are carried out here, second passes among them."""
    found: list[SFT | Pretraining] = []
    for stage in stages:
        if isinstance(stage, Pretraining):
            found.append(stage)
        while isinstance(stage, SFT):
            found.append(stage)
            if stage.then is None:
                break
            stage = stage.then
    return found


def stages_of(name: str) -> list[SFT | Pretraining]:
    """The stages of the tuned family or size `name` that run here. Raises UsageError for a name that is none."""
    known = names()
    try:
        family = families.family(name)
    except UsageError:
        raise UsageError(f"no task or tuned family is called {name!r}{did_you_mean(name, known)}") from None
    stages = runnable(family.tuning.stages if family.tuning else ())
    if not stages:
        raise UsageError(f"{name} is not tuned from another's weights; tuned families are {', '.join(known)}")
    return stages


def system(name: str, number: int | None = None) -> System:
    """Stage `number` (from 1; None: the first on examples, else the first) of the tuned family or size `name`. Raises
    UsageError for a name that is none, and for a stage that it does not have."""
    stages = stages_of(name)
    if number is None:
        number = next((i for i, stage in enumerate(stages, 1) if isinstance(stage, SFT)), 1)
    if not 1 <= number <= len(stages):
        raise UsageError(f"{name} has {len(stages)} stages that run here, so stage {number} is none of them")
    return System(_design(name), stages[number - 1], number, len(stages))


def _design(name: str) -> Design:
    """The design of a family or size: of a family the first size whose rate is known, if there is one."""
    family, design = families.family(name), families.design(name)
    if family.name != families.known_as(name) or design.recipe.lr is not None:
        return design
    return next((family[size] for size in family.sizes if family[size].recipe.lr is not None), design)


def of_rows(name: str, number: int) -> bool:
    """Whether stage `number` of a tuned family learns from rows, not from text."""
    return isinstance(system(name, number).stage, SFT)


def template_of(template: Template | None) -> str:
    """The name of a declared template; empty for none."""
    return next((name for name, value in NAMES.items() if value == template), "") if template is not None else ""


def task_of(found: System) -> ChatTask:
    """How the system's examples are written and which of their tokens are learnt."""
    assert isinstance(found.stage, SFT)
    stage = found.stage
    return ChatTask(
        template_of(found.of(stage.template)),
        stage.loss_on or "answers",
        feedback=stage.feedback,
        inputs=stage.inputs,
        targets=stage.targets,
    )


def rewrites_of(found: System, there: Model) -> tuple[Rewrite, ...]:
    """What the system's adapter puts beside or in front of the model `there`; nothing where all weights learn."""
    stage = found.stage
    if not isinstance(stage, SFT) or stage.adapter is None:
        return ()
    if isinstance(stage.adapter, SoftPrompt):  # one for all tasks, before the words of each
        return (kinds.SoftPrompt(stage.adapter.length or VECTORS, "uniform"),)
    one: LoRA = stage.adapter
    return beside(there, one.rank or 8, one.base, one.alpha or 16.0, found.of(one.dropout) or 0.0)


def longest(found: System, there: Model, full: bool) -> int:
    """The tokens that the model reads after the stage: as many as before, unless the stage is one of longer rows."""
    stage = found.stage
    if stage.longer == 1.0:
        return there.dims.context
    return stage.context if full and stage.context is not None else round(there.dims.context * stage.longer)


def recipe_of(found: System, there: Model, full: bool, quiet: bool) -> tuple[Recipe, int, str]:
    """(recipe, tokens of a row, budget) of tuning the model `there` as the system was tuned. Unless `full`, a step has
    fewer examples, and weights and low-rank adapters learn faster, as a narrower network's may: by the factor of the
    widths. What is unpublished is chosen here and said."""
    stage, published = found.stage, found.design.recipe
    context = min(stage.context or 2048, longest(found, there, full))
    if isinstance(stage, SFT) and isinstance(stage.adapter, SoftPrompt):
        context = min(context, behind(there, stage.adapter.length or VECTORS))
    examples = int(found.of(stage.examples) or EXAMPLES)
    rate = found.of(stage.lr) or published.lr
    chosen = [] if rate is not None else [f"a peak rate of {UNKNOWN}"]
    rate = UNKNOWN if rate is None else rate
    if not full:
        examples = min(examples, EXAMPLES)
        prompts = isinstance(stage, SFT) and isinstance(stage.adapter, SoftPrompt)
        wider = found.design.dims.d_model / there.dims.d_model
        rate *= 1.0 if prompts else min(FASTER, max(1.0, wider))
    batch = examples * context
    packed = isinstance(stage, SFT) and stage.packed is not False
    if not full and packed:
        batch = max(1, examples // 4) * context
    elif full and stage.examples is None:
        known = isinstance(stage, Pretraining) or stage.steps is not None
        batch = found.of(stage.batch) or (known and published.batch) or batch
    length, steps = length_of(found, batch, full)
    if length == UNTOLD:
        chosen.append(length)
    schedule = stage.schedule or published.schedule
    share = stage.warmup
    if share is None:
        share = schedule.warmup / steps if steps and schedule.warmup else WARMUP
    if chosen and not quiet:
        disk.tell(f"note: {' and '.join(chosen)} {'are' if len(chosen) > 1 else 'is'} this tool's choice: unpublished")
    counted = 1000 if not full or not steps else steps
    recipe = Recipe(
        optimizer=published.optimizer if published.optimizer != AdamW() else AdamW(weight_decay=0.0),
        lr=rate,
        schedule=replace(schedule, warmup=max(1, round(counted * share))),
        steps=counted,  # of which the warm-up is a share
        batch=batch,
        clip=published.clip or 1.0,
        mixed=False,
        z_loss=published.z_loss,
    )
    return recipe, context, length


def length_of(found: System, batch: int, full: bool) -> tuple[str, int | None]:
    """(the budget of a stage, its published steps): in epochs as published; text of which steps or tokens were counted
    is read once where it is not `full`."""
    stage, published = found.stage, found.design.recipe
    steps, tokens, epochs = found.of(stage.steps), found.of(stage.tokens), found.of(stage.epochs)
    own = steps or tokens or (isinstance(stage, Pretraining) and published.steps)
    step = found.of(stage.batch) or published.batch or (batch if full else None)
    total = steps or (round(tokens / step) if tokens and step else published.steps)
    if epochs is not None or not own:
        return (f"{epochs:g} epochs" if epochs is not None else UNTOLD), total
    if full:
        return (f"{tokens:g} tokens" if tokens and not steps else f"{total} steps"), total
    return ("1 epochs" if isinstance(stage, Pretraining) else UNTOLD), total


def resolve(
    name: str,
    start: str,
    data: str | None = None,
    budget: str | None = None,
    seed: int = 1,
    *,
    stage: int | None = None,
    full: bool = False,
    settings: Mapping[str, Any] | None = None,
    lora: int | None = None,
    quantize: str | None = None,
    rewrites: tuple[Rewrite, ...] = (),
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = True,
) -> Plan:
    """The plan of tuning the model `start` as the family `name` was tuned, in its `stage`, on `data` (None: what stands
    in for the published). `full`: with the published numbers, not scaled; the rest as in `tune`. Raises UsageError for
    what does not fit."""
    found = system(name, stage)
    data = files_of(found, data) if data else stand_in(found, quiet)
    there = started(start)
    recipe, context, length = recipe_of(found, there, full, quiet)
    objective: Objective
    arch, text, rewrites = there.arch, there.text, (*beside(there, lora, quantize), *rewrites)
    train = Train(budget or length, context=context, start=start)
    if isinstance(found.stage, Pretraining):
        if settings and (given := [key for key, value in settings.items() if value is not None]):
            raise UsageError(f"stage {found.number} of {name} reads text, not rows, so it has no setting {given[0]!r}")
        objective = found.stage.objective or found.design.objective
        objective = objective if full else objective.scaled(there.dims.context / found.design.dims.context)
        arch = replace(arch, position=position_of(found.design, there))
        if "arch.mask" in families.family(name).changes:
            arch = replace(arch, mask=mask_of(found.design, there.dims))
        if (why := incompatible_reason(objective, arch)) is not None:
            raise UsageError(f"{there.name} cannot be tuned as {name}: {why}")
        text = text_of(found.design.text, text, objective)
    else:
        task = spec.edit(task_of(found), {k: v for k, v in (settings or {}).items() if v is not None})
        if isinstance(found.stage.adapter, SoftPrompt):
            arch = replace(arch, dropout=Dropout())  # what is frozen computes as it will
            task = replace(task, prompts=task.prompts or prompts_of(data))
        if not task.template and there.tokenizer.chat_template is None:
            # an adapter would need rows for tokens that a template brings
            task = replace(task, template=PLAIN if rewrites or found.stage.adapter is not None else DEFAULT)
            if not quiet:
                disk.tell(
                    f"note: the template of {name} is unpublished, and the model has none of its own: {task.template}"
                )
        objective = packed(objective_of(task, there), found.stage.packed is not False)
        train = replace(train, unit="document", piece=None)
        rewrites = rewrites or rewrites_of(found, there)
        if not any(rewrite.freezes for rewrite in rewrites):
            text = padded(text, found.design.text.pad, there)
    dims = replace(there.dims, context=longest(found, there, full))
    own = name if families.family(name).edge == "evolve" else there.name  # what it is in files
    plan = Plan(own, SCALE, arch, dims, objective, text, recipe, train, data, seed, rewrites=rewrites, system=name)
    changes = {path: found.of(value) for path, value in found.stage.changes}
    plan = spec.edit(spec.edit(plan, _read(changes)), _read(overrides or {}))
    return needed(fitting(plan), there, quiet)[0]


def _read(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of a plan, with steps of a cleaning that are given by their names (`exact,code`) as values."""
    return {path: cleaning.parse(v) if path == "clean" and isinstance(v, str) else v for path, v in changes.items()}


def text_of(published: Text, own: Text, objective: Objective) -> Text:
    """The text settings `own` with the tokens that a published design brings, and those that the objective needs."""
    infill, runs = published.infill or own.infill, published.runs or own.runs
    return with_special_tokens(objective, replace(own, extras=published.extras, infill=infill, runs=runs))


def position_of(design: Design, there: Model) -> Position:
    """The positions of the model `there` on the basis of a published design, where that one has a basis of its own. A
    context that it names is the published share of the model's. Raises UsageError where there is nothing to scale."""
    own, published = there.arch.position, design.arch.position
    if not isinstance(published, Rotary) or published.scaling is None:
        return own
    if not isinstance(own, Rotary):
        raise UsageError(f"{design.name} scales rotary positions, and {there.name} has {own}")
    scaling = published.scaling
    if isinstance(scaling, Llama3Scaling | TruncatedScaling | YarnScaling):
        scaling = replace(scaling, context=max(8, round(scaling.context * there.dims.context / design.dims.context)))
    return replace(own, scaling=scaling)


def mask_of(design: Design, dims: Dims) -> Mask:
    """The mask of a published design for a model of `dims`. Memory layers stand at equal parts of another depth, one
    for every eight layers and three at most; the tokens that are read last are the published share of the context."""
    mask = design.arch.mask
    if not isinstance(mask, Memory):
        return mask
    layers, last = mask.layers, max(1, round(mask.last * dims.context / design.dims.context))
    if dims.layers != design.dims.layers:
        many = max(1, min(3, dims.layers // 8))
        layers = tuple(i * dims.layers // (many + 1) for i in range(1, many + 1))
    return replace(mask, layers=layers, last=last)


def files_of(found: System, data: str) -> str:
    """`data` with the folders in it read as the stage reads them: those of their files alone that it names."""
    names = getattr(found.stage, "files", "")
    if not names:
        return data
    held = []
    for piece in pieces(data):
        name, given = options(piece)
        folder = Path(re.sub(r"@[-+0-9.eE]+$", "", name)).expanduser().is_dir()
        held.append(f"{piece}{'&' if given else '#'}files={names}" if folder and "files" not in given else piece)
    return ",".join(held)


def stand_in(found: System, quiet: bool) -> str:
    """What the stage learns from where no data are named. Raises UsageError where nothing stands in."""
    source, name = found.stage.stand_in, families.family(found.design.name).name
    if not source:
        raise UsageError(f"{name} has no data that stand in for its own, so give --data FILE")
    if not quiet:
        disk.tell(f"note: {source} stands in for the data of {name}; --data FILE takes your own")
    return source
