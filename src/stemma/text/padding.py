"""Rows of ids side by side, as the inputs of a model's call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stemma.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


def pad(rows: Sequence[Sequence[int]], filler: int, side: str, length: int | None) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, B T int64: rows padded with `filler` to the longest one or to `length`, on the
    "right" or the "left". Raises UsageError for no rows, an unknown side, and a row of more than `length` ids."""
    import torch

    if side not in ("right", "left"):
        raise UsageError(f'side={side!r} must be "right" or "left"')
    if not rows:
        raise UsageError("there are no texts to pad")
    longest = max(map(len, rows))
    if longest > (size := length or longest):
        raise UsageError(f"a text of {longest} tokens is longer than length={length}")
    ids = torch.full((len(rows), size), filler, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(size - len(row), size)
        ids[i, place] = torch.tensor(row, dtype=torch.int64)
        mask[i, place] = 1
    return {"input_ids": ids, "attention_mask": mask}
