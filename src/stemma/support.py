"""What Stemma supports for each family: one row a family, each cell a fact that a test tries."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stemma import families, spec
from stemma.declare.family import Design, Family
from stemma.decoding.inputs import generates
from stemma.formats import layout_of, with_task
from stemma.nn.model import Model
from stemma.objectives import incompatible_reason

TASKS = ("classify", "tag", "answer", "choose")


@dataclass(frozen=True)
class Support:
    """`trains`: the family's own objective can be trained; `layouts`: model types of the public layouts in which it is
    loaded and saved; `tasks`: heads that these layouts hold; `writes`: it generates text with a cache; `fills`: it
    restores masked text."""

    family: str
    objective: str
    trains: bool
    layouts: tuple[str, ...]
    tasks: tuple[str, ...]
    writes: bool
    fills: bool


def shallow(design: Design) -> Design:
    """A design with two layers a stack, which is as able as the whole one and quick to build."""
    counts = ("layers", "decoder_layers", "groups")
    return spec.edit(design, {f"dims.{n}": 2 for n in counts if (getattr(design.dims, n) or 0) > 2})


def support(family: Family) -> Support:
    """The row of a family that has sizes."""
    design = shallow(family.first)
    layout, _, _ = layout_of(design, family)
    tasks = []
    for task in family.tasks:
        if layout is not None and layout_of(with_task(design, family, task), family)[0] is not None:
            tasks.append(task)
    with torch.device("meta"):
        writes = generates(Model(design.arch, design.dims))
    return Support(
        family.name,
        type(family.objective).__name__,
        incompatible_reason(family.objective, family.arch) is None,
        () if layout is None else (layout.model_type,),
        tuple(tasks),
        writes,
        family.objective.fills,
    )


def matrix() -> list[Support]:
    """The rows of all families with a design of their own, in the order of the tree."""
    return [support(f) for f in families.tree().values() if f.edge in ("root", "evolve")]
