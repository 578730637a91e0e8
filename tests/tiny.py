"""A tiny relative of every family: its arch as declared, with small odd widths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from stemma import spec
from stemma.declare.family import Design
from stemma.families import tree
from stemma.nn.model import Model, Output
from stemma.nn.parts import BlankLearned, BlankRotary, Prefix, RelativeSinusoidal, Rotary, Sliding
from stemma.spec import Spec

FAMILIES = [f.name for f in tree().values() if f.edge in ("root", "evolve")]  # with a design of their own
LENGTH = 23


def tiny(name: str, **changes: Any) -> Design:
    """The first size of a family, made small: windows and buckets too, so that a short text meets every rule."""
    family = tree()[name]
    design = family[next(iter(family.sizes))]
    small: dict[str, Any] = {
        "dims.d_model": 36,
        "dims.layers": 3,
        "dims.heads": 6,
        "dims.kv_heads": 2 if design.dims.kv_heads else None,
        "dims.head_dim": 10 if design.dims.head_dim else None,
        "dims.d_ff": 50,
        "dims.vocab": 83,
        "dims.context": 40,
        "dims.embed": 20 if design.dims.embed else None,
        "dims.languages": 3 if design.dims.languages else 0,
        "dims.experts": 4 if design.dims.experts else None,
        "dims.active": 2 if design.dims.active else None,
    }
    for path, value in spec.leaves(design.arch, "arch."):
        if path.endswith("window"):
            small[path] = 5
        elif path.endswith(".masks"):
            small[path] = tuple(dict.fromkeys(Sliding(5) if isinstance(m, Sliding) else m for m in value))
        elif path.endswith("scaling.context"):
            small[path] = 12
        elif path == "arch.mask.layers":
            small[path] = (1,)
        elif path.endswith("position.buckets") and value is not None:
            small |= {path: 8, "arch.position.distance": 16}
        elif path.endswith("position.distance"):
            small.setdefault(path, 6)
        elif path.startswith("arch.dropout."):
            small[path] = 0.0
    scheme = design.arch.position
    if isinstance(scheme, BlankRotary) or (isinstance(scheme, Rotary) and scheme.share < 1):
        small["dims.d_model"] = 72  # half a head still holds a slow pair
    design = spec.edit(design, small)
    pad = design.text.pad_id or 0
    ids: dict[str, Any] = {"text.mask_id": None if design.text.mask_id is None else 4}
    ids |= {"text.pad_id": pad if pad < small["dims.vocab"] else 0, "text.start_id": 0}
    return spec.edit(spec.edit(design, ids), changes)


def build(design: Design, seed: int = 0, jitter: float = 0.1) -> Model:
    """Its model, every parameter off its initial value."""
    return jittered(Model(design.arch, design.dims).initialise(seed), design, seed, jitter)


def jittered(model: Model, design: Design, seed: int = 0, jitter: float = 0.1) -> Model:
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * jitter)
    model.text = design.text
    return model.eval()


def batch(design: Design, rows: int = 3, length: int = LENGTH, seed: int = 3) -> dict[str, torch.Tensor]:
    """Inputs for it, with padding on the right."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, length, dtype=torch.int64)
    if rows > 1:
        mask[1, length - 4 :] = 0
    pad = design.text.pad_id or 0
    ids = torch.randint(3, design.dims.vocab, (rows, length), generator=generator).masked_fill(mask == 0, pad)
    inputs = {"input_ids": ids, "attention_mask": mask}
    segments = 4 if isinstance(design.arch.position, RelativeSinusoidal) else design.dims.segments
    if segments > 1:
        inputs["token_type_ids"] = torch.randint(0, segments, (rows, length), generator=generator)
    if design.dims.languages:
        inputs["langs"] = torch.randint(0, design.dims.languages, (rows, length), generator=generator)
    if design.arch.structure == "decoder" and isinstance(design.arch.mask, Prefix):
        inputs["prefix"] = torch.tensor([5, 3, 9])[:rows]
        if isinstance(design.arch.position, BlankLearned | BlankRotary):  # what follows the prefix fills its place 2
            place = torch.arange(length).expand(rows, -1)
            filled = place >= inputs["prefix"][:, None]
            within = (place - inputs["prefix"][:, None] + 1) * filled
            inputs["position_ids"] = torch.stack([place.masked_fill(filled, 2), within], -1)
    if design.arch.structure == "encoder-decoder":
        inputs["decoder_input_ids"] = torch.randint(3, design.dims.vocab, (rows, length), generator=generator)
    return inputs


def run(model: Model, inputs: dict[str, torch.Tensor]) -> Output:
    with torch.no_grad():
        return model(**inputs)


def answers(out: Output) -> torch.Tensor:
    """The logits of the task head: of a span's ends B T 2."""
    if out.start_logits is not None and out.end_logits is not None:
        return torch.stack([out.start_logits, out.end_logits], -1)
    return next(x for x in (out.mc_logits, out.task_logits, out.logits) if x is not None)


def slow(*cases: str) -> list[Any]:
    """Cases of a parametrised test that the default suite leaves out."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


# ---------------------------------------------------------------- families that are one network


def types(value: Any) -> Any:
    """A spec without its numbers: which components, switches and words it has."""
    if isinstance(value, Spec):
        return type(value).__name__, *(types(getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, tuple):
        return tuple(map(types, value))
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else value


def network(name: str) -> Any:
    """What `nn` sees of a tiny family. Equal for LLaMA and LLaMA 2, which differ in numbers."""
    design = tiny(name)
    return types(design.arch), types(design.dims)


def kind(name: str) -> Any:
    """What decides how attention is masked and compiled: structure, positions, masks and streams."""
    arch = tiny(name).arch
    return arch.structure, type(arch.position), type(arch.mask), arch.streams is not None


def first_of_each(key: Callable[[str], Any]) -> list[Any]:
    """FAMILIES as parameters of a test: the first of every group of `key`, and the others as slow ones."""
    seen: set[Any] = set()
    found = []
    for name in FAMILIES:
        group = key(name)
        found.append(pytest.param(name, marks=pytest.mark.slow) if group in seen else pytest.param(name))
        seen.add(group)
    return found


NETWORKS = first_of_each(network)
KINDS = first_of_each(kind)
