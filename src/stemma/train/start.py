"""Where a run begins: from weights that exist, or, for a family that is more training of another's, from new ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from stemma import formats, spec
from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.objectives import tokens
from stemma.train.config import Plan


def tokenizer(plan: Plan) -> Any:
    """The tokenizer of the weights that a plan begins from, grown by the special tokens that its objective needs."""
    found = formats.load(plan.train.start).tokenizer
    if found is None:
        raise UsageError(f"{plan.train.start} has no tokenizer, and a run takes that of the weights it begins from")
    return found.grown(plan.text.sentinels, (*plan.text.extras, *tokens(plan.objective, plan.text)))


def rows(plan: Plan) -> int:
    """The rows of the embeddings that a plan begins from. Raises UsageError where its network is another one than
    theirs: all that has weights must be the same; the mask, dropout, and the context of networks without a table of
    places need not be."""
    model = formats.load(plan.train.start, tokenizer=False)
    if model.arch.structure != plan.arch.structure:
        raise UsageError(
            f"the weights in {plan.train.start} are those of structure {model.arch.structure}, and {plan.name} is of "
            f"structure {plan.arch.structure}; begin from weights of its own design"
        )
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
