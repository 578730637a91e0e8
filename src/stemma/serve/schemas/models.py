"""`/v1/models`, health, and the routes of the administrator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stemma.serve.schemas.base import Answer, Strict


class Facts(Answer):
    """What Stemma knows of a model. `lineage`: the names of its family's ancestors, the root first, itself last;
    `writes`: whether it continues or answers texts; `tasks`: other routes that it answers; `adapter`: its name."""

    family: str | None
    lineage: list[str]
    structure: Literal["decoder", "encoder", "encoder-decoder"]
    writes: bool
    chats: bool
    tasks: list[str]
    context: int
    parameters: int
    adapter: str | None


class ModelEntry(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None
    stemma: Facts


class ServerFacts(Answer):
    """What the server does beside answering. `feedback`: it keeps what people think of answers."""

    feedback: bool


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelEntry]
    stemma: ServerFacts | None = None


class Status(Answer):
    status: Literal["ok", "ready", "loading", "ending"]


class LoadRequest(Strict):
    """A model to be loaded: `model` is a folder, a run, a GGUF file or a hub id on the server's side. `replace`: where
    a model has the name, the new one takes its place once it is loaded; requests that the old one has are answered."""

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    name: Annotated[str, Field(pattern=r"^[^\s:]{1,200}$")] | None = None
    adapters: dict[Annotated[str, Field(pattern=r"^[^\s:]{1,200}$")], str] | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = None
    quantize: Literal["nf4", "int8", "keep"] | None = None
    replace: bool | None = None


class Dropped(Answer):
    id: str
    object: Literal["model"]
    deleted: bool
