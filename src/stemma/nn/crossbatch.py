"""Crossbatch attention (Tworkowski et al. 2023, arXiv:2307.03170, section 3.2, and the released code): in training, a
memory layer sees whole other rows of the batch in the place of a memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from stemma.errors import UsageError
from stemma.nn.masks import AttnMask, Contexts


class Attends(Protocol):
    """What `Attention.attend` is."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: AttnMask, bias: Tensor | None) -> Tensor: ...


def check(contexts: Contexts, rows: int) -> None:
    """Raise UsageError unless `contexts` name, for each of so many rows, rows before it."""
    if len(contexts) != rows:
        raise UsageError(f"contexts must name the rows that each of the {rows} rows sees, not those of {len(contexts)}")
    for row, seen in enumerate(contexts):
        if odd := [i for i in seen if not 0 <= i < row]:
            raise UsageError(f"row {row} cannot see row {odd[0]} as memory: it sees rows before it")
        if len(set(seen)) < len(seen):
            raise UsageError(f"row {row} cannot see a row twice as memory: {list(seen)}")


def attend(
    attention: Attends,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotate: Callable[[Tensor], Tensor] | None,
    contexts: Contexts,
) -> Tensor:
    """Attention of the rotated queries `q` (B H T D) to the keys of their own row, rotated and causal, and to all keys
    of the rows that `contexts` names for it, as they are: an unrotated key stands at position 0. One softmax over both.
    `k`, `v`: B K T D. Gradients reach the keys and values of the other rows. Rows that see equally many go together."""
    own, length = k if rotate is None else rotate(k), q.shape[2]
    alike: dict[int, list[int]] = {}
    for row, seen in enumerate(contexts):
        alike.setdefault(len(seen), []).append(row)
    causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    found = []
    for many, rows in alike.items():
        here = torch.tensor(rows, device=q.device)
        keys, values, mask = own[here], v[here], AttnMask(causal=True)
        if many:
            others = torch.tensor([list(contexts[row]) for row in rows], device=q.device)
            keys, values = (
                torch.cat([local, other[others].transpose(1, 2).flatten(2, 3)], 2)  # B C K T D -> B K C T D
                for local, other in ((keys, k), (values, v))
            )
            mask = AttnMask(mask=torch.cat([causal, causal.new_ones(length, many * length)], 1)[None, None])
        found.append(attention.attend(q[here], keys, values, mask, None))
    order = [row for rows in alike.values() for row in rows]
    return torch.cat(found)[torch.tensor([order.index(row) for row in range(len(contexts))], device=q.device)]
