"""Who sees whom. A mask spec and facts about the batch (padding, documents, positions) become arguments of attention.

The chooser returns nothing where everything is seen, a flag where plain causal order is all there is, and a dense
boolean tensor otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stemma.nn import parts


class Visible(NamedTuple):
    """What one layer may attend to: `mask` (1|B 1 T S, True = seen) or the `causal` flag, or neither for all."""

    mask: Tensor | None = None
    causal: bool = False


class Facts(NamedTuple):
    """What is known of a batch. `qpos`, `kpos`: places of queries and keys in their row. `plain`: these are 0..T-1 in
    every row and nothing is cached, which a chooser may rely on without looking at tensors. `real` (B S): key is no
    padding; `qdoc`, `kdoc` (B T, B S): document numbers; `prefix` (B 1, or B T where texts of a row
    have each their own): the place up to which a query sees all that stands before it; `blank`:
    padding sees nothing; `chosen`: the mask that stands for an open one."""

    qpos: Tensor
    kpos: Tensor
    plain: bool
    real: Tensor | None = None
    qdoc: Tensor | None = None
    kdoc: Tensor | None = None
    prefix: Tensor | None = None
    blank: bool = False
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


def visible(spec: parts.LayerMask, facts: Facts) -> Visible:
    """What the mask `spec` and the facts of the batch leave to be seen."""
    if isinstance(spec, parts.Open):
        spec = facts.chosen or parts.Full()
    length = facts.qpos.shape[-1]
    window = spec.window if isinstance(spec, parts.Sliding) else None
    ordered = not isinstance(spec, parts.Full)
    backward = isinstance(spec, parts.Reverse)
    causal = ordered and not backward
    prefix = facts.prefix if isinstance(spec, parts.Prefix) else None
    alone = facts.real is None and facts.qdoc is None and prefix is None
    if facts.plain and alone and not backward and (window is None or length <= window):
        return Visible(causal=causal)
    seen: Tensor | None = None
    far = facts.qpos[:, :, None] - facts.kpos[:, None, :]  # B T S: how far back a key stands
    if ordered:
        seen = far <= 0 if backward else far >= 0
        if window is not None and not (facts.plain and length <= window):
            seen = seen & (far < window)
        if prefix is not None:
            seen = seen | (facts.kpos[:, None, :] < prefix[:, :, None])
    if facts.qdoc is not None and facts.kdoc is not None:
        seen = _both(seen, facts.qdoc[:, :, None] == facts.kdoc[:, None, :])
    if facts.real is not None:
        seen = _both(seen, facts.real[:, None, :]).expand(-1, length, -1)
        if facts.blank:
            seen = seen & facts.real[:, :, None]
        elif facts.plain:  # a row that sees nothing (padding on the left) would be undefined: it sees itself
            itself = torch.eye(length, dtype=torch.bool, device=seen.device)
            seen = seen | (itself & ~seen.any(-1, keepdim=True))
    return Visible() if seen is None else Visible(mask=seen[:, None])


def _both(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a & b
