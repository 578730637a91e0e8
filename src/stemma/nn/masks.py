"""Attention masks, from a mask spec and a batch's positions, padding, documents and prefixes.

`build_mask` returns the cheapest form: no mask where all is seen, the `causal` flag where that is all, else booleans;
of long rows in training, the rule by which attention takes them in blocks (`nn/blocks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stemma.nn import parts

Contexts = Sequence[Sequence[int]]  # of each row of a batch the numbers of earlier rows
EVERY = -2  # the document of what stands in front of a row: every other one sees it (-1: padding)


class AttnMask(NamedTuple):
    """What one layer attends to: `mask` (1|B 1 T S, True: seen), or the `causal` flag, or the `rule` of a long row
    (exact, and in place of its mask), or everything. `contexts`: other rows whose tokens are all seen too, unrotated
    (`nn/crossbatch`)."""

    mask: Tensor | None = None
    causal: bool = False
    rule: MaskRule | None = None
    contexts: Contexts | None = None

    def dense(self) -> Tensor | None:
        """The mask itself, of a rule too; None where there is none, or a flag."""
        if self.rule is None:
            return self.mask
        seen = self.rule.seen()
        return None if seen is None else seen[:, None]


class MaskInputs(NamedTuple):
    """What a mask follows from.

    `qpos`, `kpos`: 1|B T and 1|B S, the index of each query and key in its row
    `is_arange`: both are 0..T-1 in every row and there is no cache; known without reading tensors
    `not_padding`: B S, True where the key is a token
    `qdoc`, `kdoc`: B T and B S, document numbers; a query sees keys of its own document
    `prefix`: B 1 or B T, under a prefix mask a query also sees all keys before this index
    `zero_padding`: queries at padding see nothing (DeBERTa)
    `chosen`: the mask that replaces an open one
    `blocks`: attention takes these rows in blocks, and reads the rule of a mask (`nn/blocks`)
    `given`: 1|B 1|T S, True where seen: a mask of any origin, beside the rest
    `front`: keys of the document `EVERY` are seen by all documents
    `roots`: B T, a query also sees keys of this document"""

    qpos: Tensor
    kpos: Tensor
    is_arange: bool
    not_padding: Tensor | None = None
    qdoc: Tensor | None = None
    kdoc: Tensor | None = None
    prefix: Tensor | None = None
    zero_padding: bool = False
    chosen: parts.LayerMask | None = None
    blocks: bool = False
    given: Tensor | None = None
    front: bool = False
    roots: Tensor | None = None


ALL = slice(None)


class MaskRule(NamedTuple):
    """A mask as what it follows from. `spec` is not open."""

    spec: parts.LayerMask
    inputs: MaskInputs

    def of_row(self, row: int) -> MaskRule:
        """The rule of one row of the batch."""

        def one(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[row : row + 1] if len(x) > 1 else x

        tensors = ("qpos", "kpos", "not_padding", "qdoc", "kdoc", "prefix", "given", "roots")
        own: dict[str, Any] = {name: one(getattr(self.inputs, name)) for name in tensors}
        return MaskRule(self.spec, self.inputs._replace(**own))

    def seen(self, queries: slice = ALL, keys: slice = ALL) -> Tensor | None:
        """Which of these keys each of these queries sees: 1|B T S; None: all of them."""
        inputs, spec = self.inputs, self.spec
        length, width = inputs.qpos.shape[-1], inputs.kpos.shape[-1]
        window = spec.window if isinstance(spec, parts.Sliding) else None
        qpos, kpos = inputs.qpos[:, queries], inputs.kpos[:, keys]
        mask: Tensor | None = None
        if not isinstance(spec, parts.Full):
            far = qpos[:, :, None] - kpos[:, None, :]  # B T S: tokens from key to query
            mask = far <= 0 if isinstance(spec, parts.Reverse) else far >= 0
            if window is not None and not (inputs.is_arange and length <= window):
                mask = mask & (far < window)
            if inputs.prefix is not None and isinstance(spec, parts.Prefix):
                mask = mask | (kpos[:, None, :] < _of(inputs.prefix, queries)[:, :, None])
        if inputs.qdoc is not None and inputs.kdoc is not None:
            same = inputs.qdoc[:, queries, None] == inputs.kdoc[:, None, keys]
            if inputs.roots is not None:
                same = same | (inputs.roots[:, queries, None] == inputs.kdoc[:, None, keys])
            mask = _both(mask, same | (inputs.kdoc[:, None, keys] == EVERY) if inputs.front else same)
        if inputs.given is not None:
            mask = _both(mask, inputs.given[:, queries if inputs.given.shape[1] > 1 else ALL, keys])
        if inputs.not_padding is not None:
            mask = _both(mask, inputs.not_padding[:, None, keys]).expand(-1, qpos.shape[1], -1)
            if inputs.zero_padding:
                mask = mask & inputs.not_padding[:, queries, None]
            elif inputs.is_arange:  # a query that sees nothing (left padding) would give NaN: it sees itself
                at = torch.arange(max(length, width), device=mask.device)
                itself = at[:length][queries, None] == at[:width][keys]
                mask = mask | (itself & ~mask.any(-1, keepdim=True))
        return mask


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
    backward = isinstance(spec, parts.Reverse)
    prefix = inputs.prefix if isinstance(spec, parts.Prefix) else None
    alone = inputs.not_padding is None and inputs.qdoc is None and prefix is None
    if inputs.is_arange and alone and not backward and (window is None or length <= window):
        return AttnMask(causal=not isinstance(spec, parts.Full))
    rule = MaskRule(spec, inputs)
    return AttnMask(rule=rule) if inputs.blocks else AttnMask(mask=AttnMask(rule=rule).dense())


def _both(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a & b


def _of(x: Tensor, tokens: slice) -> Tensor:
    """Of B T the tokens; B 1 holds for all."""
    return x[:, tokens] if x.shape[1] > 1 else x
