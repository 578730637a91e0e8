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
from stemma.train.learners import Learners, fingerprint
from stemma.train.loop import SAMPLED
from stemma.train.prepare import read_plan, tokenizer_of


def is_checkpoint(path: Path) -> bool:
    """Whether this is a folder such as `RUN/checkpoints/step-000100`."""
    return checkpoint.NAME.fullmatch(path.name) is not None and path.parent.name == "checkpoints" and path.is_dir()


def load_checkpoint(path: Path) -> Model:
    """The model as it was at the checkpoint `path` of a run, whole and in eval mode, whatever mesh wrote it; where the
    run keeps a mean of the weights, that mean, as at the end of the run. Parameters that do not learn are those that
    the run began with. Raises CheckpointError for a checkpoint that is damaged or not the run's."""
    run = path.absolute().parent.parent
    plan, _ = read_plan(run)
    tokenizer = tokenizer_of(run)
    weights, slots, state = checkpoint.load(path)
    frozen = state.get("frozen")
    model, learning = model_of(plan, tokenizer, started=bool(frozen)), tuple(net for net in plan.nets if net.learns)
    objective, nets = objective_of(plan, tokenizer), nets_of(replace(plan, nets=learning), tokenizer)
    if nets:
        objective.tie(model, nets)
    own = Learners(model, nets).tensors(frozen=True)
    kept = {name: own.pop(name) for name in frozen["names"] if name in own} if frozen else {}
    if odd := sorted(own.keys() ^ (weights.keys() - kept.keys())):
        raise CheckpointError(f"the checkpoint {path} does not fit this model: {odd[0]} is in one of them only")
    if frozen and fingerprint(kept, SAMPLED) != frozen["fingerprint"]:
        raise CheckpointError(
            f"the frozen weights of the run {run} are not those that it began with; put back "
            f"{plan.train.start or 'the weights'} as it was"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(slots.get(f"{name}:{SLOT}", weights[name]))
    objective.untie(model, nets)
    return model.eval()
