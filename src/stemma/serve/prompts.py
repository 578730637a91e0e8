"""Messages of a request as the prompt of the answer that is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stemma.conversations import Text, Turn, Writer, apis, prompt_ids
from stemma.conversations.jinja import JinjaWriter
from stemma.errors import DataError
from stemma.instruct.writers import prompt_of
from stemma.serve.calls import GORILLA, Form
from stemma.serve.models import Served
from stemma.serve.problems import bad
from stemma.serve.schemas.chat import (
    AssistantMessage,
    Content,
    Message,
    SystemMessage,
    Tool,
    ToolCall,
    ToolMessage,
)

RESERVED = {"messages", "add_generation_prompt", "tools", "documents", "tokenize"}


def words(content: Content | None) -> str:
    """The text of a message."""
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def writer(served: Served, names: dict[str, Any] | None, form: Form | None, tools: Sequence[Tool]) -> Writer:
    """What writes the conversation: the model's template, with the tools and further names that it reads. Raises
    Problem for a model without one, and for names that it does not read."""
    write = served.writer
    if write is None:
        raise bad(f"the model {served.name} has no chat template; use /v1/completions", "model")
    if names and not isinstance(write, JinjaWriter):
        raise bad("this model's template reads no names: leave chat_template_kwargs out", "chat_template_kwargs")
    if reserved := RESERVED & {*(names or {})}:
        raise bad(f"{min(reserved)} is no name that chat_template_kwargs may set", "chat_template_kwargs")
    given: dict[str, Any] = dict(names or {})
    if tools and form is not GORILLA:
        given["tools"] = [tool.model_dump(exclude_none=True) for tool in tools]
    return JinjaWriter(served.tokenizer, **given) if given else write


def prompt(served: Served, write: Writer, listed: Sequence[Turn], going: bool = False, begun: str = "") -> list[int]:
    """The ids that the answer follows. `going`: the last message, the assistant's, goes on; `begun`: what the answer
    begins with. Raises Problem for messages that the model's template does not take."""
    tokenizer = served.tokenizer
    check(listed, write)
    if not going:
        ids = _ids(served, write, listed)
        return [*ids, *tokenizer.encode(begun, add_special=False, allow_special=True)] if begun else ids
    if listed[-1].role != "assistant":
        raise bad("continue_final_message goes on with an assistant's message, and the last one is another's",
                  "continue_final_message")  # fmt: skip
    return [*_ids(served, write, listed[:-1]), *tokenizer.encode_continuation(listed[-1].content)]


def _ids(served: Served, write: Writer, listed: Sequence[Turn]) -> list[int]:
    """The names of special tokens in anybody's words are ordinary text. A template that changes words is followed where
    none of them holds such a name."""
    tokenizer = served.tokenizer
    try:
        return prompt_ids(tokenizer, prompt_of(write, listed))
    except DataError:
        names = [tokenizer.token(i) for i in tokenizer.special_ids]
        said = "\n".join(turn.content for turn in listed)
        if not isinstance(write, JinjaWriter) or any(name and name in said for name in names):
            raise
        messages = [{"role": turn.role, "content": turn.content, **turn.more} for turn in listed]
        return prompt_ids(tokenizer, Text(tokenizer.apply_chat(messages, **write.options), (), ()))


def turns(messages: Sequence[Message], form: Form | None) -> list[Turn]:
    """Messages as turns. `form`: of the model's calls, if it makes any."""
    found = []
    for i, message in enumerate(messages):
        calls = isinstance(message, AssistantMessage) and bool(message.tool_calls)
        if (calls or isinstance(message, ToolMessage)) and form in (None, GORILLA):
            raise bad("this model's chat template has no place for calls of tools", f"messages[{i}]")
        if isinstance(message, AssistantMessage) and message.content is None and not calls:
            raise bad(f"messages[{i}] has neither content nor tool_calls", f"messages[{i}].content")
        role = "system" if isinstance(message, SystemMessage) else message.role
        found.append(Turn(role, words(message.content), _more(message, i)))
    return found


def _more(message: Message, number: int) -> dict[str, Any]:
    """The fields of a message beside its words, as templates read them."""
    if isinstance(message, ToolMessage):
        return {"tool_call_id": message.tool_call_id}
    if isinstance(message, AssistantMessage) and message.tool_calls:
        return {"tool_calls": [_call(call, number) for call in message.tool_calls]}
    return {}


def _call(call: ToolCall, number: int) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise bad("the arguments of a call must be a JSON object, as a text", f"messages[{number}].tool_calls")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def documented(listed: Sequence[Turn], tools: Sequence[Tool]) -> list[Turn]:
    """The turns with the documentation of tools behind the last question, as Gorilla reads it."""
    last = max((i for i, turn in enumerate(listed) if turn.role == "user"), default=-1)
    found = list(listed)
    for tool in tools if last >= 0 else ():
        asked = apis.asked(found[last].content, tool.function.model_dump(exclude_none=True))
        found[last] = replace(found[last], content=asked)
    return found


def check(listed: Sequence[Turn], write: Writer) -> None:
    """Raises Problem for an order of turns that a declared template cannot write. Others say so themselves."""
    if not any(turn.role != "system" for turn in listed):
        raise bad("messages hold nothing that a user says", "messages")
    if not isinstance(write, JinjaWriter) and any(turn.role == "system" for turn in listed[1:]):
        raise bad("this model's template takes a system message at the beginning alone", "messages")
