"""From a config.json to a design, and from a design to the layout that it is saved in."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stemma import families, spec
from stemma.declare.family import Design, Family, Text
from stemma.errors import CheckpointError, UsageError, did_you_mean, nearest
from stemma.formats import own
from stemma.formats.classes import class_in, present
from stemma.formats.config import GENERAL, read_config, write_config
from stemma.formats.keys import Layout
from stemma.formats.names import Row, expand
from stemma.formats.weights import meta_model
from stemma.rewrites.paths import PlainTensors


def _layouts() -> dict[str, Layout]:
    """Every layout of the modules `hf_*` beside this one."""
    beside = pkgutil.iter_modules([str(Path(__file__).parent)])
    modules = [importlib.import_module(f"{__package__}.{m.name}") for m in beside if m.name.startswith("hf_")]
    found = [value for module in modules for value in vars(module).values()]
    return {layout.name: layout for layout in found if isinstance(layout, Layout)}


LAYOUTS = _layouts()


def add(layout: Layout) -> None:
    """Read and write a layout of one's own as those of this package. It is asked before them where both describe a
    family. Raises UsageError for a name that another layout has."""
    if LAYOUTS.get(layout.name, layout) != layout:
        raise UsageError(f"a layout {layout.name!r} is known already; choose another model_type")
    known = {name: old for name, old in LAYOUTS.items() if name != layout.name}
    LAYOUTS.clear()
    LAYOUTS.update({layout.name: layout, **known})


def read_design(raw: Mapping[str, Any]) -> tuple[Design, Family | None, Layout | None, dict[str, str]]:
    """The design of a config.json (with the heads of its class), its family, its layout and the unused keys."""
    if "model_type" not in raw:
        like = [k for k in raw if nearest("model_type", [k], 1) and k not in GENERAL]
        hint = f"; is {like[0]!r} meant to be it?" if like else ""
        raise CheckpointError(f"config.json has no 'model_type', which says what model it describes{hint}")
    model_type = raw["model_type"]
    if model_type == own.MODEL_TYPE:
        design = own.read_config(raw)
        return design, families.tree().get(str(raw.get("family"))), None, {}
    layout = _layout_for(model_type, raw)
    design, unused = read_config(layout, raw)
    owner, name = nearest_family(design, layout, raw)
    design = replace(design, name=name, text=text_of(design, owner), objective=owner.objective, recipe=owner.recipe)
    return design, owner, layout, unused


def _layout_for(model_type: Any, raw: Mapping[str, Any]) -> Layout:
    """The layout of a model_type. Where two layouts share one, the config must have the mark of one of them."""
    found = [layout for layout in LAYOUTS.values() if layout.model_type == model_type]
    if not found:
        known = [*dict.fromkeys(layout.model_type for layout in LAYOUTS.values()), own.MODEL_TYPE]
        hint = did_you_mean(str(model_type), known)
        raise CheckpointError(f"config.json: model_type {model_type!r} is not known; known: {', '.join(known)}{hint}")
    marked = [layout for layout in found if len(found) == 1 or layout.mark in raw]
    if len(marked) != 1:
        ways = " or ".join(f"{layout.mark} ({layout.families[0]})" for layout in found)
        held = "both" if marked else "neither"
        raise CheckpointError(f"config.json: model_type {model_type!r} comes with {ways}, and this file has {held}")
    return marked[0]


def nearest_family(design: Design, layout: Layout, raw: Mapping[str, Any]) -> tuple[Family, str]:
    """The family of the layout that the design differs least from, and the size that it equals, else the family's name.
    Among families with the same network: one with an equal size first, then the closest heads and dropout rates."""
    named = class_in(layout, raw)
    has = present(design.arch.heads if named is None else layout.classes[named])

    def body(owner: Family) -> int:
        same = {"dropout": design.arch.dropout, "heads": design.arch.heads}
        return len(spec.diff(spec.edit(owner.arch, same), design.arch))

    def rest(owner: Family) -> tuple[int, int]:
        theirs = present(owner.arch.heads)
        rates = spec.diff(owner.arch.dropout, design.arch.dropout)
        return sum(a != b for a, b in zip(theirs, has, strict=True)), len(rates)

    owners = sorted((families.family(f) for f in layout.families), key=rest)
    for owner in owners:
        for size, row in owner.sizes.items():
            if row.dims == design.dims and not _body_changes(owner[size], design):
                return owner, size
    owner = min(owners, key=body)
    return owner, owner.name


def _body_changes(a: Design, b: Design) -> list[spec.Change]:
    ignore = ("arch.heads", "arch.init", "arch.dropout")
    return [c for c in spec.diff(a, b) if c.path.startswith("arch.") and not c.path.startswith(ignore)]


def text_of(design: Design, owner: Family) -> Text:
    """A family's text settings with the ids of a design."""
    kept = ("bos_id", "eos_id", "pad_id", "start_id", "mask_id", "languages", "blank_ids")
    ids = {f: getattr(design.text, f) for f in kept}
    return replace(owner.text, **ids)


def layout_of(design: Design, family: Family | None) -> tuple[Layout | None, dict[str, Any], str]:
    """The layout that a design is saved in, its config.json, and why no other: the family's layout, else the nearest
    ancestor's that can express all of it, else Stemma's own (None)."""
    why = ""  # of the nearest layout
    for relative in family.lineage if family is not None else []:
        for layout in LAYOUTS.values():
            if relative.name in layout.families:
                try:
                    data = write_config(layout, design)
                    table_of(design, layout, PlainTensors(meta_model(design), slices=True))
                    return layout, data, ""
                except (UsageError, CheckpointError) as error:
                    why = why or str(error)
    return None, own.write_config(design, family.name if family else None), why or "its family has no other"


def table_of(design: Design, layout: Layout | None, shapes: Mapping[str, Any]) -> list[Row]:
    """The names table of a model. Raises UsageError if the layout has no name for a parameter."""
    if layout is None:
        return own.rows(shapes)
    rows = [r for r in expand(layout.rows(design), design) if all(o in shapes for o in r.ours)]
    unnamed = sorted(set(shapes) - {o for r in rows for o in r.ours})
    if unnamed:
        raise UsageError(f"the {layout.model_type!r} layout has no name for the parameter {unnamed[0]!r}")
    return rows


def file_rows(
    design: Design, layout: Layout | None, config: Mapping[str, Any], shapes: Mapping[str, Any]
) -> dict[str, Row]:
    """The rows of `table_of` by the names that a file of the class in `config` has for their tensors."""
    heads = design.arch.heads
    bare = not any((heads.lm, heads.pair, heads.detect, heads.task))
    found = {}
    for r in table_of(design, layout, shapes):
        name = r.theirs
        if layout is not None and name.startswith(layout.prefix):
            body = "" if bare else layout.bodies.get(config["architectures"][0], layout.prefix)
            name = body + name.removeprefix(layout.prefix)
        found[name] = r
    return found
