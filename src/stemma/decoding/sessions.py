"""The kind of session that a model's arch asks for."""

from __future__ import annotations

from collections.abc import Sequence

from stemma.decoding.blanks import BlankSession
from stemma.decoding.chunked import ChunkedSession, in_pieces
from stemma.decoding.layout import lay_out
from stemma.decoding.masks import MaskSession
from stemma.decoding.queries import QuerySession
from stemma.decoding.requests import GenerationRequest
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


def running_kind(model: Model, request: GenerationRequest) -> type[Session]:
    """The kind of session in which a request joins others: one that reads prompts in pieces, where that may be."""
    kind = session_kind(model, [request.prompt], request.rules.max_new_tokens)
    return ChunkedSession if kind is Session and in_pieces(model) else kind


def check(model: Model, request: GenerationRequest) -> None:
    """Raises UsageError for a prompt that no session of this model can read, or that does not fit in its positions."""
    kind = session_kind(model, [request.prompt], request.rules.max_new_tokens)
    starts = None if request.start is None else [request.start]
    kind.__new__(kind).prepare(model, [request.prompt], request.rules.max_new_tokens, [request.language], starts)
