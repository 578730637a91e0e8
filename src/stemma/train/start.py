"""Where a run begins: from weights that exist, or, for a family that is more training of another's, from new ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stemma import families, formats, spec
from stemma.errors import UsageError
from stemma.families.declare import Family
from stemma.nn.model import Model
from stemma.train.config import Plan


def place(start: str) -> str:
    """The folder of the weights that `start` names: a run's model, or the folder itself; a hub id stays one. Raises
    UsageError for a run that is not finished."""
    path = Path(start)
    if (path / "run.json").is_file():
        if not (path / "model").is_dir():
            raise UsageError(f"{start} has no model yet to begin from; finish it with: stemma resume {start}")
        return str((path / "model").resolve())
    return str(path.resolve()) if path.is_dir() else start


def tokenizer(plan: Plan) -> Any:
    """The tokenizer of the weights that a plan begins from, grown by the special tokens that its objective needs."""
    found = formats.load(plan.train.start).tokenizer
    if found is None:
        raise UsageError(f"{plan.train.start} has no tokenizer, and a run takes that of the weights it begins from")
    return found.grown(plan.text.sentinels, plan.text.extras)


def rows(plan: Plan) -> int:
    """The rows of the embeddings that a plan begins from. Raises UsageError where its network is another one than
    theirs: all that has weights must be the same; the mask, dropout, and the context of networks without a table of
    places need not be."""
    model = formats.load(plan.train.start, tokenizer=False)
    ours = replace(plan.arch, mask=model.arch.mask, dropout=model.arch.dropout, init=model.arch.init)
    places = any("position" in name for name in model.state_dict())
    dims = replace(plan.dims, vocab=model.dims.vocab, context=plan.dims.context if places else model.dims.context)
    for part, old, new in (("arch", model.arch, ours), ("dims", model.dims, dims)):
        if changes := spec.diff(old, new, f"{part}."):
            one = changes[0]
            raise UsageError(
                f"{plan.train.start} has {one.path}={one.old} and {plan.name} at scale {plan.scale} {one.new}; begin "
                "from weights of its own design and scale"
            )
    return model.dims.vocab


@torch.no_grad()
def fill(model: Model, start: str) -> None:
    """Give `model` the weights of `start`. Rows of tokens that these do not know stay as they were drawn."""
    theirs = formats.load(start, tokenizer=False).state_dict()
    ours = model.state_dict()
    if odd := sorted(ours.keys() ^ theirs.keys()):
        raise UsageError(f"the weights in {start} are of another network: {odd[0]} is in one of them only")
    for name, tensor in ours.items():
        tensor[: len(theirs[name])] = theirs[name]


def unborn(plan: Plan) -> str | None:
    """The parent of whose weights a plan's family is more training; None for a family that begins from new ones."""
    family: Family = families.family(plan.name)
    return family.parent.name if family.edge == "trained" and family.parent is not None else None


def from_nothing(plan: Plan, changes: Mapping[str, Any]) -> Plan:
    """A scaled plan that begins from new weights though its family begins from a parent's: with the rate and schedule
    of the ancestor that began from new ones too, unless they are given."""
    if plan.scale == "full" or unborn(plan) is None:
        return plan
    from stemma.train.scale import scaled

    family: Family = families.family(plan.name)
    first = next(f for f in family.lineage if f.edge != "trained")
    size = next(iter(first.sizes), None)
    if size is None:
        return plan
    recipe = scaled(first[size], plan.scale).recipe
    kept = {
        part: getattr(recipe, part)
        for part in ("lr", "schedule")
        if not any(path.startswith(f"recipe.{part}") for path in changes)
    }
    return replace(plan, recipe=replace(plan.recipe, **kept))
