"""`/v1/responses`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from stemma.serve.schemas.base import Answer, Metadata, Name, Returned, Seed, Strict
from stemma.serve.schemas.chat import FunctionName, ObjectFormat, TextFormat


class InputText(Returned):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputMessage(Returned):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[InputText], Field(min_length=1)]
    id: str | None = None
    status: str | None = None


class InputCall(Returned):
    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1, max_length=64)]
    name: FunctionName
    arguments: str
    id: str | None = None
    status: str | None = None


class InputResult(Returned):
    type: Literal["function_call_output"]
    call_id: str
    output: str
    id: str | None = None
    status: str | None = None


Item = InputMessage | InputCall | InputResult
ITEM: TypeAdapter[Item] = TypeAdapter(Item)


class FunctionTool(Strict):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedChoice(Strict):
    type: Literal["function"]
    name: FunctionName


class JSONSchemaFormat(Strict):
    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    format: Annotated[TextFormat | ObjectFormat | JSONSchemaFormat, Field(discriminator="type")] | None = None


class ResponsesRequest(Strict):
    """A conversation whose next answer is asked for, in the form of OpenAI's newer interface."""

    model: Name
    input: Annotated[str, Field(min_length=1)] | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed | None = Field(None, description="Left out: another one for each request.")
    stream: bool | None = None
    stream_options: None = None
    text: TextOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: Metadata | None = None
    store: bool | None = Field(None, description="Whether the answer is kept for later requests; left out, it is.")
    previous_response_id: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="A kept answer whose conversation goes on; its instructions are not taken over."
    )
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    user: str | None = None
    include: Annotated[list[Any], Field(max_length=0)] | None = None


class OutputText(Answer):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputMessage(Answer):
    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class OutputCall(Answer):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["in_progress", "completed", "incomplete"]


class InputDetails(Answer):
    cached_tokens: int


class OutputDetails(Answer):
    reasoning_tokens: int


class ResponseUsage(Answer):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(Answer):
    reason: Literal["max_output_tokens"]


class ResponsesAnswer(Answer):
    """Of a stream each event has a type of OpenAI's (`response.output_text.delta`), the whole answer in the last."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, Any]
    store: bool
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Any
    tools: list[Any]
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None


class ItemsQuery(BaseModel):
    """Which items of a kept answer's input are listed."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100, description="At most so many.")
    order: Literal["asc", "desc"] = Field("desc", description="By time; `desc`: the latest first.")
    after: str | None = Field(None, description="The id of an item: those behind it in this order.")


class ItemList(Answer):
    object: Literal["list"]
    data: list[Any]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedResponse(Answer):
    id: str
    object: Literal["response"]
    deleted: Literal[True]
