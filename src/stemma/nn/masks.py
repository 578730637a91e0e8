"""Attention masks, from a mask spec and a batch's positions, padding, documents and prefixes.

`build_mask` returns the cheapest form: no mask where all is seen, the `causal` flag where that is all, else booleans.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stemma.nn import parts


class AttnMask(NamedTuple):
    """What one layer attends to: `mask` (1|B 1 T S, True: seen), or the `causal` flag, or everything."""

    mask: Tensor | None = None
    causal: bool = False


class MaskInputs(NamedTuple):
    """What a mask follows from.

    `qpos`, `kpos`: 1|B T and 1|B S, the index of each query and key in its row
    `is_arange`: both are 0..T-1 in every row and there is no cache; known without reading tensors
    `not_padding`: B S, True where the key is a token
    `qdoc`, `kdoc`: B T and B S, document numbers; a query sees keys of its own document
    `prefix`: B 1 or B T, under a prefix mask a query also sees all keys before this index
    `zero_padding`: queries at padding see nothing (DeBERTa)
    `chosen`: the mask that replaces an open one"""

    qpos: Tensor
    kpos: Tensor
    is_arange: bool
    not_padding: Tensor | None = None
    qdoc: Tensor | None = None
    kdoc: Tensor | None = None
    prefix: Tensor | None = None
    zero_padding: bool = False
    chosen: parts.LayerMask | None = None


CHOICES: dict[str, parts.LayerMask] = {
    "full": parts.Full(),
    "causal": parts.Causal(),
    "reverse": parts.Reverse(),
    "prefix": parts.Prefix(),
}


def layer_mask(spec: parts.Mask, layer: int) -> parts.LayerMask:
    """The mask of one layer, of a mask that may differ by layer."""
    match spec:
        case parts.Cycle(masks):
            return masks[layer % len(masks)]
        case parts.Memory(layers):
            return parts.Recall() if layer in layers else parts.Causal()
    return spec


def build_mask(spec: parts.LayerMask, inputs: MaskInputs) -> AttnMask:
    """The attention mask of one kind of layer."""
    if isinstance(spec, parts.Open):
        spec = inputs.chosen or parts.Full()
    length = inputs.qpos.shape[-1]
    window = spec.window if isinstance(spec, parts.Sliding) else None
    ordered = not isinstance(spec, parts.Full)
    backward = isinstance(spec, parts.Reverse)
    causal = ordered and not backward
    prefix = inputs.prefix if isinstance(spec, parts.Prefix) else None
    alone = inputs.not_padding is None and inputs.qdoc is None and prefix is None
    if inputs.is_arange and alone and not backward and (window is None or length <= window):
        return AttnMask(causal=causal)
    mask: Tensor | None = None
    far = inputs.qpos[:, :, None] - inputs.kpos[:, None, :]  # B T S: tokens from key to query
    if ordered:
        mask = far <= 0 if backward else far >= 0
        if window is not None and not (inputs.is_arange and length <= window):
            mask = mask & (far < window)
        if prefix is not None:
            mask = mask | (inputs.kpos[:, None, :] < prefix[:, :, None])
    if inputs.qdoc is not None and inputs.kdoc is not None:
        mask = _both(mask, inputs.qdoc[:, :, None] == inputs.kdoc[:, None, :])
    if inputs.not_padding is not None:
        mask = _both(mask, inputs.not_padding[:, None, :]).expand(-1, length, -1)
        if inputs.zero_padding:
            mask = mask & inputs.not_padding[:, :, None]
        elif inputs.is_arange:  # a query that sees nothing (left padding) would give NaN: it sees itself
            itself = torch.eye(length, dtype=torch.bool, device=mask.device)
            mask = mask | (itself & ~mask.any(-1, keepdim=True))
    return AttnMask() if mask is None else AttnMask(mask=mask[:, None])


def _both(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a & b
