"""Where a run begins: from weights that exist. Their shapes and tokenizer are read first, their data once."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from stemma import formats, spec
from stemma.conversations.templates import NAMES, conditioned, jinja
from stemma.declare.tasks import ChatTask, RowObjective
from stemma.errors import CheckpointError, UsageError
from stemma.formats.heads import HEADS
from stemma.nn import vocabulary
from stemma.nn.model import Model
from stemma.nn.parts import Arch, Heads, Rotary
from stemma.objectives import tokens
from stemma.rewrites.engine import apply, graft, reset
from stemma.rewrites.kinds import TrainableTokens
from stemma.train.config import Net, Plan


def inspect(plan: Plan) -> tuple[Any, int]:
    """The tokenizer of the weights that a plan begins from, grown by the special tokens that its objective needs, and
    the rows of their embeddings. Reads no weights.

    Raises UsageError where there is no tokenizer, or where the network is another one: all that has weights must be
    the same. Masks, dropout and heads may differ, and the context of networks without a table of positions."""
    there = formats.load(plan.train.start, device="meta")
    if there.tokenizer is None:
        raise UsageError(f"{plan.train.start} has no tokenizer, and a run takes that of the weights it begins from")
    if there.arch.structure != plan.arch.structure:
        raise UsageError(
            f"the weights in {plan.train.start} are those of structure {there.arch.structure}, and {plan.name} is of "
            f"structure {plan.arch.structure}; begin from weights of its own design"
        )
    table = any("position" in name for name in there.state_dict())
    dims = replace(plan.dims, vocab=there.dims.vocab, context=plan.dims.context if table else there.dims.context)
    for part, old, new in (
        ("arch", there.arch, _alike(plan, there.arch)),
        ("dims", there.dims, dims),
    ):
        if changes := spec.diff(old, new, f"{part}."):
            one = changes[0]
            raise UsageError(
                f"{plan.train.start} has {one.path}={one.old} and {plan.name} at scale {plan.scale} {one.new}; begin "
                "from weights of its own design and scale"
            )
    names = (*plan.text.extras, *tokens(plan.objective, plan.text))
    grown = there.tokenizer.grown(plan.text.sentinels, names, plan.text.runs, plan.text.pad)
    task = plan.objective.task if isinstance(plan.objective, RowObjective) else None
    if template := getattr(task, "template", ""):  # whoever talks to it later finds the template that it learnt
        own, feedback = NAMES[template], task.feedback if isinstance(task, ChatTask) else ()
        grown.chat_template = jinja(conditioned(own, feedback[0]) if feedback else own, grown)
    return grown, there.dims.vocab


def _alike(plan: Plan, start: Arch) -> Arch:
    """The plan's network with what may differ as in `start`: mask, dropout, initialisation, heads that only one of them
    has, those that are new, and what a stage of tuning does to rotary positions, which have no weights."""
    arch = plan.arch
    held = (_held(arch.heads) & _held(start.heads)) - {*plan.train.new}
    heads = replace(start.heads, **{h: getattr(arch.heads, h) for h in HEADS if h in held})
    if plan.system and isinstance(arch.position, Rotary) and isinstance(start.position, Rotary):
        arch = replace(arch, position=replace(start.position, interleaved=arch.position.interleaved))
    return replace(arch, heads=heads, mask=start.mask, dropout=start.dropout, init=start.init)


def _held(heads: Heads) -> set[str]:
    return {h for h in HEADS if getattr(heads, h) not in (None, False)}


def load(plan: Plan) -> Model | None:
    """A model of the plan with the weights that it begins from, read straight into replaced modules: no full-precision
    copy of a quantised matrix is made. None if the model has weights that these lack (see `fill`), but for rows of new
    tokens that learn beside an adapter. Raises CheckpointError where those weights lost their tokenizer."""
    rows = [i for rewrite in plan.rewrites if isinstance(rewrite, TrainableTokens) for i in rewrite.ids]
    there = formats.load(plan.train.start, device="meta", tokenizer=bool(rows))
    with torch.device("meta"):
        model = Model(plan.arch, plan.dims)
    known = _known(there, plan) if rows else 0
    learnt = {i for i in rows if i >= known}
    if plan.dims.vocab > there.dims.vocab and learnt.issuperset(range(there.dims.vocab, plan.dims.vocab)):
        vocabulary.widen(there, plan.dims.vocab, there.dims.vocab)
    old, new = ({name: t.shape for name, t in m.state_dict().items()} for m in (there, model))
    if old != new or plan.train.new:
        return None
    fixed = tuple(itertools.takewhile(lambda rewrite: not rewrite.freezes, plan.rewrites)) if learnt else plan.rewrites
    held = formats.load(plan.train.start, tokenizer=False, rewrites=fixed)
    if learnt:
        vocabulary.widen(held, plan.dims.vocab, known, sorted(learnt))
        begin(held, plan)
        apply(held, plan.rewrites[len(fixed) :], plan.seed)
    graft(model, held)
    reset(model, held.device, held.dtype, plan.seed)
    return model


def _known(there: Model, plan: Plan) -> int:
    """How many tokens the weights that a plan begins from know."""
    if there.tokenizer is None:
        raise CheckpointError(
            f"{plan.train.start} has no tokenizer any more, and the run learns rows of tokens beside it; put it back"
        )
    return int(there.tokenizer.vocab_size)


@torch.no_grad()
def begin(model: Model, plan: Plan) -> None:
    """Let the rows of runs of spaces (`text.runs`) that are new begin as the mean of the rows of the tokens that wrote
    them before: the model reads about the same, and takes one for as likely as a space."""
    if not plan.text.runs:
        return
    old = formats.load(plan.train.start, device="meta").tokenizer
    new = old.grown(0, (), plan.text.runs)
    for i in range(old.vocab_size, new.vocab_size):
        parts = old.encode(new.decode([i]), add_special=False)
        for module, name in vocabulary.tables(model):
            rows = getattr(module, name)
            rows[i] = rows[parts].float().mean(0).to(rows.dtype)


@torch.no_grad()
def fill(model: Model, start: str, afresh: Collection[str] = ()) -> None:
    """Give `model` the weights of `start`. What these lack stays as it was initialised: heads, and rows of tokens that
    their tokenizer does not know; so do the heads `afresh`. Raises UsageError if the rest of the network differs."""
    source = formats.load(start, tokenizer=False)
    ours = model.state_dict()
    theirs = {name: t for name, t in source.state_dict().items() if name.partition(".")[0] not in afresh}
    new, left = (
        _held(model.arch.heads) - _held(source.arch.heads) | {*afresh},
        _held(source.arch.heads) - _held(model.arch.heads),
    )
    for name in sorted(ours.keys() ^ theirs.keys()):
        if name.partition(".")[0] not in (new if name in ours else left):
            raise UsageError(f"the weights in {start} are of another network: {name} is in one of them only")
    for name in ours.keys() & theirs.keys():
        if ours[name].shape[1:] != theirs[name].shape[1:] or len(ours[name]) < len(theirs[name]):
            raise UsageError(
                f"the weights in {start} are of another network: {name} has shape {tuple(theirs[name].shape)} there "
                f"and {tuple(ours[name].shape)} here"
            )
        ours[name][: len(theirs[name])] = theirs[name]
    if drawn := sorted({name.partition(".")[0] for name in ours.keys() - theirs.keys()}):
        one, names = len(drawn) == 1, ", ".join(map(repr, drawn))
        what, begin = (f"the head {names} is", "begins") if one else (f"the heads {names} are", "begin")
        warnings.warn(f"{what} not among the weights in {start} and {begin} with new ones", stacklevel=2)


def average(model: Model, plan: Plan) -> None:
    """Let the rows of tokens that tuning brings (`text.extras`) begin as the mean of the known ones."""
    if not isinstance(plan.objective, RowObjective) or not plan.text.extras:
        return
    known = formats.load(plan.train.start, device="meta").tokenizer.vocab_size
    if known < model.dims.vocab:
        vocabulary.widen(model, model.dims.vocab, known)


def net(spec: Net, seed: int, tokenizer: Any) -> Model:
    """A net beside the model that learns from weights that exist; heads that these lack are drawn from `seed`."""
    model = Model(spec.arch, spec.dims).initialise(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a head is new was decided by the plan
        fill(model, spec.weights)
    there = formats.load(spec.weights, device="meta", tokenizer=False)
    assert there.design is not None and there.family is not None
    design = replace(there.design, arch=spec.arch, dims=spec.dims)
    return formats.attach(model, design, there.family, tokenizer)
