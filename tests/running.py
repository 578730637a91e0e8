"""A session whose rows join and leave, held to what each row is alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from stemma.decoding import Session, begin

Ids = list[int]


def check_rows(
    model: Any,
    prompts: Sequence[Ids],
    texts: Sequence[Ids],
    alone: Callable[[Ids, Ids], torch.Tensor],
    room: int = 0,
    tolerance: float = 1e-5,
    kind: type[Session] | None = None,
) -> None:
    """Five prompts: two begin, two join, one leaves, another joins, all but it leave, it goes on with a copy that gets
    other tokens, and the copy alone goes on. `alone(prompt, new ids)`: the next token's logits (V). With `room` 0 the
    buffers have to grow."""
    running: list[tuple[int, int, Ids]] = [(0, 0, []), (1, 1, [])]  # of each row: prompt, source of tokens, new tokens

    def steps(n: int) -> None:
        for _ in range(n):
            for (row, _, new), logits in zip(running, session.logits, strict=True):
                assert (logits - alone(prompts[row], new).float()).abs().max() < tolerance
            running[:] = [(row, source, [*new, texts[source][len(new)]]) for row, source, new in running]
            session.step(torch.tensor([new[-1] for *_, new in running]))

    def keep(rows: list[int]) -> None:
        session.keep(rows)
        running[:] = [running[i] for i in rows]

    def admit(rows: list[int]) -> None:
        session.admit([prompts[row] for row in rows], room)
        running.extend((row, row, []) for row in rows)

    with torch.inference_mode():
        session = begin(model, prompts[:2], room, kind=kind)
        steps(3)
        admit([2, 3])
        steps(3)
        keep([2, 0, 3])
        steps(1)
        admit([4])
        steps(3)
        keep([3])
        steps(2)
        keep([0, 0])
        running[1] = (4, 1, running[1][2])
        steps(2)
        keep([1])
        steps(2)
        keep([])
        assert session.rows == 0
        admit([1])
        steps(2)
