"""Who sees whom. A mask spec and facts about the batch (padding, documents, positions) become arguments of attention.

The chooser returns nothing where everything is seen, a flag where plain causal order is all there is, and a dense
boolean tensor otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stemma.nn import parts


class AttnMask(NamedTuple):
    """What one layer may attend to: `mask` (1|B 1 T S, True = seen) or the `causal` flag, or neither for all."""

    mask: Tensor | None = None
    causal: bool = False


class MaskInputs(NamedTuple):
    """What is known of a batch. `qpos`, `kpos`: places of queries and keys in their row. `plain`: these are 0..T-1 in
    every row and nothing is cached, which a chooser may rely on without looking at tensors. `real` (B S): key is no
    padding; `qdoc`, `kdoc` (B T, B S): document numbers; `prefix` (B 1, or B T where texts of a row
    have each their own): the place up to which a query sees all that stands before it; `blank`:
    padding sees nothing; `chosen`: the mask that stands for an open one."""

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
    """The mask of one layer."""
    match spec:
        case parts.Cycle(masks):
            return masks[layer % len(masks)]
        case parts.Memory(layers):
            return parts.Recall() if layer in layers else parts.Causal()
    return spec


def build_mask(spec: parts.LayerMask, inputs: MaskInputs) -> AttnMask:
    """What the mask `spec` and the facts of the batch leave to be seen."""
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
    far = inputs.qpos[:, :, None] - inputs.kpos[:, None, :]  # B T S: how far back a key stands
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
        elif inputs.is_arange:  # a row that sees nothing (padding on the left) would be undefined: it sees itself
            itself = torch.eye(length, dtype=torch.bool, device=mask.device)
            mask = mask | (itself & ~mask.any(-1, keepdim=True))
    return AttnMask() if mask is None else AttnMask(mask=mask[:, None])


def _both(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a & b
