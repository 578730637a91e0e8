"""The kind of session that a model's arch asks for."""

from __future__ import annotations

from collections.abc import Sequence

from stemma import executor
from stemma.decoding.blanks import BlankSession
from stemma.decoding.layout import lay_out
from stemma.decoding.masks import MaskSession
from stemma.decoding.queries import QuerySession
from stemma.decoding.session import Room, Session
from stemma.decoding.uncached import UncachedSession
from stemma.decoding.windows import MemorySession
from stemma.nn.model import Model
from stemma.nn.parts import Memory, Open, Prefix


def begin(
    model: Model,
    prompts: Sequence[Sequence[int]],
    room: Room = 0,
    languages: Sequence[int | None] | None = None,
    starts: Sequence[int] | None = None,
    kind: type[Session] | None = None,
) -> Session:
    """A decoding of prompts (see `Session`), of the given `kind`, or of the one that the model asks for."""
    if isinstance(executor.of(model), executor.Reason):
        lay_out(model, len(prompts))
    return (kind or session_kind(model, prompts, room))(model, prompts, room, languages, starts)


def session_kind(model: Model, prompts: Sequence[Sequence[int]], room: Room) -> type[Session]:
    """The kind of session that a model's arch, and with dynamic scaling the longest row, asks for."""
    if model.arch.streams is not None:
        return QuerySession
    if isinstance(model.arch.mask, Open):
        return MaskSession
    if isinstance(model.arch.mask, Prefix) and model.encoder is None:
        return BlankSession
    if isinstance(model.arch.mask, Memory):
        return MemorySession
    assert model.decoder is not None
    rooms = [room] * len(prompts) if isinstance(room, int) else room
    longest = max((len(p) + n for p, n in zip(prompts, rooms, strict=True)), default=0)
    if model.decoder.position.length_dependent and longest > model.dims.context:
        return UncachedSession
    return Session
