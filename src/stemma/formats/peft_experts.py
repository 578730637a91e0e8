"""Adapters of experts in PEFT's directories, which go by the stacked matrices of transformers (`target_parameters`).

Of each mixture there are two, one nested in the other: of gate and up, packed, and of down. A's rows are those of all
experts, expert by expert; B's columns are by rank first and by expert second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma.errors import CheckpointError, UsageError
from stemma.formats.peft_names import BESIDE, A, B, Table
from stemma.nn.model import Model
from stemma.rewrites.adapters import experts_of
from stemma.rewrites.kinds import LoRA
from stemma.rewrites.lora_experts import Pair
from stemma.rewrites.paths import PlainTensors, plain_modules

Nests = Mapping[str, Mapping[str, Tensor]]  # how deep -> A and B


def rewrites_of(
    folder: Path, config: Mapping[str, Any], experts: Mapping[str, Nests], here: Table, model: Model, name: str
) -> Iterator[LoRA]:
    """The rewrite of the experts' adapters. Raises CheckpointError for shapes that do not fit."""
    ranks, shapes = set(), PlainTensors(model).shapes
    for module, nests in experts.items():
        count, inner, width = shapes[f"{here.experts[module]}.gate"]
        both = [parts for parts in nests.values() if {A, B} <= {*parts}]
        found = sorted((len(parts[B]), parts[A].shape[1]) for parts in both)
        rows = {len(parts[A]) for parts in nests.values() if A in parts}
        if found != sorted([(2 * inner, width), (width, inner)]) or len(rows) != 1 or next(iter(rows)) % count:
            raise CheckpointError(
                f"{folder}: {module} needs an A and a B of gate_up_proj and of down_proj for {count} experts of "
                f"{width} x {inner}, of one rank"
            )
        ranks.add(rows.pop() // count)
    if len(ranks) > 1:
        raise CheckpointError(f"{folder}: experts of several ranks ({sorted(ranks)}) are not supported")
    if ranks:
        paths = tuple(here.experts[module] for module in experts)
        yield LoRA(paths, ranks.pop(), float(config["lora_alpha"]), rslora=config["use_rslora"], name=name)


def fill(model: Model, name: str, path: str, nests: Nests) -> None:
    """Give our experts the tensors of one of the publisher's mixtures."""
    module = experts_of(model.get_submodule(path), name)
    assert module is not None
    for parts in nests.values():
        entering = len(parts[B]) == 2 * module.inner and parts[A].shape[1] == module.enter.down.shape[2]
        pair = module.enter if entering else module.leave
        count = len(pair.down)
        with torch.no_grad():
            pair.down.copy_(parts[A].view(count, -1, parts[A].shape[1]))
            pair.up.copy_(parts[B].view(len(parts[B]), -1, count).permute(2, 0, 1))


def written(model: Model, name: str, here: Table, state: dict[str, Tensor]) -> dict[str, tuple[int, float]]:
    """Put the tensors of the experts' adapters into `state`. Returns the rank and scale of each mixture. Raises
    UsageError where the publisher's names have no place for one."""
    found = {}
    names = {path: module for module, path in here.experts.items()}
    for path, plain in plain_modules(model):
        module = experts_of(plain, name)
        if module is None:
            continue
        if path not in names:
            raise UsageError(f"PEFT's format has no name for the adapter at {path}; merge it instead")
        for prefix, pair in ((f"{names[path]}{BESIDE}", module.enter), (f"{names[path]}.", module.leave)):
            state[prefix + A], state[prefix + B] = _flat(pair)
        found[names[path]] = module.spec.rank, module.spec.scale
    return found


def _flat(pair: Pair) -> tuple[Tensor, Tensor]:
    down, up = pair.down.detach().float().cpu(), pair.up.detach().float().cpu()
    return down.flatten(0, 1).contiguous(), up.permute(1, 2, 0).flatten(1).contiguous()
