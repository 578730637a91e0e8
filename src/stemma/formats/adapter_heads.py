"""The task head that an adapter's directory brings, put on the base model before the adapter is attached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma.declare.family import Design
from stemma.declare.tasks import HeadTask
from stemma.errors import CheckpointError
from stemma.formats import kept
from stemma.formats.heads import HEADS, body_for, heads_for, part, task_of, with_heads
from stemma.formats.peft_names import CONFIG, table
from stemma.formats.weights import attach, design_of, meta_model
from stemma.nn.init import initialise
from stemma.nn.model import Model
from stemma.nn.parts import Task

# `task_type` of adapter_config.json -> a family's name of the head; PEFT has no type for choices
KINDS: dict[str | None, str] = {"SEQ_CLS": "classify", "TOKEN_CLS": "tag", "QUESTION_ANS": "answer"}
SCORES = "task.out.weight"  # a row for each label


def equip(model: Model, folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Give `model` the head that the adapter in `folder` was tuned with, in place, and the names of its labels, where
    the adapter's tensors (`state`, by the publisher's names) hold a head that the model lacks. Raises CheckpointError
    if they hold a part of it only."""
    kind = config.get("task_type")
    if kind is not None and kind not in KINDS:
        return
    task = kept.load(folder)
    if not isinstance(task, HeadTask):
        task = None
    name = task.head if task is not None else KINDS.get(kind)
    if name is None:
        return
    names: tuple[str, ...] = getattr(task, "labels", ())
    head = task_of(model.family, name, None)
    if hasattr(head, "labels"):
        rows = _counted(model, head, state)
        if names and rows is not None and rows != len(names):
            raise CheckpointError(f"{folder}: its {kept.FILE} names {len(names)} labels, and its head has {rows}")
        count = rows or len(names) or None
        problem = task.problem if task is not None else "regression" if count == 1 and name == "classify" else None
        head = task_of(model.family, name, count, problem)
    if not _same(model.arch.heads.task, head):
        _check(model, _put(model, head), folder, state)
    model.labels = names or model.labels


def _same(held: Task | None, wanted: Task) -> bool:
    """Whether a model's own head is of the type, the labels and the loss that are wanted."""
    fields = ("labels", "problem")
    return type(held) is type(wanted) and all(getattr(held, f, None) == getattr(wanted, f, None) for f in fields)


def _twin(model: Model, head: Task) -> Model:
    """The model with a head, on the device "meta"."""
    design = _with(model, head)
    return attach(meta_model(design), design, model.family)


def _with(model: Model, head: Task) -> Design:
    design = design_of(model)
    return body_for(with_heads(design, heads_for(head, design, model.family)))


def _counted(model: Model, head: Task, state: Mapping[str, Tensor]) -> int | None:
    """How many labels the tensors of an adapter have a row for; None if they hold no head."""
    rows = table(_twin(model, head)).rows
    name = next((name for name, r in rows.items() if r.ours == (SCORES,)), None)
    held = state.get(name or "")
    return len(held) if held is not None and held.ndim == 2 else None


def _put(model: Model, head: Task) -> set[str]:
    """Replace the heads of a model by those of a task. Returns the parts that are new, which are drawn."""
    design = _with(model, head)
    made, device, dtype = meta_model(design).train(model.training), model.device, model.dtype
    drawn = torch.nn.ModuleDict()
    for name in (*HEADS, "decoder"):
        new, old = getattr(made, name), getattr(model, name)
        if new is None or old is None or name == "task":
            setattr(model, name, new)
            if new is not None:
                drawn[name] = new
    if device.type != "meta":
        drawn.to_empty(device="cpu")
        initialise(drawn, design.arch, design.dims, 0)
        drawn.to(device=device, dtype=dtype)
    model.arch, model.design, model.labels = design.arch, design, ()
    return {*drawn}


def _check(model: Model, drawn: set[str], folder: Path, state: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError where the tensors of an adapter lack one of the parts that were drawn."""
    for name, r in table(model).rows.items():
        if part(r) in drawn and name not in state:
            raise CheckpointError(
                f"{folder}/{CONFIG} says that it is an adapter of a model with a head for a task, which "
                f"{model.origin or 'the base'} lacks, and the file holds no {name!r}: load the base with its head "
                "(task=..., labels=...)"
            )
