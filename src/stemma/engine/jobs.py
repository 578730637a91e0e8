"""What one caller asked of an engine, and what came of it so far."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError

from stemma.decoding import Event, Result, gathered
from stemma.decoding.batch import Report
from stemma.decoding.requests import GenerationRequest
from stemma.errors import StemmaError, UsageError


class Busy(StemmaError):
    """An engine whose queue is full. `retry_after`: seconds after which to ask again."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Closed(UsageError):
    """An engine that takes no more requests."""

    def __init__(self) -> None:
        super().__init__("this engine is closed")


class Expired(StemmaError, TimeoutError):
    """A job that did not end before its deadline."""


class Job:
    """One request of an engine. Iterate over it, plainly or with `async for`, for its events as they come; any number
    of readers may, and each gets all of them. An error of the engine is raised where the events end, and
    `CancelledError` where the job was cancelled."""

    def __init__(self, request: GenerationRequest, deadline: float | None = None) -> None:
        self.request = request
        self.created = time.monotonic()
        self.deadline = None if deadline is None else self.created + deadline
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self.done = False
        self.cancelled = False
        self.alone = False  # its prompt is read with no other
        self.left = request.width  # choices that go on
        self.cached = 0  # tokens of its prompt that were found in the cache: known before the first event
        self.report: Report | None = None  # on its prompt, where it asks for that: known before the first event
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], object]] = []

    @property
    def prompt(self) -> list[int]:
        """The prompt's token ids."""
        return self.request.prompt

    def cancel(self) -> None:
        """End it at once; its row leaves the batch before the next step. Without effect on a job that is done."""
        with self._changed:
            if not self.done:
                self.cancelled = True
        if self.cancelled:
            self.fail(CancelledError("the job was cancelled"))

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end; where there are several choices, of all of them. Raises TimeoutError after `timeout`
        seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"the text did not end in {timeout:g} seconds")
        self._raise()
        written = {e.choice: e.result for e in self.events if e.result is not None}
        return gathered(written, self.request.n)

    def __iter__(self) -> Iterator[Event]:
        at = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda at=at: self.done or len(self.events) > at)  # type: ignore[misc]
                new, done = self.events[at:], self.done
            yield from new
            at += len(new)
            if done:
                self._raise()
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop, more, at = asyncio.get_running_loop(), asyncio.Event(), 0

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(more.set)

        with self._changed:
            self._wakers.append(wake)
        try:
            while True:
                with self._changed:
                    more.clear()
                    new, done = self.events[at:], self.done
                for event in new:
                    yield event
                at += len(new)
                if done:
                    self._raise()
                    return
                if not new:
                    await more.wait()
        finally:
            with self._changed:
                self._wakers.remove(wake)

    # ------------------------------------------------------------ for the engine

    def put(self, event: Event) -> None:
        """A new event; the last one of the last choice ends the job. Without effect on a job that is done."""
        if event.error is not None:
            return self.fail(event.error)
        with self._changed:
            if self.done:
                return
            self.events.append(event)
            self.left -= event.reason is not None
            self.done = not self.left
            self._tell()

    def fail(self, error: BaseException) -> None:
        """The job ends without a result."""
        with self._changed:
            if not self.done:
                self.done, self.error = True, error
                self._tell()

    def _tell(self) -> None:
        self._changed.notify_all()
        for wake in self._wakers:
            wake()

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error
