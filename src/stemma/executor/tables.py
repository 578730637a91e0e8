"""Tables by position that a tape reads and that the position modules compute: they grow as texts become longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stemma.nn import parts
from stemma.nn.positions import BlankRotary, Buckets, Position, Rotary, Sinusoidal

ROWS = 256  # of a new table


class Table:
    """`make(positions)` gives the rows of N positions: N W, fp32. `put(address, rows)` tells the tape where they
    lie."""

    def __init__(self, make: Callable[[Tensor], Tensor], put: Callable[[int, int], None]) -> None:
        self.make, self.put = make, put
        self.rows = torch.empty(0, 0)

    def reach(self, last: int) -> int:
        """Have a row for every position up to `last`. Returns how many there are."""
        if last >= len(self.rows):
            size = max(ROWS, 2 * len(self.rows), last + 1)
            with torch.no_grad():
                self.rows = self.make(torch.arange(size)).float().contiguous()
            self.put(self.rows.data_ptr(), size)
        return len(self.rows)


def turns(scheme: Position) -> tuple[dict[str, int], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor] | None]:
    """The fields of `rotary` (tape.h) for a rotary scheme, and what makes its table, and that of keys where it is
    another one."""
    columns, rotary = (2, scheme.rotary) if isinstance(scheme, BlankRotary) else (1, scheme)
    assert isinstance(rotary, Rotary)
    fields = {"pairs": rotary.width // 2, "columns": columns, "interleaved": int(rotary.neighbours)}
    grows = rotary.spec.scaling if isinstance(rotary.spec.scaling, parts.XPosScaling) else None

    def rows(pos: Tensor, keys: bool = False) -> Tensor:
        pos = pos[:, None]  # a text each, of one token: each has its own length
        grown = None if grows is None else rotary.growth(grows, pos)
        return torch.cat(rotary.cos_sin(pos, 1 / grown if keys and grown is not None else grown), -1)[:, 0, 0]

    return fields, rows, None if grows is None else lambda pos: rows(pos, keys=True)


def waves(scheme: Sinusoidal, width: int) -> Callable[[Tensor], Tensor]:
    """What makes the table of sines that is added to the embeddings."""
    return lambda pos: scheme.embed(torch.zeros(1, len(pos), width), pos[None])[0]


def buckets(scheme: Buckets) -> Any:
    """The bucket of each distance from a key to a later query (int64), so far that all beyond have the last one."""
    return scheme.bucket(-torch.arange(4 * scheme.spec.distance)).contiguous()
