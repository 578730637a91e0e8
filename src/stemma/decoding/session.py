"""One decoding: prompts read once, then a token a row at a time, with keys and values kept.

Rows have their own lengths; positions are explicit, and nothing is padded on the left.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stemma.decoding.habits import start_token
from stemma.decoding.layout import for_decoding
from stemma.errors import CheckpointError, UsageError, did_you_mean
from stemma.nn.cache import Cache
from stemma.nn.inputs import Inputs
from stemma.nn.memory import MemoryCache, in_windows
from stemma.nn.model import Model
from stemma.nn.parts import Memory, Open, Prefix


class Session:
    """The state of a decoding of several prompts (token ids). `room`: how many new tokens there must be place for;
    `language`: the number of theirs, for a model with a table of languages; `start`: what an encoder-decoder's answers
    begin with, where it is not the model's own."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        room: int,
        language: int | None = None,
        start: int | str | None = None,
    ) -> None:
        self.language = language
        self.encoded = model.encoder is not None
        texts = [[start_token(model, start)] for _ in prompts] if self.encoded else [list(p) for p in prompts]
        self.prepare(model, prompts, room, texts)
        longest = max(len(t) for t in texts)
        even = all(len(t) == longest for t in texts)
        layers = model.dims.depth if self.encoded else model.dims.layers
        self.cache = Cache(model.arch, layers, len(texts), longest + room, even)
        ids, real = pad(texts, self.device)
        positions, prefix = self._place(texts)
        inputs = Inputs(
            ids,
            None if even else real,
            position_ids=positions,
            langs=spoken(ids, language),
            order=torch.arange(longest, device=self.device).expand(len(texts), -1),
            prefix=prefix,
            cache=self.cache,
        )
        if self.encoded:
            source, source_real = pad(prompts, self.device)
            inputs.encoder_mask = None if bool(source_real.all()) else source_real
            inputs.encoder_hidden = model.encode(Inputs(source, inputs.encoder_mask))
        hidden = model.decode(inputs)
        self.logits = self._head(hidden[torch.arange(len(texts), device=self.device), self.lengths - 1])

    def prepare(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        room: int,
        texts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Check the prompts and what is written on (`texts`, where it is not the prompts), and note its lengths."""
        for_decoding(model, len(prompts))
        self.model, self.device, self.room = model, model.device, room
        texts = prompts if texts is None else texts
        for i, text in enumerate(texts):
            if not text:
                raise UsageError(f"prompt {i} is empty: a decoder needs at least one token to go on from")
        self._check_ids(prompts)
        self.lengths = torch.tensor([len(t) for t in texts], device=self.device)
        self._check_room(max(len(t) for t in texts), room)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token a row (B); returns the logits of the next (B V)."""
        ids, order = tokens[:, None], self.lengths[:, None]
        langs = spoken(ids, self.language)
        hidden = self.model.decode(Inputs(ids, position_ids=self._next(), langs=langs, order=order, cache=self.cache))
        self.lengths = self.lengths + 1
        self.logits = self._head(hidden[:, 0])
        return self.logits

    def pick(self, rows: Tensor) -> None:
        """Go on with the given rows, which may repeat or leave out some."""
        self.cache.reorder(rows)
        self.lengths = self.lengths[rows]

    def _place(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        """The positions of the tokens that are read first (B T, or B T C), and how many of each row see each other
        whole."""
        assert self.model.decoder is not None
        first = self.model.decoder.position.first
        return torch.arange(max(len(t) for t in texts), device=self.device).expand(len(texts), -1) + first, None

    def _next(self) -> Tensor:
        """The position of one token more a row: B 1, or B 1 C."""
        assert self.model.decoder is not None
        return self.lengths[:, None] + self.model.decoder.position.first

    def _head(self, hidden: Tensor) -> Tensor:
        logits = self.model.logits(hidden).float()
        if not bool(logits.isfinite().all()):
            raise CheckpointError(
                "the model's logits are not finite: its weights are damaged, or too large for their type"
            )
        return logits

    def _check_room(self, longest: int, room: int) -> None:
        stack = self.model.decoder or self.model.encoder
        assert stack is not None
        limit = stack.position.limit
        if limit is not None and longest + room > limit:
            ways = f"max_new_tokens={limit - longest} or a shorter prompt" if limit > longest else "a shorter prompt"
            raise UsageError(
                f"a prompt of {longest} tokens and max_new_tokens={room} do not fit in this model's {limit} positions; "
                f"use {ways}"
            )
        trained = self.model.dims.context
        if limit is None and longest + room > trained and self.model.arch.structure != "encoder-decoder":
            warnings.warn(
                f"{longest + room} tokens are more than the {trained} this model was trained on", stacklevel=4
            )

    def _check_ids(self, prompts: Sequence[Sequence[int]]) -> None:
        vocab = self.model.dims.vocab
        for i, prompt in enumerate(prompts):
            if wrong := [t for t in prompt if not 0 <= t < vocab]:
                raise UsageError(f"prompt {i} holds the token id {wrong[0]}; this model's ids are 0 to {vocab - 1}")


class Rereading(Session):
    """Of a model whose positions depend on the text's length (`Position.length_dependent`): nothing can be cached, and
    every step reads the whole text again."""

    def __init__(self, model: Model, prompts: Sequence[Sequence[int]], room: int) -> None:
        self.prepare(model, prompts, room)
        self.texts = [list(p) for p in prompts]
        self.logits = self._read()

    def step(self, tokens: Tensor) -> Tensor:
        for text, token in zip(self.texts, tokens.tolist(), strict=True):
            text.append(token)
        self.logits = self._read()
        return self.logits

    def pick(self, rows: Tensor) -> None:
        self.texts = [list(self.texts[i]) for i in rows.tolist()]

    def _read(self) -> Tensor:
        """The logits after each text. Padding has the position of the last token, so that it makes no text longer."""
        ids, real = pad(self.texts, self.device)
        order = torch.arange(ids.shape[1], device=self.device)[None]
        last = real.sum(1, keepdim=True) - 1
        inputs = Inputs(ids, real, position_ids=order.minimum(last), order=order.expand(len(ids), -1))
        hidden = self.model.decode(inputs)
        return self._head(hidden[torch.arange(len(ids), device=self.device), last[:, 0]])


class Remembering(Session):
    """Of a model that reads in windows with a memory: long prompts as `nn.memory.in_windows` says; then tokens join the
    last window, and when it is full, all of it becomes memory. Rows of one prompt go together."""

    def __init__(self, model: Model, prompts: Sequence[Sequence[int]], room: int) -> None:
        self.prepare(model, prompts, room)
        self.parts: list[MemoryCache] = []
        last = []
        for text in prompts:
            ids = torch.tensor([list(text)], device=self.device)
            hidden, cache = in_windows(model.window, ids, model.arch, model.dims)
            self.parts.append(cache)
            last.append(hidden[:, -1])
        self.logits = self._head(torch.cat(last))

    def step(self, tokens: Tensor) -> Tensor:
        hidden = []
        for cache, own in zip(self.parts, tokens.split([c.rows for c in self.parts]), strict=True):
            if cache.length == cache.window:
                cache.roll()
            hidden.append(self.model.window(own[:, None], cache)[:, 0])
        self.logits = self._head(torch.cat(hidden))
        return self.logits

    def pick(self, rows: Tensor) -> None:
        owner = torch.repeat_interleave(
            torch.arange(len(self.parts)), torch.tensor([c.rows for c in self.parts])
        ).tolist()
        own: dict[int, list[int]] = {}
        for i in rows.tolist():
            own.setdefault(owner[i], []).append(i - owner.index(owner[i]))
        kept = []
        for part, places in own.items():
            self.parts[part].reorder(torch.tensor(places, device=self.device))
            kept.append(self.parts[part])
        self.parts = kept

    def _check_room(self, longest: int, room: int) -> None:
        """A memory has no end."""


def check_model(model: object) -> None:
    """Raises UsageError for what is no model: most often the path of one."""
    if not isinstance(model, Model):
        hint = f"; stemma.load({str(model)!r}) makes one of a checkpoint" if isinstance(model, str | Path) else ""
        raise UsageError(f"a model is wanted, not {model!r:.80}{hint}")


def generates(model: Model) -> bool:
    """Whether a model can go on from a text."""
    writes = model.decoder is not None or model.arch.streams is not None or isinstance(model.arch.mask, Open)
    return writes and model.lm is not None


def begin(
    model: Model,
    prompts: Sequence[Sequence[int]],
    room: int,
    language: int | None = None,
    start: int | str | None = None,
) -> Session:
    """A decoding of prompts, of the kind that the model's arch asks for."""
    if model.arch.streams is not None:
        from stemma.decoding.streams import QuerySession

        return QuerySession(model, prompts, room)
    if isinstance(model.arch.mask, Open):
        from stemma.decoding.masks import MaskSession

        return MaskSession(model, prompts, room)
    if isinstance(model.arch.mask, Prefix) and model.encoder is None:
        from stemma.decoding.blanks import BlankSession

        return BlankSession(model, prompts, room)
    if isinstance(model.arch.mask, Memory):
        return Remembering(model, prompts, room)
    longest = max((len(p) for p in prompts), default=0)
    assert model.decoder is not None
    if model.decoder.position.length_dependent and longest + room > model.dims.context:
        return Rereading(model, prompts, room)
    return Session(model, prompts, room, language, start)


def language_of(model: Model, language: str | int | None) -> int | None:
    """The number of a language by its name or number. Raises UsageError for one that the model does not have."""
    if language is None:
        return None
    known = model.text.languages if model.text is not None else ()
    if not model.dims.languages:
        raise UsageError(f"language={language!r} was given, and this model has no languages")
    number = known.index(language) if language in known else language
    if isinstance(number, str) and number.isdigit():
        number = int(number)
    if not isinstance(number, int) or not 0 <= number < model.dims.languages:
        names = ", ".join(known) or f"the numbers 0 to {model.dims.languages - 1}"
        raise UsageError(f"language={language!r} is none of this model's: {names}{did_you_mean(str(language), known)}")
    return number


def spoken(ids: Tensor, language: int | None) -> Tensor | None:
    """The language of every token, where there is one."""
    return None if language is None else torch.full_like(ids, language)


def answers(model: Model) -> bool:
    """Whether what a model writes is a text of its own, which does not go on from the prompt."""
    return model.arch.structure == "encoder-decoder" or isinstance(model.arch.mask, Open)


def written(model: Model, prompt: Sequence[int], start: int | str | None = None) -> list[int]:
    """The tokens before the first new one."""
    if model.arch.structure == "encoder-decoder":
        return [start_token(model, start)]
    return [] if answers(model) else list(prompt)


def pad(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows side by side, padded on the right: ids and which of them are real (B T)."""
    longest = max(max(len(t) for t in texts), 1)
    ids = torch.zeros(len(texts), longest, dtype=torch.int64)
    real = torch.zeros(len(texts), longest, dtype=torch.bool)
    for i, text in enumerate(texts):
        ids[i, : len(text)] = torch.tensor(list(text), dtype=torch.int64)
        real[i, : len(text)] = True
    return ids.to(device), real.to(device)
