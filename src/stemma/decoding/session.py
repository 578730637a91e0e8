"""One decoding: prompts read once, then a token a row at a time, with keys and values kept.

Rows have their own lengths; positions are explicit, and nothing is padded on the left.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from stemma.decoding.layout import for_decoding
from stemma.decoding.rules import start_token
from stemma.errors import CheckpointError, UsageError
from stemma.nn.cache import Cache
from stemma.nn.model import Model


class Session:
    """The state of a decoding of several prompts (token ids). `room`: how many new tokens there must be place for;
    `start`: what an encoder-decoder's answers begin with, where it is not the model's own."""

    def __init__(self, model: Model, prompts: Sequence[Sequence[int]], room: int, start: int | None = None) -> None:
        for_decoding(model, len(prompts))
        self.model, self.device = model, model.device
        self.encoded = model.encoder is not None
        begun = [start_token(model, start)] if self.encoded else []
        texts = [begun for _ in prompts] if self.encoded else [list(p) for p in prompts]
        for i, text in enumerate(texts):
            if not text:
                raise UsageError(f"prompt {i} is empty: a decoder needs at least one token to go on from")
        self._check_ids(prompts)
        self.lengths = torch.tensor([len(t) for t in texts], device=self.device)
        longest = max(len(t) for t in texts)
        self._check_room(longest, room)
        even = all(len(t) == longest for t in texts)
        layers = model.dims.depth if self.encoded else model.dims.layers
        self.cache = Cache(model.arch, layers, len(texts), longest + room, even)
        ids, real = _pad(texts, self.device)
        memory = memory_real = None
        if self.encoded:
            source, memory_real = _pad(prompts, self.device)
            memory_real = None if bool(memory_real.all()) else memory_real
            memory = model.encode(source, memory_real)
        assert model.decoder is not None
        self.first = model.decoder.position.first
        places = torch.arange(longest, device=self.device).expand(len(texts), -1)
        hidden = model.decode(
            ids,
            None if even else real,
            places + self.first,
            order=places,
            memory=memory,
            memory_mask=memory_real,
            cache=self.cache,
        )
        self.logits = self._head(hidden[torch.arange(len(texts), device=self.device), self.lengths - 1])

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token a row (B); returns the logits of the next (B V)."""
        places = self.lengths[:, None]
        hidden = self.model.decode(tokens[:, None], None, places + self.first, order=places, cache=self.cache)
        self.lengths = self.lengths + 1
        self.logits = self._head(hidden[:, 0])
        return self.logits

    def pick(self, rows: Tensor) -> None:
        """Go on with the given rows, which may repeat or leave out some."""
        self.cache.reorder(rows)
        self.lengths = self.lengths[rows]

    def _head(self, hidden: Tensor) -> Tensor:
        logits = self.model.logits(hidden).float()
        if not bool(logits.isfinite().all()):
            raise CheckpointError(
                "the model's logits are not finite: its weights are damaged, or too large for their type"
            )
        return logits

    def _check_room(self, longest: int, room: int) -> None:
        assert self.model.decoder is not None
        limit = self.model.decoder.position.limit
        if limit is not None and longest + room > limit:
            raise UsageError(
                f"a prompt of {longest} tokens and max_new_tokens={room} do not fit in this model's {limit} positions; "
                f"use max_new_tokens={max(limit - longest, 0)} or a shorter prompt"
            )
        trained = self.model.dims.context
        if limit is None and longest + room > trained and not self.encoded:
            warnings.warn(
                f"{longest + room} tokens are more than the {trained} this model was trained on", stacklevel=4
            )

    def _check_ids(self, prompts: Sequence[Sequence[int]]) -> None:
        vocab = self.model.dims.vocab
        for i, prompt in enumerate(prompts):
            if wrong := [t for t in prompt if not 0 <= t < vocab]:
                raise UsageError(f"prompt {i} holds the token id {wrong[0]}; this model's ids are 0 to {vocab - 1}")


def generates(model: Model) -> bool:
    """Whether a model can go on from a text."""
    return model.decoder is not None and model.lm is not None


def begin(model: Model, prompts: Sequence[Sequence[int]], room: int, start: int | None = None) -> Session:
    """A decoding of prompts, of the kind that the model's arch asks for."""
    return Session(model, prompts, room, start)


def _pad(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows side by side, padded on the right: ids and which of them are real (B T)."""
    longest = max(max(len(t) for t in texts), 1)
    ids = torch.zeros(len(texts), longest, dtype=torch.int64)
    real = torch.zeros(len(texts), longest, dtype=torch.bool)
    for i, text in enumerate(texts):
        ids[i, : len(text)] = torch.tensor(list(text), dtype=torch.int64)
        real[i, : len(text)] = True
    return ids.to(device), real.to(device)
