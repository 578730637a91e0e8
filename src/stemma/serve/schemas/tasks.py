"""Embeddings, tokens, and the routes of models that write no text, or another's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from stemma.serve.schemas.base import Answer, Drawing, Ids, Name, Stop, Strict

Text = Annotated[str, Field(min_length=1)]
Texts = Text | Annotated[list[Text], Field(min_length=1, max_length=2048)]
Maybe = Name | None


class EmbeddingRequest(Strict):
    """Texts (or their token ids) as vectors, by the pooling that the checkpoint names, else the mean."""

    model: Name
    input: (
        Text
        | Ids
        | Annotated[list[Text], Field(min_length=1, max_length=2048)]
        | Annotated[list[Ids], Field(min_length=1, max_length=2048)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="That of the model alone.")
    user: str | None = None
    prompt_name: str | None = Field(None, description="Of the checkpoint's prompts (query, passage).")


class Embedding(Answer):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(Answer):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class TokenizeRequest(Strict):
    """As llama.cpp has it: `add_special` puts the tokens around a text that a model reads there, `parse_special` reads
    names of special tokens as these, `with_pieces` gives the text of each."""

    model: Maybe = None
    content: str
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class Piece(Answer):
    id: int
    piece: str | list[int]


class Tokens(Answer):
    tokens: list[int] | list[Piece]


class DetokenizeRequest(Strict):
    model: Maybe = None
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]


class Detokenized(Answer):
    content: str


class FillRequest(Strict):
    """A text with `[MASK]` in it, once or several times."""

    model: Maybe = None
    text: Text
    top: Annotated[int, Field(ge=1, le=100)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    language: str | None = None


class Guess(Answer):
    text: str
    id: int
    probability: float


class FillAnswer(Answer):
    """`guesses`: of an encoder, the best first, for each mask; `spans`: what another model wrote for each."""

    model: str
    text: str
    guesses: list[list[Guess]]
    spans: list[str]


Row = Text | dict[str, Any]
Rows = Row | Annotated[list[Row], Field(min_length=1, max_length=2048)]


class TaskRequest(Strict):
    """Texts, or rows with the columns of the model's task (`{"question": ..., "context": ...}`)."""

    model: Maybe = None
    input: Rows


class TaskAnswer(Answer):
    """For each row `{"label", "scores"}`, `{"labels", "scores"}`, `{"value"}`, `{"spans"}` or `{"text"}`; `{"error"}`
    of one that cannot be read."""

    model: str
    data: list[dict[str, Any]]


class RerankRequest(Strict):
    """Documents by how well they answer a query: by a head of one value over both texts, else by the cosine of their
    vectors."""

    model: Maybe = None
    query: Text
    documents: Annotated[list[Text], Field(min_length=1, max_length=2048)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None


class Document(Answer):
    text: str


class Ranked(Answer):
    index: int
    relevance_score: float
    document: Document | None = None


class RerankAnswer(Answer):
    model: str
    results: list[Ranked]


class WriteRequest(Drawing):
    """Texts that a model answers with texts: it translates, summarises, or does what else it was trained for. `target`:
    the name of the token that the text begins with (mBART: the language). What is left out is as the checkpoint's
    generation_config.json says, else the likeliest text is written, without beams."""

    model: Maybe = None
    input: Texts
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    num_beams: Annotated[int, Field(ge=1, le=32)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    stop: Stop | None = None
    target: str | None = None
    language: str | None = None


class Written(Answer):
    index: int
    text: str
    finish_reason: Literal["stop", "length"]


class WriteAnswer(Answer):
    model: str
    data: list[Written]
