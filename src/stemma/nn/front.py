"""What stands in front of every text that a model reads: the vectors of a soft prompt, or a layer's keys and values.

A model has a place for each, which is empty until a rewrite fills it. A text's own positions go on behind them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.attention import Rotate
from stemma.nn.inputs import Inputs
from stemma.nn.masks import EVERY
from stemma.nn.positions import Position


class Prompt(nn.Module):
    """The place of vectors in front of the embedded tokens. `width`: of a vector."""

    length = 0  # vectors

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def vectors(self) -> Tensor:
        """N E."""
        raise NotImplementedError


class Past(nn.Module):
    """The place of keys and values in front of those of the tokens. `layers` of `heads` key heads of a `width` each;
    `cross`: the layers have cross-attention too."""

    length = 0  # keys a layer

    def __init__(self, layers: int, heads: int, width: int, cross: bool) -> None:
        super().__init__()
        self.layers, self.heads, self.width, self.cross = layers, heads, width, cross

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, H N D each. Keys are not rotated."""
        raise NotImplementedError


def before(pair: tuple[Tensor, Tensor], k: Tensor, v: Tensor, rotate: Rotate | None) -> tuple[Tensor, Tensor]:
    """A layer's keys (rotated) and values of tokens (B H T D), behind those of `pair` (H N D)."""
    own = k if rotate is None else rotate(k)
    keys, values = (x.to(k.dtype).expand(len(k), -1, -1, -1) for x in pair)
    return torch.cat([keys, own], 2), torch.cat([values, v], 2)


# ---------------------------------------------------------------- texts behind what stands in front


def counted(inputs: Inputs, position: Position) -> Inputs:
    """Inputs whose tokens have positions in their own document, where a row holds several."""
    documents = inputs.documents
    if documents is None or inputs.position_ids is not None:
        return inputs
    if position.columns > 1:
        raise UsageError("rows of several documents behind a prompt need position_ids")
    places = torch.arange(documents.shape[1], device=documents.device)
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
    starts = torch.where(begins, places, 0).cummax(1).values
    return replace(inputs, position_ids=places - starts + position.first)


def shifted(inputs: Inputs, by: int) -> Inputs:
    """Inputs whose given places are those behind `by` others."""
    pos, order, prefix = inputs.position_ids, inputs.order, inputs.prefix
    if pos is not None:  # of two columns, the first is the place
        pos = pos + by if pos.ndim == 2 else torch.cat([pos[..., :1] + by, pos[..., 1:]], -1)
    return replace(
        inputs,
        position_ids=pos,
        order=None if order is None else order + by,
        prefix=None if prefix is None else prefix + by,
    )


def behind(inputs: Inputs, prompt: Tensor, tokens: Tensor, position: Position) -> Inputs:
    """Inputs of a text behind a soft prompt (N E). `tokens`: the embeddings of the text, B T E."""
    rows, n = len(tokens), len(prompt)
    new = shifted(inputs, n)
    mask, segments, langs, documents = (
        inputs.attention_mask, inputs.token_type_ids, inputs.langs, inputs.documents
    )  # fmt: skip
    blank = torch.full((rows, n), -1, device=tokens.device)
    if new.position_ids is not None:
        own = position.number(blank)
        new.position_ids = torch.cat([own.expand(rows, *own.shape[1:]), new.position_ids], 1)
    elif position.first:  # padding is not counted
        new.position_ids = position.number(torch.cat([blank, inputs.countable()], 1))
    if new.order is not None:
        places = torch.arange(n, device=tokens.device)[None]
        new.order = torch.cat([places.expand(len(new.order), -1), new.order], 1)
    if new.prefix is not None and new.prefix.ndim == 2 and new.prefix.shape[1] > 1:
        new.prefix = torch.cat([new.prefix[:, :1].expand(-1, n), new.prefix], 1)
    new.attention_mask = None if mask is None else F.pad(mask, (n, 0), value=1)
    new.token_type_ids = None if segments is None else F.pad(segments, (n, 0))
    new.langs = None if langs is None else torch.cat([langs[:, :1].expand(-1, n), langs], 1)
    new.documents = None if documents is None else F.pad(documents, (n, 0), value=EVERY)
    new.roots = None if new.roots is None else F.pad(new.roots, (n, 0), value=EVERY)
    new.inputs_embeds = torch.cat([prompt.to(tokens.dtype).expand(rows, -1, -1), tokens], 1)
    new.input_ids = new.embeds_at = None
    return new


def check_documents(masks: list[parts.LayerMask]) -> None:
    """Raises UsageError where documents in one row would not each read the soft prompt as if they were alone."""
    if not all(isinstance(mask, parts.Causal | parts.Sliding) for mask in masks):
        raise UsageError(
            "a soft prompt reads the text behind it in this model, so each row must hold one document; this batch has "
            "rows of several (documents=)"
        )
