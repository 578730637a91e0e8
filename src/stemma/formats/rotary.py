"""The two orders of the rows of q and k. Rotary positions rotate pairs of coordinates of a head: interleaved pairs
(0, 1), (2, 3), ... in Meta's own code, halves (i, i + D/2) in Hugging Face files and here. Converting permutes rows."""

from __future__ import annotations

from torch import Tensor


def to_halves(tensor: Tensor, width: int) -> Tensor:
    """Rows (or biases) of heads `width` wide, from interleaved pairs to halves: 0, 2, ..., 1, 3, ... of each head."""
    heads = tensor.reshape(-1, width // 2, 2, *tensor.shape[1:])
    return heads.transpose(1, 2).reshape(tensor.shape)


def to_pairs(tensor: Tensor, width: int) -> Tensor:
    """The inverse: from halves to interleaved pairs."""
    heads = tensor.reshape(-1, 2, width // 2, *tensor.shape[1:])
    return heads.transpose(1, 2).reshape(tensor.shape)
