"""Decoding by an encoder with an open mask: a mask token stands behind the text, and the token it predicts takes its
place (Dong et al. 2019, section 2.5).

The tokens of the prompt (the source) see each other; a token of the answer sees the source, the answer before it and
itself. A step reads the last token and the mask token behind it; the keys of the mask token are dropped. Decoding
equals the full pass over source, answer and mask token with `attention="prefix"`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stemma.decoding.inputs import pad
from stemma.decoding.session import Session
from stemma.errors import UsageError
from stemma.nn.cache import Cache
from stemma.nn.inputs import Inputs
from stemma.nn.model import Model
from stemma.nn.parts import Open


class MaskSession(Session):
    """Rows whose next token a mask token predicts."""

    PER_ROW = (*Session.PER_ROW, "source")
    EXTENDS = False

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        model = self.model
        assert model.encoder is not None
        assert isinstance(model.arch.mask, Open)
        self.mask_id, self.segment = mask_token(model), model.arch.mask.target
        self.source = self.lengths
        ids, real = pad([[*p, self.mask_id] for p in prompts], self.device)
        self.cache = Cache(model.arch, len(model.encoder.order), len(ids), self._capacity() + 1, bool(real.all()))
        places = torch.arange(ids.shape[1], device=self.device).expand(len(ids), -1)
        self._take_in(ids, None if self.cache.even else real, places, None, self.source)

    def read_next(self, tokens: Tensor) -> Tensor:
        self._check_place()
        self.lengths = self.lengths + 1
        ids = torch.stack([tokens, torch.full_like(tokens, self.mask_id)], 1)
        places = torch.stack([self.lengths - 1, self.lengths], 1)
        return self._take_in(ids, None, places, torch.full_like(ids, self.segment), torch.ones_like(tokens))

    def _take_in(self, ids: Tensor, real: Tensor | None, places: Tensor, segments: Tensor | None, at: Tensor) -> Tensor:
        """Read tokens (B T) at their places; the mask token is token `at` (B). Returns B V."""
        inputs = Inputs(ids, real, segments, places, attention="prefix", prefix=self.source, cache=self.cache)
        hidden = self.model.encode(inputs)
        self.cache.forget(self.lengths)
        self.logits = self._head(hidden[torch.arange(len(ids), device=self.device), at])
        return self.logits

    def _last_places(self) -> Tensor:
        return self.lengths + 1  # that of the mask token


def mask_token(model: Model) -> int:
    found = model.tokenizer.mask_id if model.tokenizer is not None else None
    if found is None and model.text is not None:
        found = model.text.mask_id
    if found is None:
        raise UsageError(
            "this model writes where its mask token stands, and neither its tokenizer nor its config has one"
        )
    if not 0 <= found < model.dims.vocab:
        raise UsageError(f"the mask token has the id {found}, and this model's ids are 0 to {model.dims.vocab - 1}")
    return int(found)
