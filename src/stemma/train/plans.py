"""From the name of a family or size to the plan of a run. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stemma import families, spec
from stemma.data import cleaning
from stemma.declare.family import Design, Family
from stemma.declare.recipes import Sampling
from stemma.errors import UsageError
from stemma.train.config import Net, Plan, Train
from stemma.train.scale import scaled, scaled_net


def default_data(design: Design | Plan) -> str:
    """The built-in text to train a design on where none is named: parallel text for what is trained on translations or
    draws languages, source code for what fills gaps in it, English prose for all others."""
    if data := design.objective.default_data:
        return data
    return "builtin:parallel" if design.recipe.sampling != Sampling() or design.dims.languages else "builtin:docs"


def resolve(
    name: str,
    *,
    data: str | None = None,
    budget: str = "5m",
    seed: int = 1,
    scale: str = "tiny",
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a run: the design of `name` at `scale`, with `overrides` by dotted path. Raises UsageError for an
    unknown name, scale, path or value, and for a design that cannot be trained."""
    plan = drafted(name, data=data, budget=budget, seed=seed, scale=scale, overrides=overrides)
    for what, value in (("recipe.lr", plan.recipe.lr), ("recipe.batch", plan.recipe.batch)):
        if value is None:
            raise UsageError(
                f"{what} of {plan.name} is unpublished; give one, such as --set {what}=..., or choose a --scale"
            )
    return plan


def drafted(
    name: str,
    *,
    data: str | None = None,
    budget: str = "5m",
    seed: int = 1,
    scale: str = "tiny",
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """As `resolve`, but the learning rate and the batch may be unknown."""
    changes = dict(overrides or {})
    name, scale = changes.pop("name", name), changes.pop("scale", scale)
    design = scaled(families.design(name), scale)
    if "train.seconds" in changes:
        raise UsageError("train.seconds follows from a budget of time; give the time as --budget (train.budget=60s)")
    if "recipe.steps" in changes and "train.budget" not in changes:
        changes["train.budget"] = f"{changes['recipe.steps']} steps"
    plan = Plan(
        name, scale, design.arch, design.dims, design.objective, design.text, design.recipe, Train(budget),
        data or "", seed,
    )  # fmt: skip
    if isinstance(changes.get("clean"), str) and not changes["clean"].lstrip().startswith(("(", "[")):
        changes["clean"] = cleaning.parse(changes["clean"])
    plan = spec.edit(plan, changes)
    plan = replace(plan, data=plan.data or default_data(plan))
    if (why := _incompatible_reason(plan, design)) is not None:
        raise UsageError(f"{name} cannot be trained so: {why}")
    if plan.context > plan.dims.context:
        raise UsageError(f"train.context={plan.context} exceeds dims.context={plan.dims.context}")
    if plan.objective != design.objective:
        from stemma.objectives import with_special_tokens

        plan = replace(plan, text=with_special_tokens(plan.objective, plan.text))
    plan = replace(plan, nets=_nets(plan, changes))
    if plan.train.start:
        return replace(plan, train=replace(plan.train, start=start_folder(plan.train.start)))
    return from_scratch(plan, changes)


def _incompatible_reason(plan: Plan, design: Design) -> str | None:
    """Why a design cannot be trained on its objective; None if it can. The tree's own designs, unchanged, can (a test
    asks all of them), which needs no torch."""
    if plan.recipe.ramp is not None and plan.objective.ramp_conflict:
        return f"{plan.objective.ramp_conflict}; set recipe.ramp=none"
    if plan.objective == design.objective and plan.arch == design.arch and families.declared(plan.name):
        return None
    from stemma.objectives import incompatible_reason

    return incompatible_reason(plan.objective, plan.arch)


def _nets(plan: Plan, changes: Mapping[str, Any]) -> tuple[Net, ...]:
    """The nets beside the model: at the plan's scale, or as their weights are. Changes of the model's arch, but for its
    heads, apply to nets that learn too."""
    own = {k: v for k, v in changes.items() if k.startswith("arch.") and not k.startswith("arch.heads")}
    found = []
    for role, (name, learns) in plan.objective.networks.items():
        if not learns and (weights := _weights(name)):
            from stemma import formats
            from stemma.objectives import teacher_mismatch

            known = formats.load(weights, device="meta", tokenizer=False)
            net = Net(role, known.name, known.arch, known.dims, learns, weights)
            if (why := teacher_mismatch(plan.objective, (plan.arch, plan.dims), (net.arch, net.dims))) is not None:
                raise UsageError(f"{plan.name} cannot learn from {name}: {why}")
            if net.dims.context < plan.context:
                raise UsageError(
                    f"rows of {plan.context} tokens are too long for the {role} {name}, which reads "
                    f"{net.dims.context}; set train.context={net.dims.context}"
                )
        elif learns:
            other = scaled_net(families.design(plan.name), families.design(name), plan.dims)
            net = Net(role, name, spec.edit(other, own).arch, other.dims, learns)
        else:
            other = scaled(families.design(name), plan.scale)
            net = Net(role, name, other.arch, other.dims, learns)
        found.append(net)
    return tuple(found)


def _weights(name: str) -> str:
    """The absolute folder or the hub id of a net's weights; empty for the name of a size."""
    if Path(name).exists():
        return str(Path(name).resolve())
    try:
        families.design(name)
    except UsageError as error:
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            return name
        raise UsageError(f"objective.teacher={name!r} is no folder here, no hub id and no size: {error}") from None
    return ""


# ---------------------------------------------------------------- where it begins


def start_folder(start: str) -> str:
    """The folder of the weights that `start` names (a run's `model`, or the folder itself), or a hub id as it is.
    Raises UsageError for a run that is not finished."""
    path = Path(start)
    if (path / "run.json").is_file():
        if not (path / "model").is_dir():
            raise UsageError(f"{start} has no model yet to begin from; finish it with: stemma resume {start}")
        return str((path / "model").resolve())
    return str(path.resolve()) if path.is_dir() else start


def missing_parent(plan: Plan) -> str | None:
    """The parent whose weights a `trained` family starts from; None for a family with weights of its own."""
    family: Family = families.family(plan.name)
    return family.parent.name if family.edge == "trained" and family.parent is not None else None


def from_scratch(plan: Plan, changes: Mapping[str, Any]) -> Plan:
    """A scaled plan that begins from new weights though its family starts from a parent's: it takes the learning rate
    and schedule of the nearest ancestor with weights of its own, unless they are given."""
    if plan.scale == "full" or missing_parent(plan) is None:
        return plan
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
