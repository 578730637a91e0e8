"""Decoding with two streams: a query at the next place attends to all tokens before it, and its token then joins them.

The order is one of those in training (Yang et al. 2019, section 2.3): the tokens of the prompt see each other; the new
ones are predicted from left to right, and each sees the prompt, the new tokens before it and itself. So keys and values
never change, and are cached. Decoding equals the full pass over the text and one more token: `perm_mask` hides that
token from all, and each new token from the tokens before it; the query at the last place sees the whole text.

(transformers differs: without a cache its prompt sees the new tokens too, so everything changes with each of them; with
a cache, every token is read again together with the next one. The first token is the same.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stemma.decoding.inputs import pad
from stemma.decoding.session import Session
from stemma.nn.cache import Cache
from stemma.nn.inputs import Inputs, StreamInputs
from stemma.nn.parts import Prefix


class QuerySession(Session):
    """Rows whose next token a query predicts."""

    EXTENDS = False

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        model = self.model
        assert model.encoder is not None
        ids, real = pad(prompts, self.device)
        self.cache = Cache(model.arch, len(model.encoder.order), len(ids), self._capacity(), bool(real.all()), Prefix())
        self.cache.prefix = self.lengths[:, None]
        places = torch.arange(ids.shape[1], device=self.device).expand(len(ids), -1)
        self._take_in(ids, None if self.cache.even else real, places)

    def read_next(self, tokens: Tensor) -> Tensor:
        self.lengths = self.lengths + 1
        return self._take_in(tokens[:, None], None, self.lengths[:, None] - 1)

    def _take_in(self, ids: Tensor, real: Tensor | None, places: Tensor) -> Tensor:
        """Read tokens (B T) at their places, and predict the one after the last: B V."""
        streams = StreamInputs(places=self.lengths[:, None])
        hidden = self.model.encode(Inputs(ids, real, position_ids=places, cache=self.cache, streams=streams))
        self.logits = self._head(hidden[:, 0])
        return self.logits
