"""A session whose rows join and leave, held to what each row is alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from stemma.decoding import begin

Ids = list[int]


def check_rows(
    model: Any,
    prompts: Sequence[Ids],
    texts: Sequence[Ids],
    alone: Callable[[Ids, Ids], torch.Tensor],
    room: int = 0,
    tolerance: float = 1e-5,
) -> None:
    """Five prompts: two begin, two join, one leaves, another joins, all but it leave, and it goes on with a copy.
    `alone(prompt, new ids)`: the next token's logits (V). With `room` 0 the buffers have to grow."""
    written: list[tuple[int, int]] = [(0, 0), (1, 0)]  # of each row: its prompt, its new tokens

    def steps(n: int) -> None:
        for _ in range(n):
            for (row, new), logits in zip(written, session.logits, strict=True):
                assert (logits - alone(prompts[row], texts[row][:new]).float()).abs().max() < tolerance
            session.step(torch.tensor([texts[row][new] for row, new in written]))
            written[:] = [(row, new + 1) for row, new in written]

    def keep(rows: list[int]) -> None:
        session.keep(rows)
        written[:] = [written[i] for i in rows]

    with torch.inference_mode():
        session = begin(model, prompts[:2], room)
        steps(3)
        session.admit(prompts[2:4], room)
        written += [(2, 0), (3, 0)]
        steps(3)
        keep([2, 0, 3])
        steps(1)
        session.admit(prompts[4:], room)
        written += [(4, 0)]
        steps(3)
        keep([3])
        steps(2)
        keep([0, 0])
        steps(1)
        keep([])
        assert session.rows == 0
        session.admit(prompts[1:2], room)
        written += [(1, 0)]
        steps(2)
