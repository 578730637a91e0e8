"""A plan put together: the model, the nets beside it, the objective, the loop."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from stemma import families, formats
from stemma.declare.family import Design, Text
from stemma.declare.recipes import Recipe
from stemma.declare.tasks import RowObjective
from stemma.errors import CheckpointError, ResourceError, UsageError
from stemma.nn.model import Model
from stemma.nn.parts import Learned
from stemma.objectives import Objective, reference
from stemma.objectives.languages import UNKNOWN
from stemma.parallel import World
from stemma.rewrites.engine import apply
from stemma.rewrites.prompts import check_room
from stemma.train import references, start
from stemma.train.config import Net, Plan
from stemma.train.learners import fingerprint
from stemma.train.loop import Loop
from stemma.train.scale import warmup
from stemma.train.source import Source, source_of
from stemma.train.source import objective_of as objective_of


def pin_teachers(plan: Plan, tokenizer: Any) -> tuple[Plan, Any]:
    """`plan` with the fingerprints of its frozen nets (teachers), and the tokenizer that they read with. Raises
    UsageError for a net without weights, or if `tokenizer` is given and is another one."""
    nets = list(plan.nets)
    for i, net in enumerate(nets):
        if net.learns:
            continue
        path = f"objective.{net.role}"
        if not net.weights:
            size = families.family(net.name).sizes.get(net.name)
            hub = f" or a hub id such as {size.hub}" if size is not None and size.hub else ""
            raise UsageError(
                f"{plan.name} learns from a {net.role} ({net.name}), whose weights are needed: set {path} to a folder "
                f"(RUN/model of a finished run){hub}"
            )
        model = formats.load(net.weights)
        if model.tokenizer is None:
            raise UsageError(f"{path}={net.weights} has no tokenizer, and student and {net.role} must read alike")
        if tokenizer is not None and tokenizer.fingerprint != model.tokenizer.fingerprint:
            raise UsageError(
                f"student and {net.role} must read with the tokenizer of {path}={net.weights}, and another one was "
                "given; leave it out"
            )
        tokenizer = model.tokenizer
        nets[i] = replace(net, fingerprint=fingerprint(model.state_dict()))
    return replace(plan, nets=tuple(nets)), tokenizer


def design_of(plan: Plan) -> Design:
    """The design that a plan trains."""
    return Design(plan.name, plan.arch, plan.dims, plan.objective, plan.text, plan.recipe)


def fit_to_tokenizer(plan: Plan, tokenizer: Any, languages: tuple[str, ...] = ("",)) -> Plan:
    """`plan` with the tokenizer's vocabulary and ids, and the languages of the text, in place of the published ones."""
    text = replace(
        plan.text,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        start_id=_start_id(plan.text, tokenizer),
        blank_ids=tuple(i for name in plan.text.blanks if (i := tokenizer.id(name)) is not None),
    )
    arch = plan.arch
    if isinstance(arch.position, Learned) and arch.position.padding is not None and tokenizer.pad_id is not None:
        arch = replace(arch, position=Learned(int(tokenizer.pad_id)))
    vocab = next((net.dims.vocab for net in plan.nets if net.weights), int(tokenizer.vocab_size))
    if vocab < tokenizer.vocab_size:
        tokenizer.check(vocab, training=True)
    dims = replace(plan.dims, vocab=vocab)
    if dims.languages:
        names = tuple(name or UNKNOWN for name in languages)
        text, dims = replace(text, languages=names), replace(dims, languages=len(names))
    return replace(plan, arch=arch, text=text, dims=dims)


def _start_id(text: Text, tokenizer: Any) -> int | None:
    """The decoder's start token: the tokenizer's token of the role that the published one has."""
    for role in ("pad", "eos", "bos"):
        if text.start_id is not None and text.start_id == getattr(text, f"{role}_id"):
            return getattr(tokenizer, f"{role}_id")
    return text.start_id


def with_steps(plan: Plan, steps: int, fixed_warmup: bool) -> Plan:
    """`plan` with its number of steps, on which the learning rate depends. A scaled plan's warm-up is a share of them,
    unless `fixed_warmup`."""
    recipe: Recipe = replace(plan.recipe, steps=max(1, steps))
    if plan.scale != "full" and not fixed_warmup:
        recipe = replace(recipe, schedule=replace(recipe.schedule, warmup=warmup(plan.recipe, max(1, steps))))
    return replace(plan, recipe=recipe)


