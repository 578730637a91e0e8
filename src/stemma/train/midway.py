"""The model of a run that is not at its end: what a checkpoint holds of it, whoever wrote it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from stemma.errors import CheckpointError
from stemma.nn.model import Model
from stemma.runs import checkpoint
from stemma.train.assemble import model_of, nets_of, objective_of
from stemma.train.average import SLOT
from stemma.train.learners import Learners
from stemma.train.prepare import read_plan, tokenizer_of


def is_checkpoint(path: Path) -> bool:
    """Whether this is a folder such as `RUN/checkpoints/step-000100`."""
    return checkpoint.NAME.fullmatch(path.name) is not None and path.parent.name == "checkpoints" and path.is_dir()


def load_checkpoint(path: Path) -> Model:
    """The model as it was at the checkpoint `path` of a run, whole and in eval mode, whatever mesh wrote it; where the
    run keeps a mean of the weights, that mean, as at the end of the run. Raises CheckpointError for one that is damaged
    or not the run's."""
    run = path.absolute().parent.parent
    plan, _ = read_plan(run)
    plan = replace(plan, train=replace(plan.train, start=""))  # weights that are replaced need not be read
    tokenizer = tokenizer_of(run)
    weights, slots, _ = checkpoint.load(path)
    model, learning = model_of(plan, tokenizer), tuple(net for net in plan.nets if net.learns)
    objective, nets = objective_of(plan, tokenizer), nets_of(replace(plan, nets=learning), tokenizer)
    if nets:
        objective.tie(model, nets)
    own = Learners(model, nets).tensors()
    if odd := sorted(own.keys() ^ weights.keys()):
        raise CheckpointError(f"the checkpoint {path} does not fit this model: {odd[0]} is in one of them only")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(slots.get(f"{name}:{SLOT}", weights[name]))
    objective.untie(model, nets)
    return model.eval()
