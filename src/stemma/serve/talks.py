"""Messages of a request as the prompt of the answer that is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from stemma.conversations import Turn, Writer, prompt_ids
from stemma.conversations.jinja import JinjaWriter
from stemma.instruct.writers import prompt_of
from stemma.serve.models import Served
from stemma.serve.problems import bad
from stemma.serve.schemas.chat import AssistantMessage, ChatRequest, Content, Message, SystemMessage, ToolMessage


def words(content: Content | None) -> str:
    """The text of a message."""
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def prompt(served: Served, body: ChatRequest) -> list[int]:
    """The ids that the answer follows. Raises Problem for messages that the model's template does not take."""
    tokenizer, write = served.tokenizer, _writer(served, body)
    listed = turns(body.messages)
    check(listed, write)
    if not body.continue_final_message:
        return prompt_ids(tokenizer, prompt_of(write, listed))
    if listed[-1].role != "assistant":
        raise bad("continue_final_message goes on with an assistant's message, and the last one is another's",
                  "continue_final_message")  # fmt: skip
    begun = prompt_ids(tokenizer, prompt_of(write, listed[:-1]))
    return [*begun, *tokenizer.encode_continuation(listed[-1].content)]


def _writer(served: Served, body: ChatRequest) -> Writer:
    write = served.writer
    if write is None:
        raise bad(f"the model {served.name} has no chat template; use /v1/completions", "model")
    if not body.chat_template_kwargs:
        return write
    if not isinstance(write, JinjaWriter):
        raise bad("this model's template reads no names: leave chat_template_kwargs out", "chat_template_kwargs")
    reserved = {"messages", "add_generation_prompt", "tools", "documents", "tokenize"} & {*body.chat_template_kwargs}
    if reserved:
        raise bad(f"{min(reserved)} is no name that chat_template_kwargs may set", "chat_template_kwargs")
    return JinjaWriter(served.tokenizer, **body.chat_template_kwargs)


def turns(messages: Sequence[Message]) -> list[Turn]:
    """Messages as turns."""
    found = []
    for i, message in enumerate(messages):
        if isinstance(message, ToolMessage) or (isinstance(message, AssistantMessage) and message.tool_calls):
            raise bad("calls of tools are not supported yet", f"messages[{i}]", "unsupported_parameter")
        if isinstance(message, AssistantMessage) and message.content is None:
            raise bad(f"messages[{i}] has no content", f"messages[{i}].content")
        role = "system" if isinstance(message, SystemMessage) else message.role
        found.append(Turn(role, words(message.content)))
    return found


def check(listed: Sequence[Turn], write: Writer) -> None:
    """Raises Problem for an order of turns that a declared template cannot write. Others say so themselves."""
    if not any(turn.role != "system" for turn in listed):
        raise bad("messages hold nothing that a user says", "messages")
    if not isinstance(write, JinjaWriter) and any(turn.role == "system" for turn in listed[1:]):
        raise bad("this model's template takes a system message at the beginning alone", "messages")
