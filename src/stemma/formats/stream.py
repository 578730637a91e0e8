"""Weights that stay in their file: a model on the meta device whose tensors are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from stemma.formats.names import Row

Read = Callable[[], list[tuple[str, Tensor]]]


class Stream:
    """Calling it with a name of the plain model reads that tensor. The tensors of the last row stay in memory, so that
    a packed one is read once for all its parts.

    `shapes`: of every tensor and of every slice of a stacked one; `whole`: of the tensors alone."""

    def __init__(self, shapes: Mapping[str, torch.Size], whole: Mapping[str, torch.Size]) -> None:
        self.shapes, self.whole = shapes, whole
        self._rows: dict[str, tuple[Read, torch.dtype | None]] = {}
        self._last: tuple[Read, dict[str, Tensor]] | None = None

    def add(self, r: Row, read: Read, dtype: torch.dtype | None) -> None:
        """`read` gives the tensors of a row, which are wanted as `dtype` (None: as they are)."""
        self._rows |= dict.fromkeys(r.ours, (read, dtype))

    def __call__(self, name: str) -> Tensor:
        if name in self._rows:
            read, dtype = self._rows[name]
            if self._last is None or self._last[0] is not read:
                self._last = None  # before the next is read
                self._last = read, dict(read())
            tensor = self._last[1][name]
            return tensor if dtype is None else tensor.to(dtype)
        stacked, _, slice_ = name.rpartition(".")
        if name not in self.whole and stacked in self._rows:
            return self(stacked)[int(slice_)]
        return torch.stack([self(f"{name}.{i}") for i in range(self.whole[name][0])])
