"""`/v1/chat/completions`: the answer to a conversation, whole or as it comes."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from stemma.decoding import SamplingParams
from stemma.engine import Job
from stemma.serve import calls, drawing, problems, prompts, response_format
from stemma.serve.choices import Choice, delta
from stemma.serve.models import Served
from stemma.serve.problems import bad
from stemma.serve.schemas.chat import ChatRequest, NamedTool, Tool
from stemma.serve.server import Server
from stemma.serve.streams import DONE, EventStream, event, merged


@dataclass
class Asked:
    """A request that was understood: its prompt, how the answers are written, and `made`, which begins one."""

    served: Served
    adapter: str | None
    body: ChatRequest
    prompt: list[int]
    params: SamplingParams
    made: Callable[[int], Choice]

    @property
    def choices(self) -> list[Choice]:
        """The answers that will be written."""
        return [self.made(i) for i in range(self.body.n or 1)]


def understood(server: Server, body: ChatRequest) -> Asked:
    """Read a request. Raises Problem for what cannot be."""
    served, adapter = server.models.find(body.model)
    served.writing()
    tokenizer = served.tokenizer
    form = calls.form_of(served.writer, tokenizer) if served.writer is not None else None
    tools, forced = wanted(body, form)
    write = prompts.writer(served, body.chat_template_kwargs, form, tools)
    listed = prompts.turns(body.messages, form)
    if form is calls.GORILLA:
        listed = prompts.documented(listed, tools)
    begun = form.opening if form is not None and forced else ""
    prompt = prompts.prompt(served, write, listed, bool(body.continue_final_message), begun)
    given = body.max_completion_tokens or body.max_tokens
    tokens = drawing.room(served, prompt, given, server.settings.max_tokens, "messages")
    guide = response_format.guide(body, body.response_format)
    if guide is not None and tools:
        raise bad("an answer with a form calls no tools: leave tools or the form out", "tools")
    one = body.parallel_tool_calls is False or isinstance(body.tool_choice, NamedTool)
    if forced:
        assert form is not None
        one = one or not form.between
        guide = response_format.call(form, tools, not one, tokenizer)
    told = bool(body.logprobs)
    if body.top_logprobs is not None and not told:
        raise bad("top_logprobs goes with logprobs: true", "top_logprobs")
    params = drawing.params(
        served, body, tokens, stop=drawing.stops(body.stop, () if body.ignore_eos else served.stops), guide=guide,
        logprobs=(body.top_logprobs or 0) if told else None,
    )  # fmt: skip
    names = {tool.function.name for tool in tools}
    most = 1 if one else 0
    mark = tokenizer.id(form.mark) if form is not None else None
    mark = mark if mark in tokenizer.special_ids else None

    def made(index: int) -> Choice:
        reader = calls.Reader(form, names, forced, most) if form is not None and tools else None
        return Choice(index, tokenizer, reader, mark, told)

    return Asked(served, adapter, body, prompt, params, made)


def wanted(body: ChatRequest, form: calls.Form | None) -> tuple[list[Tool], bool]:
    """The tools that may be called, and whether one has to be. Raises Problem for a choice that cannot be."""
    tools, choice = list(body.tools or ()), body.tool_choice
    if choice in (None, "auto", "none") and not tools:
        return [], False
    if choice == "none":
        return [], False
    if not tools:
        raise bad("tool_choice asks for a call, and there are no tools", "tool_choice")
    if form is None:
        raise bad("this model's chat template has no place for tools", "tools")
    if len({tool.function.name for tool in tools}) < len(tools):
        raise bad("two tools have the same name", "tools")
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        if not tools:
            raise bad(f"tool_choice names {choice.function.name!r}, which is none of the tools", "tool_choice")
    forced = choice == "required" or isinstance(choice, NamedTool)
    if forced and form is calls.GORILLA:
        raise bad("this model writes calls as text, which cannot be forced: leave tool_choice out", "tool_choice")
    return tools, forced


async def answer(server: Server, body: ChatRequest) -> dict[str, Any] | Response:
    """Answer a conversation."""
    asked = await asyncio.to_thread(understood, server, body)
    job = server.submit(asked.served, asked.prompt, asked.params, asked.adapter)
    if body.stream:
        return EventStream(streamed(server, asked, job), [job], server.settings.keep_alive)
    choices = asked.choices
    async for _, one in merged([job]):
        choices[one.choice].take(one)
        if all(choice.finish for choice in choices):
            break
    job.cancel()
    usage = used(server, asked, job, choices)
    return head(server, body.model, "chat.completion") | {"choices": [c.whole for c in choices], "usage": usage}


def used(server: Server, asked: Asked, job: Job, choices: list[Choice]) -> dict[str, Any]:
    """The usage of a request."""
    return server.used(asked.served, len(asked.prompt), sum(choice.tokens for choice in choices), job.cached)


def head(server: Server, model: str, kind: str, prefix: str = "chatcmpl-") -> dict[str, Any]:
    """The fields that all chunks of an answer share."""
    own = {"id": prefix + secrets.token_hex(12), "object": kind, "created": int(time.time()), "model": model}
    return own | {"system_fingerprint": server.fingerprint}


async def streamed(server: Server, asked: Asked, job: Job) -> AsyncGenerator[bytes, None]:
    """The chunks of an answer: first the role, last why it ended, and then perhaps the usage."""
    body, choices = asked.body, asked.choices
    shared = head(server, body.model, "chat.completion.chunk")
    counts = bool(body.stream_options and body.stream_options.include_usage)
    nothing = {"usage": None} if counts else {}

    def chunk(choice: Choice, more: dict[str, Any], finish: str | None = None) -> bytes:
        told = None
        if choice.logprobs:
            told, choice.logprobs = {"content": choice.logprobs, "refusal": None}, []
        own = {"index": choice.index, "delta": more, "logprobs": told, "finish_reason": finish}
        return event(shared | {"choices": [own]} | nothing)

    try:
        for choice in choices:
            yield chunk(choice, {"role": "assistant", "content": ""})
        async for _, one in merged([job]):
            choice = choices[one.choice]
            if choice.finish is not None:
                continue
            parts = choice.take(one)
            for part in parts:
                yield chunk(choice, delta(part))
            if choice.logprobs:
                yield chunk(choice, {"content": ""})
            if choice.finish is not None:
                yield chunk(choice, {}, choice.finish)
                if all(other.finish for other in choices):
                    break
        usage = used(server, asked, job, choices)
        if counts:
            yield event(shared | {"choices": [], "usage": usage})
        yield DONE
    except Exception as error:
        yield event(problems.of(error).body)
