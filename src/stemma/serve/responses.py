"""`/v1/responses`: the conversation of a chat in another dress, and its events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from starlette.responses import Response

from stemma.engine import Job
from stemma.serve import chat, problems
from stemma.serve.calls import Part, Words
from stemma.serve.problems import Problem, bad
from stemma.serve.schemas.chat import ChatRequest
from stemma.serve.schemas.responses import InputCall, InputMessage, InputResult, Item, ItemsQuery, ResponsesRequest
from stemma.serve.server import Server
from stemma.serve.streams import EventStream, event, merged


def listed(server: Server, body: ResponsesRequest) -> list[Item]:
    """The items of the conversation: those of a kept response, if it goes on from one, and the request's own. Raises
    Problem for a response that is not kept."""
    given: list[Item] = [InputMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    if body.previous_response_id is None:
        return given
    try:
        return [*server.store.find(body.previous_response_id).items, *given]
    except Problem as problem:
        name = "previous_response_id"
        raise bad(f"{name}: {problem.message}", name, "previous_response_not_found") from None


def as_chat(body: ResponsesRequest, items: Sequence[Item]) -> ChatRequest:
    """The same request to `/v1/chat/completions`; `items`: of the whole conversation."""
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    for item in items:
        _add(messages, item)
    tools = [
        {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
        for tool in body.tools or ()
    ]
    asked: dict[str, Any] = {
        "model": body.model, "messages": messages, "temperature": body.temperature, "top_p": body.top_p,
        "seed": body.seed, "max_completion_tokens": body.max_output_tokens,
        "parallel_tool_calls": body.parallel_tool_calls,
    }  # fmt: skip
    if tools:
        asked["tools"] = tools
    choice = body.tool_choice
    if choice is not None:
        named = isinstance(choice, str)
        asked["tool_choice"] = choice if named else {"type": "function", "function": {"name": choice.name}}  # type: ignore[union-attr]
    form = body.text.format if body.text is not None else None
    if form is not None and form.type == "json_schema":
        asked["response_format"] = {
            "type": form.type, "json_schema": form.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
        }  # fmt: skip
    elif form is not None:
        asked["response_format"] = {"type": form.type}
    return ChatRequest.model_validate(asked)


def _add(messages: list[dict[str, Any]], item: Item) -> None:
    """One item as a message; calls that follow each other are of one message."""
    match item:
        case InputMessage():
            parts = item.content if isinstance(item.content, str) else "".join(part.text for part in item.content)
            messages.append({"role": item.role, "content": parts})
        case InputCall():
            call = {"id": item.call_id, "type": "function"}
            call |= {"function": {"name": item.name, "arguments": item.arguments}}  # type: ignore[dict-item]
            if messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        case InputResult():
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})


class Answered:
    """A response that is being made, and its events. `items`: of the conversation that it answers."""

    def __init__(self, server: Server, body: ResponsesRequest, items: Sequence[Item], asked: chat.Asked, job: Job):
        self.server, self.body, self.items, self.asked, self.job = server, body, items, asked, job
        self.choice = asked.choices[0]
        self.kept = body.store is not False and server.store.size > 0
        self.id, self.created = f"resp_{secrets.token_hex(16)}", int(time.time())
        self.output: list[dict[str, Any]] = []
        self.number = -1

    def take(self, parts: list[Part]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of more parts of the answer."""
        for part in parts:
            if isinstance(part, Words):
                yield from self._words(part.text)
                continue
            if part.name is not None:
                yield from self.close("completed")
                item = {"type": "function_call", "id": f"fc_{secrets.token_hex(12)}", "call_id": part.id,
                        "name": part.name, "arguments": "", "status": "in_progress"}  # fmt: skip
                yield from self._open(item)
            if part.arguments:
                self.output[-1]["arguments"] += part.arguments
                yield "response.function_call_arguments.delta", self._at() | {"delta": part.arguments}

    def _words(self, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if not self.output or self.output[-1]["type"] != "message":
            yield from self.close("completed")
            yield from self._open({
                "type": "message", "id": f"msg_{secrets.token_hex(12)}", "role": "assistant", "status": "in_progress",
                "content": [],
            })  # fmt: skip
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self.output[-1]["content"].append(part)
            yield "response.content_part.added", self._at() | {"content_index": 0, "part": dict(part)}
        self.output[-1]["content"][0]["text"] += text
        yield "response.output_text.delta", self._at() | {"content_index": 0, "delta": text, "logprobs": []}

    def _open(self, item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        self.output.append(item)
        shown = item | ({"content": []} if "content" in item else {})
        yield "response.output_item.added", {"output_index": len(self.output) - 1, "item": shown}

    def close(self, status: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The last item is whole."""
        if not self.output or self.output[-1]["status"] != "in_progress":
            return
        item = self.output[-1]
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            yield "response.output_text.done", self._at() | {"content_index": 0, "text": part["text"], "logprobs": []}
            yield "response.content_part.done", self._at() | {"content_index": 0, "part": part}
        else:
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield "response.function_call_arguments.done", self._at() | done
        yield "response.output_item.done", {"output_index": len(self.output) - 1, "item": item}

    def end(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The answer is whole: it is counted, and kept where it shall be."""
        if not self.output:
            yield from self._words("")
        yield from self.close(self.ended)
        self.server.used(self.asked.served, len(self.job.prompt), self.choice.tokens, self.job.cached)
        if self.kept:
            self.server.store.add(self.whole(), self.items)

    def _at(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}

    @property
    def ended(self) -> str:
        """How it stands."""
        if self.choice.finish is None:
            return "in_progress"
        return "incomplete" if self.choice.finish == "length" else "completed"

    def whole(self) -> dict[str, Any]:
        """The response as it is now."""
        body, status = self.body, self.ended
        cut, read, written = status == "incomplete", len(self.job.prompt), self.choice.tokens
        usage = {
            "input_tokens": read, "input_tokens_details": {"cached_tokens": self.job.cached}, "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": read + written,
        }  # fmt: skip
        form = body.text.model_dump(exclude_none=True, by_alias=True) if body.text else {}
        choice = (
            body.tool_choice
            if isinstance(body.tool_choice, str) or not body.tool_choice
            else (body.tool_choice.model_dump())
        )
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {}, "model": body.model, "output": self.output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": None, "summary": None}, "store": self.kept, "temperature": body.temperature,
            "text": {"format": {"type": "text"}} | form, "tool_choice": choice or "auto",
            "tools": [tool.model_dump() for tool in body.tools or ()], "top_p": body.top_p, "truncation": "disabled",
            "usage": None if status == "in_progress" else usage, "user": body.user,
        }  # fmt: skip

    def event(self, kind: str, more: dict[str, Any]) -> bytes:
        """An event of the stream."""
        self.number += 1
        return event({"type": kind, "sequence_number": self.number} | more, kind)


async def answer(server: Server, body: ResponsesRequest) -> dict[str, Any] | Response:
    """Answer a conversation."""
    try:
        items = listed(server, body)
        asked = await asyncio.to_thread(lambda: chat.understood(server, as_chat(body, items)))
    except Problem as problem:
        problem.param = {"messages": "input", "response_format": "text"}.get(problem.param or "", problem.param)
        raise
    job = server.submit(asked.served, asked.prompt, asked.params, asked.adapter)
    made = Answered(server, body, items, asked, job)
    if body.stream:
        return EventStream(streamed(made), [job], server.settings.keep_alive)
    async for _, one in merged([job]):
        for _ in made.take(made.choice.take(one)):
            pass
        if made.choice.finish is not None:
            break
    job.cancel()
    for _ in made.end():
        pass
    return made.whole()


async def retrieve(server: Server, name: str) -> dict[str, Any]:
    """A response that is kept."""
    return server.store.find(name).answer


async def input_items(server: Server, given: tuple[str, ItemsQuery]) -> dict[str, Any]:
    """The items that a kept response answers, those of the responses before it too. Raises Problem for an `after` that
    is none of them."""
    name, asked = given
    items = server.store.find(name).given
    if asked.order == "desc":
        items.reverse()
    if asked.after is not None:
        ids = [item["id"] for item in items]
        if asked.after not in ids:
            raise bad(f"after: {asked.after[:80]!r} is no item of this response's input", "after", "invalid_value")
        items = items[ids.index(asked.after) + 1 :]
    shown = items[: asked.limit]
    return {
        "object": "list", "data": shown, "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None, "has_more": len(items) > len(shown),
    }  # fmt: skip


async def delete(server: Server, name: str) -> dict[str, Any]:
    """Forget a response."""
    server.store.drop(name)
    return {"id": name, "object": "response", "deleted": True}


async def streamed(made: Answered) -> AsyncGenerator[bytes, None]:
    """The events of a response."""
    try:
        for kind in ("response.created", "response.in_progress"):
            yield made.event(kind, {"response": made.whole()})
        async for _, one in merged([made.job]):
            for kind, more in made.take(made.choice.take(one)):
                yield made.event(kind, more)
            if made.choice.finish is not None:
                break
        for kind, more in made.end():
            yield made.event(kind, more)
        yield made.event(f"response.{made.ended}", {"response": made.whole()})
    except Exception as error:
        problem = problems.of(error)
        yield made.event("error", {"code": problem.code, "message": problem.message, "param": problem.param})
