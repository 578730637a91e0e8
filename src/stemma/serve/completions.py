"""`/v1/completions`: texts that are continued, whole or as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

from starlette.responses import Response

from stemma.decoding import Event, SamplingParams, infill, row_seed
from stemma.engine import Job
from stemma.serve import drawing, problems
from stemma.serve.chat import FINISHED, head
from stemma.serve.models import Served
from stemma.serve.problems import bad
from stemma.serve.schemas.completions import CompletionRequest
from stemma.serve.server import Server
from stemma.serve.streams import DONE, EventStream, event, merged

LEAST = 16  # new tokens where a request names no number, as OpenAI's interface has it


@dataclass
class Asked:
    """A request that was understood: its prompts, what is said before each text, and how texts are written."""

    served: Served
    adapter: str | None
    body: CompletionRequest
    prompts: list[list[int]]
    echoes: list[str]
    params: list[SamplingParams]

    @property
    def choices(self) -> int:
        """Texts of a prompt."""
        return self.body.n or 1


@dataclass
class Choice:
    """One text as it is written. `echo`: what stands before it."""

    index: int
    echo: str
    silent: bool
    text: str = ""
    finish: str | None = None
    tokens: int = 0

    def take(self, one: Event) -> str:
        """What one more token adds."""
        self.tokens += not self.silent
        if one.reason is not None:
            self.finish = "length" if self.silent else FINISHED[one.reason]
        piece = "" if self.silent else one.text
        self.text += piece
        return piece

    @property
    def whole(self) -> dict[str, Any]:
        """The text when it is written."""
        return {"index": self.index, "text": self.echo + self.text, "logprobs": None, "finish_reason": self.finish}


def understood(server: Server, body: CompletionRequest) -> Asked:
    """Read a request. Raises Problem for what cannot be."""
    served, adapter = server.models.find(body.model)
    served.writing()
    for name in ("logprobs", "best_of"):
        if getattr(body, name) is not None:
            raise bad(f"{name} is not supported yet", name, "unsupported_parameter")
    given = texts(body)
    prompts = [_ids(served, one, body.suffix) for one in given]
    tokens = LEAST if body.max_tokens is None else body.max_tokens
    new = [drawing.room(served, one, tokens or 1, LEAST, "prompt") for one in prompts]
    params = drawing.params(served, body, max(new), stop=drawing.stops(body.stop))
    seed = params.seed or 0
    own = [replace(params, max_new_tokens=n, seed=row_seed(seed, i)) for i, n in enumerate(new)]
    echoes = [_echo(served, one) if body.echo else "" for one in given]
    return Asked(served, adapter, body, prompts, echoes, own)


def texts(body: CompletionRequest) -> list[str | list[int]]:
    """The prompts one by one."""
    held: Any = body.prompt
    return [held] if isinstance(held, str) or isinstance(held[0], int) else list(held)


def _ids(served: Served, text: str | list[int], suffix: str | None) -> list[int]:
    vocab = served.model.dims.vocab
    if suffix:
        if not isinstance(text, str):
            raise bad("a suffix goes with a prompt of text, not of token ids", "suffix")
        if not served.infills:
            raise bad(f"the model {served.name} does not fill in the middle of a text", "suffix")
        return infill.prompt(served.model, text, suffix)
    if isinstance(text, list) and (wrong := [i for i in text if i >= vocab]):
        raise bad(f"token {wrong[0]} is none of this model's, which are 0 to {vocab - 1}", "prompt")
    ids = served.prompt(text)
    if not ids:
        raise bad("the prompt is empty: a model goes on from at least one token", "prompt")
    return ids


def _echo(served: Served, text: str | list[int]) -> str:
    return text if isinstance(text, str) else served.tokenizer.decode(text)


async def answer(server: Server, body: CompletionRequest) -> dict[str, Any] | Response:
    """Continue texts."""
    asked = await asyncio.to_thread(understood, server, body)
    jobs: list[Job] = []
    try:
        for prompt, params in zip(asked.prompts, asked.params, strict=True):
            jobs.append(server.submit(asked.served, prompt, params, asked.adapter))
    except BaseException:
        for job in jobs:
            job.cancel()
        raise
    if body.stream:
        return EventStream(streamed(server, asked, jobs), jobs, server.settings.keep_alive)
    made = choices(asked)
    async for number, one in merged(jobs):
        made[number * asked.choices + one.choice].take(one)
    return head(server, body.model, "text_completion", "cmpl-") | {
        "choices": [choice.whole for choice in made], "usage": used(server, asked, made),
    }  # fmt: skip


def choices(asked: Asked) -> list[Choice]:
    """The texts that will be written."""
    each, silent = asked.choices, asked.body.max_tokens == 0
    return [Choice(i, asked.echoes[i // each], silent) for i in range(len(asked.prompts) * each)]


def used(server: Server, asked: Asked, made: list[Choice]) -> dict[str, Any]:
    """The usage of a request."""
    return server.used(asked.served, sum(map(len, asked.prompts)), sum(choice.tokens for choice in made))


async def streamed(server: Server, asked: Asked, jobs: list[Job]) -> AsyncGenerator[bytes, None]:
    """The chunks of texts as they come; the last one of each says why it ended."""
    body, made = asked.body, choices(asked)
    shared = head(server, body.model, "text_completion", "cmpl-")
    counts = bool(body.stream_options and body.stream_options.include_usage)
    nothing = {"usage": None} if counts else {}

    def chunk(index: int, text: str, finish: str | None = None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
        return event(shared | {"choices": [choice]} | nothing)

    try:
        for choice in made:
            if choice.echo:
                yield chunk(choice.index, choice.echo)
        async for number, one in merged(jobs):
            choice = made[number * asked.choices + one.choice]
            piece = choice.take(one)
            if piece or choice.finish:
                yield chunk(choice.index, piece, choice.finish)
        usage = used(server, asked, made)
        if counts:
            yield event(shared | {"choices": [], "usage": usage})
        yield DONE
    except Exception as error:
        yield event(problems.of(error).body)