def model_of(plan: Plan, tokenizer: Any, started: bool = True) -> Model:
    """A fresh model, initialised from the plan's seed; if `started`, with the weights that the plan begins from;
    rewritten as the plan says."""
    model = start.load(plan) if plan.train.start and started and plan.rewrites else None
    if model is None:
        model = Model(plan.arch, plan.dims).initialise(plan.seed)
        if plan.train.start and started:
            start.fill(model, plan.train.start, plan.train.new)
            start.average(model, plan)
            start.begin(model, plan)
        apply(model, plan.rewrites, plan.seed)
    if isinstance(plan.objective, RowObjective):
        model.labels = getattr(plan.objective.task, "labels", ())
    model.embed.noise = plan.recipe.neftune
    check_room(model, plan.context)
    return formats.attach(model, design_of(plan), families.family(plan.name), tokenizer)


def nets_of(plan: Plan, tokenizer: Any, everyone: bool = False) -> dict[str, Model]:
    """The networks beside the model, by role: initialised from the plan's seed, or loaded; one that learns may begin
    from weights (a value model from a reward model). A reference that has said all before is left out, unless
    `everyone` is asked for."""
    found: dict[str, Model] = {}
    known = getattr(plan.objective, "precompute", False) and not everyone
    for i, net in enumerate(plan.nets, 1):
        if known and net.role == reference.ROLE:
            continue
        if not net.learns:
            found[net.role] = _frozen(net)
            continue
        if net.weights:
            found[net.role] = start.net(net, plan.seed + i, tokenizer)
            continue
        dims = replace(net.dims, vocab=plan.dims.vocab)
        design = replace(families.design(net.name), arch=net.arch, dims=dims, text=plan.text)
        model = Model(net.arch, dims).initialise(plan.seed + i)
        found[net.role] = formats.attach(model, design, families.family(net.name), tokenizer)
    return found


def _frozen(net: Net) -> Model:
    """A frozen net. Raises CheckpointError if it is not as it was when the run began."""
    if Path(net.weights).is_absolute() and not Path(net.weights).exists():
        raise CheckpointError(f"the {net.role} of this run is gone: there is no {net.weights}")
    model = formats.load(net.weights).eval().requires_grad_(False)
    if net.fingerprint and fingerprint(model.state_dict()) != net.fingerprint:
        raise CheckpointError(
            f"{net.weights} is not the {net.role} that this run was started with: its weights changed"
        )
    return model


def loop_of(
    plan: Plan,
    tokenizer: Any,
    view: Any,
    world: World | None = None,
    started: bool = True,
    folder: Path | None = None,
) -> Loop:
    """A fresh loop over the documents of `view`, of one rank of `world` if there is one. Without `started`, the weights
    that the plan begins from are not read: for a loop to be restored, or only to be timed. `folder`: of the run. Raises
    ResourceError for a batch that cannot fit into this machine."""
    if (need := 8 * plan.rows * plan.context) > (there := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise ResourceError(
            f"recipe.batch={plan.recipe.batch} makes a step of {plan.rows:,} rows, whose ids alone are "
            f"{need / 1e9:,.0f} GB, and this machine has {there / 1e9:,.0f} GB; lower recipe.batch"
        )
    objective = objective_of(plan, tokenizer)
    references.attach(
        plan, objective, view, folder, lambda: (model_of(plan, tokenizer), nets_of(plan, tokenizer, everyone=True))
    )
    return loop_over(plan, tokenizer, objective, source_of(plan, objective, view, folder), world, started)


def loop_over(
    plan: Plan,
    tokenizer: Any,
    objective: Objective,
    source: Source,
    world: World | None = None,
    started: bool = True,
) -> Loop:
    """A fresh loop over the batches of any `source`; the rest as in `loop_of`."""
    parts = (plan, model_of(plan, tokenizer, started), objective, source, nets_of(plan, tokenizer))
    if world is None:
        return Loop(*parts)
    from stemma.train.sharded import Sharded

    return Sharded(*parts, world)
