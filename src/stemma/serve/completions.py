"""`/v1/completions`: texts that are continued, whole or as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

from starlette.responses import Response

from stemma.decoding import Event, Result, SamplingParams, infill, row_seed
from stemma.engine import Job
from stemma.serve import drawing, problems, response_format
from stemma.serve.chat import head
from stemma.serve.choices import FINISHED
from stemma.serve.logprobs import OfText
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


class Choice:
    """One text as it is written. `echo`: what stands before it; `silent`: nothing is written; `told`: its tokens'
    log-probabilities, where they are asked for."""

    def __init__(self, index: int, echo: str, silent: bool, told: OfText | None) -> None:
        self.index, self.echo, self.silent, self.told = index, echo, silent, told
        self.text, self.tokens = "", 0
        self.ids: tuple[int, ...] = ()
        self.finish: str | None = None

    def take(self, one: Event) -> str:
        """What one more token adds."""
        if one.reason is not None:
            self.finish = "length" if self.silent else FINISHED[one.reason]
        if self.silent:
            return ""
        self.tokens += 1
        if self.told is not None:
            self.told.add(one.token, one.logprob, one.top)
        self.text += one.text
        return one.text

    def begin(self, job: Job) -> str:
        """What stands before the text, with its log-probabilities."""
        if self.told is not None and job.report is not None:
            numbers, tops = job.report
            for token, number, top in zip(job.prompt, numbers, tops, strict=True):
                self.told.add(token, number, top)
        return self.echo

    def fill(self, result: Result) -> None:
        """The whole text at once."""
        self.finish, self.tokens = "length" if self.silent else FINISHED[result.reason], len(result.ids)
        if self.silent:
            self.tokens = 0
            return
        self.text, self.ids = result.text or "", tuple(result.ids)
        if self.told is not None:
            for token, number, top in zip(result.ids, result.logprobs, result.top, strict=True):
                self.told.add(token, number, top)

    @property
    def whole(self) -> dict[str, Any]:
        """The text when it is written."""
        told = self.told.taken() if self.told is not None else None
        return {"index": self.index, "text": self.echo + self.text, "logprobs": told, "finish_reason": self.finish}


def understood(server: Server, body: CompletionRequest) -> Asked:
    """Read a request. Raises Problem for what cannot be."""
    served, adapter = server.models.find(body.model)
    served.writing()
    check(body)
    given = texts(body)
    prompts = [_ids(served, one, body.suffix) for one in given]
    tokens = LEAST if body.max_tokens is None else body.max_tokens
    new = [drawing.room(served, one, tokens or 1, LEAST, "prompt") for one in prompts]
    before = body.logprobs if body.echo else None
    language = "language" if served.model.dims.languages else "forced_bos_token_id"
    params = drawing.params(
        served, body, max(new), stop=drawing.stops(body.stop), guide=response_format.guide(body),
        logprobs=body.logprobs, best_of=body.best_of, prompt_logprobs=before, **{language: body.language},
    )  # fmt: skip
    seed = params.seed or 0
    own = [replace(params, max_new_tokens=n, seed=row_seed(seed, i)) for i, n in enumerate(new)]
    echoes = [_echo(served, one) if body.echo else "" for one in given]
    return Asked(served, adapter, body, prompts, echoes, own)


def check(body: CompletionRequest) -> None:
    """Raises Problem for options that do not go together."""
    if body.stream and (body.best_of or 1) > (body.n or 1):
        raise bad("best_of is known when all texts are written, so it does not go with stream", "best_of")
    if body.best_of is not None and body.best_of < (body.n or 1):
        raise bad(f"best_of must be at least n={body.n}, not {body.best_of}", "best_of")
    if body.stream and body.return_token_ids:
        raise bad("return_token_ids is of whole texts, so it does not go with stream", "return_token_ids")
    if body.max_tokens == 0 and not body.echo:
        raise bad("max_tokens=0 writes nothing: it goes with echo", "max_tokens")


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
    jobs = server.submit_all(asked.served, asked.prompts, asked.params, asked.adapter)
    if body.stream:
        return EventStream(streamed(server, asked, jobs), jobs, server.settings.keep_alive)
    made = choices(asked)
    async for _ in merged(jobs):
        pass
    for number, job in enumerate(jobs):
        result = job.result()
        for i, one in enumerate(result.choices):
            choice = made[number * asked.choices + i]
            choice.begin(job)
            choice.fill(one)
    return head(server, body.model, "text_completion", "cmpl-") | {
        "choices": [c.whole | ({"token_ids": list(c.ids)} if body.return_token_ids else {}) for c in made],
        "usage": used(server, asked, made, jobs),
    }  # fmt: skip


def choices(asked: Asked) -> list[Choice]:
    """The texts that will be written."""
    each, silent = asked.choices, asked.body.max_tokens == 0
    told = [
        OfText(asked.served.tokenizer) if asked.body.logprobs is not None else None
        for _ in range(len(asked.prompts) * each)
    ]
    return [Choice(i, asked.echoes[i // each], silent, one) for i, one in enumerate(told)]


def used(server: Server, asked: Asked, made: list[Choice], jobs: list[Job]) -> dict[str, Any]:
    """The usage of a request."""
    read, written, cached = map(sum, (map(len, asked.prompts), (c.tokens for c in made), (j.cached for j in jobs)))
    return server.used(asked.served, read, written, cached)


async def streamed(server: Server, asked: Asked, jobs: list[Job]) -> AsyncGenerator[bytes, None]:
    """The chunks of texts as they come; the last one of each says why it ended."""
    body, made = asked.body, choices(asked)
    shared = head(server, body.model, "text_completion", "cmpl-")
    counts = bool(body.stream_options and body.stream_options.include_usage)
    nothing = {"usage": None} if counts else {}

    def chunk(own: Choice, text: str, finish: str | None = None) -> bytes:
        told = own.told.taken() if own.told is not None and own.told.tokens else None
        choice = {"index": own.index, "text": text, "logprobs": told, "finish_reason": finish}
        return event(shared | {"choices": [choice]} | nothing)

    try:
        begun: set[int] = set()
        async for number, one in merged(jobs):
            if number not in begun:
                begun.add(number)
                for choice in made[number * asked.choices : (number + 1) * asked.choices] if body.echo else ():
                    yield chunk(choice, choice.begin(jobs[number]))
            choice = made[number * asked.choices + one.choice]
            piece = choice.take(one)
            if piece or choice.finish or (choice.told is not None and choice.told.tokens):
                yield chunk(choice, piece, choice.finish)
        usage = used(server, asked, made, jobs)
        if counts:
            yield event(shared | {"choices": [], "usage": usage})
        yield DONE
    except Exception as error:
        yield event(problems.of(error).body)
