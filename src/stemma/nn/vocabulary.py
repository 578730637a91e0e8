"""More tokens for a model that is built: its tables of the vocabulary get rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from stemma.errors import UsageError
from stemma.nn.model import Model


def tables(model: Model) -> Iterator[tuple[nn.Module, str]]:
    """The modules that hold a row (or a number) a token, and the name of the parameter."""
    plain = type(model.embed.tokens) is nn.Embedding
    if not plain or (model.lm is not None and not hasattr(model.lm, "bias")):
        raise UsageError("the embeddings are replaced already (quantised, or an adapter's); add tokens before that")
    yield model.embed.tokens, "weight"
    for name in ("weight", "bias"):
        if model.lm is not None and getattr(model.lm, name, None) is not None:
            yield model.lm, name


@torch.no_grad()
def widen(model: Model, rows: int, known: int, ids: Sequence[int] | None = None) -> None:
    """Give the tables `rows` rows, in place, if they have fewer, and make every row from `known` on, or those of `ids`
    among them, the mean of those before (tatsu-lab/stanford_alpaca, train.py): a new token is as likely then as the
    known ones are on average, where a random row could be likelier than all. Raises UsageError where a rewrite replaced
    them."""
    held = model.dims.vocab
    for module, name in list(tables(model)):
        old = getattr(module, name)
        new = old
        if rows > held:
            new = nn.Parameter(old.new_empty(rows, *old.shape[1:]), requires_grad=old.requires_grad)
            new[:held] = old
            setattr(module, name, new)
        which = slice(known, None) if ids is None else [i for i in ids if i >= known]
        new[which] = new[:known].float().mean(0).to(new.dtype)
    if rows > held:
        model.embed.tokens.num_embeddings = rows
        if model.lm is not None:
            model.lm.shape = (rows, *model.lm.shape[1:])
        model.dims = dataclasses.replace(model.dims, vocab=rows)
        if model.design is not None:
            model.design = dataclasses.replace(model.design, dims=dataclasses.replace(model.design.dims, vocab=rows))
