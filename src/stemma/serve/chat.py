"""`/v1/chat/completions`: the answer to a conversation, whole or as it comes."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from stemma.decoding import Event, SamplingParams
from stemma.engine import Job
from stemma.serve import drawing, problems, talks
from stemma.serve.models import Served
from stemma.serve.problems import bad
from stemma.serve.schemas.chat import ChatRequest
from stemma.serve.server import Server
from stemma.serve.streams import DONE, EventStream, event, merged

FINISHED = {"eos": "stop", "stop": "stop", "length": "length"}


@dataclass
class Asked:
    """A request that was understood: its prompt, and how the answer is written."""

    served: Served
    adapter: str | None
    body: ChatRequest
    prompt: list[int]
    params: SamplingParams

    @property
    def choices(self) -> int:
        """How many answers there will be."""
        return self.body.n or 1


@dataclass
class Choice:
    """One answer as it is written."""

    index: int
    text: str = ""
    finish: str | None = None
    tokens: int = 0
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def take(self, one: Event) -> list[dict[str, Any]]:
        """What one more token adds, as deltas."""
        self.tokens += 1
        self.text += one.text
        if one.reason is not None:
            self.finish = FINISHED[one.reason]
        return [{"content": one.text}] if one.text else []

    @property
    def whole(self) -> dict[str, Any]:
        """The answer when it is written."""
        message = {"role": "assistant", "content": self.text, "refusal": None}
        return {"index": self.index, "message": message, "logprobs": None, "finish_reason": self.finish}


def understood(server: Server, body: ChatRequest) -> Asked:
    """Read a request. Raises Problem for what cannot be."""
    served, adapter = server.models.find(body.model)
    served.writing()
    for name in ("tools", "tool_choice", "response_format", "logprobs", "top_logprobs"):
        value = getattr(body, name)
        plain = name == "response_format" and getattr(value, "type", "text") == "text"
        if value and not plain and value != "none":
            raise bad(f"{name} is not supported yet", name, "unsupported_parameter")
    prompt = talks.prompt(served, body)
    given = body.max_completion_tokens or body.max_tokens
    tokens = drawing.room(served, prompt, given, server.settings.max_tokens, "messages")
    stop = drawing.stops(body.stop, served.stops)
    return Asked(served, adapter, body, prompt, drawing.params(served, body, tokens, stop=stop))


async def answer(server: Server, body: ChatRequest) -> dict[str, Any] | Response:
    """Answer a conversation."""
    asked = await asyncio.to_thread(understood, server, body)
    job = server.submit(asked.served, asked.prompt, asked.params, asked.adapter)
    if body.stream:
        return EventStream(streamed(server, asked, job), [job], server.settings.keep_alive)
    choices = [Choice(i) for i in range(asked.choices)]
    try:
        async for one in job:
            choices[one.choice].take(one)
    finally:
        job.cancel()
    usage = server.used(asked.served, len(asked.prompt), sum(c.tokens for c in choices))
    return head(server, body.model, "chat.completion") | {"choices": [c.whole for c in choices], "usage": usage}


def head(server: Server, model: str, kind: str, prefix: str = "chatcmpl-") -> dict[str, Any]:
    """The fields that all chunks of an answer share."""
    own = {"id": prefix + secrets.token_hex(12), "object": kind, "created": int(time.time()), "model": model}
    return own | {"system_fingerprint": server.fingerprint}


async def streamed(server: Server, asked: Asked, job: Job) -> AsyncGenerator[bytes, None]:
    """The chunks of an answer: first the role, last why it ended, and then perhaps the usage."""
    body, choices = asked.body, [Choice(i) for i in range(asked.choices)]
    shared = head(server, body.model, "chat.completion.chunk")
    counts = bool(body.stream_options and body.stream_options.include_usage)
    nothing = {"usage": None} if counts else {}

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(shared | {"choices": [choice]} | nothing)

    try:
        for choice in choices:
            yield chunk(choice.index, {"role": "assistant", "content": ""})
        async for _, one in merged([job]):
            choice = choices[one.choice]
            for delta in choice.take(one):
                yield chunk(choice.index, delta)
            if choice.finish is not None:
                yield chunk(choice.index, {}, choice.finish)
        usage = server.used(asked.served, len(asked.prompt), sum(c.tokens for c in choices))
        if counts:
            yield event(shared | {"choices": [], "usage": usage})
        yield DONE
    except Exception as error:
        yield event(problems.of(error).body)
