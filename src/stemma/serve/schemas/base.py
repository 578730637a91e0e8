"""What the schemas of several routes share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """A part of a request: no other fields, no conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Returned(Strict):
    """A part of an earlier answer that a client sends back: fields that it does not know and that are null, as clients
    write those of other servers, are as left out."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None or name in cls.model_fields}


class Answer(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(extra="forbid")


Name = Annotated[str, Field(min_length=1, max_length=256, description="A model that is served, or `base:adapter`.")]
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Stop = str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]
Bias = dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Metadata = Annotated[dict[str, str], Field(max_length=16)]


class StreamOptions(Strict):
    """`include_usage`: a last chunk says how many tokens there were."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Drawing(Strict):
    """How tokens are drawn. What is left out is as the checkpoint's generation_config.json has it, else as OpenAI's
    interface does: temperature 1 and nothing else."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(None, description="0: all tokens.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    ignore_eos: bool | None = None
    seed: Seed | None = Field(None, description="Left out: another one for each request.")


class Sampling(Drawing):
    """`Drawing`, with what OpenAI's older routes have beside it."""

    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Bias | None = Field(None, description="Token id -> what is added to its logit.")
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Without effect.")
    guided_json: dict[str, Any] | None = Field(None, description="A JSON schema that the text follows.")
    guided_regex: Annotated[str, Field(min_length=1)] | None = Field(None, description="A pattern of the whole text.")
    guided_grammar: Annotated[str, Field(min_length=1)] | None = Field(None, description="A Lark grammar of the text.")
    guided_choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None


class PromptDetails(Answer):
    cached_tokens: int = 0


class Usage(Answer):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ErrorBody(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """Every error."""

    error: ErrorBody
