"""The two orders of the rows of q and k. Meta's own code turns neighbours (0, 1), (2, 3), ... of a head together, as
complex numbers; Hugging Face files and this package turn halves (i, i + D/2). Rows change places, nothing else does."""

from __future__ import annotations

from torch import Tensor


def to_halves(tensor: Tensor, width: int) -> Tensor:
    """Rows (or biases) of heads `width` wide, from neighbours to halves: 0, 2, ..., 1, 3, ... of each head."""
    heads = tensor.reshape(-1, width // 2, 2, *tensor.shape[1:])
    return heads.transpose(1, 2).reshape(tensor.shape)


def to_pairs(tensor: Tensor, width: int) -> Tensor:
    """The way back: rows of halves as neighbours."""
    heads = tensor.reshape(-1, 2, width // 2, *tensor.shape[1:])
    return heads.transpose(1, 2).reshape(tensor.shape)
