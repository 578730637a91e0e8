"""Events of server-sent streams, and what happens when a client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stemma.decoding import Event
from stemma.engine import Job

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


def event(body: Any, name: str = "") -> bytes:
    """One event with JSON as its data."""
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return (f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n").encode()


async def merged(jobs: Sequence[Job]) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of several jobs as they come, each with the job's number. The jobs are cancelled when nobody asks for
    more."""
    tasks: list[asyncio.Task[None]] = []
    try:
        if len(jobs) == 1:
            async for one in jobs[0]:
                yield 0, one
            return
        queue: asyncio.Queue[tuple[int, Event] | BaseException | None] = asyncio.Queue()

        async def read(number: int) -> None:
            try:
                async for one in jobs[number]:
                    queue.put_nowait((number, one))
                queue.put_nowait(None)
            except Exception as error:
                queue.put_nowait(error)

        tasks = [asyncio.ensure_future(read(number)) for number in range(len(jobs))]
        for _ in jobs:
            while (found := await queue.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                yield found
    finally:
        for task in tasks:
            task.cancel()
        for job in jobs:
            job.cancel()


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T | None:
    """What `work` returns; None, with the work cancelled, where the client leaves before that. The body was read."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await _cancelled(task, gone)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(*tasks: asyncio.Task[Any] | asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(Response):
    """A stream of events, with a comment where nothing comes for `keep_alive` seconds. `jobs` are cancelled when it
    ends, also where the client leaves before its first event."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], jobs: Sequence[Job], keep_alive: float) -> None:
        self.events, self.jobs, self.keep_alive = events, jobs, keep_alive
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.sent, self.open = 0.0, True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the events end or the client leaves."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        work, gone = asyncio.ensure_future(self._send(send)), asyncio.ensure_future(_left(receive))
        alive = asyncio.ensure_future(self._alive(send))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.open = False
            for job in self.jobs:
                job.cancel()
            await _cancelled(work, gone, alive)

    async def _send(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        with contextlib.suppress(OSError):  # the client left
            async for part in self.events:
                self.sent = clock()
                await send({"type": "http.response.body", "body": part, "more_body": True})
            self.open = False
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _alive(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        with contextlib.suppress(OSError):
            while self.open:
                await asyncio.sleep(max(0.01, self.sent + self.keep_alive - clock() if self.sent else self.keep_alive))
                if self.open and clock() - self.sent >= self.keep_alive:
                    self.sent = clock()
                    await send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})
