"""Decoding without a cache, for positions that change with the length of the text (`Position.length_dependent`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stemma.decoding.inputs import pad
from stemma.decoding.session import Session
from stemma.nn.inputs import Inputs


class UncachedSession(Session):
    """Every step reads the whole text again: with dynamic scaling, one more token rotates all keys anew."""

    CACHED = False
    EXTENDS = False  # several tokens at once would rotate the keys of the first as those of the last

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        """The logits after each text. Padding gets the position of the last token, so that it makes no text longer."""
        ids, real = pad(self.texts, self.device)
        order = torch.arange(ids.shape[1], device=self.device)[None]
        last = real.sum(1, keepdim=True) - 1
        inputs = Inputs(ids, real, position_ids=order.minimum(last), order=order.expand(len(ids), -1))
        hidden = self.model.decode(inputs)
        self.logits = self._head(hidden[torch.arange(len(ids), device=self.device), last[:, 0]])

    def read_next(self, tokens: Tensor) -> Tensor:
        for text, token in zip(self.texts, tokens.tolist(), strict=True):
            text.append(token)
        self.read(self.texts)
        return self.logits

    def join(self, new: Session) -> None:
        self.texts += new.texts
        self.logits = torch.cat([self.logits, new.logits])

    def keep(self, rows: Sequence[int]) -> None:
        self.texts = [list(self.texts[i]) for i in rows]
        self.logits = self.logits[list(rows)]
