"""Decoding in windows with a memory of earlier ones (LongLLaMA)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stemma.decoding.session import Session
from stemma.nn.memory import MemoryCache, in_windows


class MemorySession(Session):
    """Prompts are read as in `nn.memory.in_windows`. New tokens join the last window; when it is full, it becomes
    memory. Each prompt has a cache of its own, for windows of different rows end at different tokens; rows that were
    one row before (beams) share it."""

    EXTENDS = False

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        self.caches: list[MemoryCache] = []
        last = []
        for text in prompts:
            ids = torch.tensor([list(text)], device=self.device)
            hidden, cache = in_windows(self.model.window, ids, self.model.arch, self.model.dims)
            self.caches.append(cache)
            last.append(hidden[:, -1])
        self.logits = self._head(torch.cat(last))

    def read_next(self, tokens: Tensor) -> Tensor:
        hidden = []
        for cache, own in zip(self.caches, tokens.split([c.rows for c in self.caches]), strict=True):
            if cache.length == cache.window:
                cache.roll()
            hidden.append(self.model.window(own[:, None], cache)[:, 0])
        self.logits = self._head(torch.cat(hidden))
        return self.logits

    def join(self, new: Session) -> None:
        assert isinstance(new, MemorySession)
        self.caches += new.caches
        self.logits = torch.cat([self.logits, new.logits])

    def keep(self, rows: Sequence[int]) -> None:
        """Rows of one prompt stay side by side."""
        owner = [n for n, cache in enumerate(self.caches) for _ in range(cache.rows)]
        own: dict[int, list[int]] = {}
        for i in rows:
            own.setdefault(owner[i], []).append(i - owner.index(owner[i]))
        for n, places in own.items():
            self.caches[n].keep(torch.tensor(places, device=self.device))
        self.caches = [self.caches[n] for n in own]
        self.logits = self.logits[list(rows)]

    def _check_room(self) -> None:
        """A memory has no end."""
