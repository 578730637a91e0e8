"""`/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stemma.serve.schemas.base import Answer, Ids, Name, Sampling, Usage


class CompletionRequest(Sampling):
    """Texts (or their token ids) that are continued. Fields that are not listed are refused."""

    model: Name
    prompt: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, max_length=256)]
        | Annotated[list[Ids], Field(min_length=1, max_length=256)]
    )
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(None, description="Left out: 16.")
    suffix: str | None = Field(None, description="What stands behind the text, of a model that fills in the middle.")
    echo: bool | None = Field(None, description="The prompt stands before its text.")
    language: str | None = Field(None, description="Of models that write several: the name of its token, or its own.")
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    return_token_ids: bool | None = Field(None, description="Each choice has its `token_ids`, as vLLM gives them.")


class CompletionLogprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    token_ids: list[int] | None = None
    finish_reason: Literal["stop", "length"]


class CompletionAnswer(Answer):
    """Of a stream each event has the same form, the usage in the last one alone."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
