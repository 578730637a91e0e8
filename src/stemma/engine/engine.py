"""A thread that decodes for all who ask. Requests wait in a queue of bounded length, join the running batch where a row
is free, and leave it when their texts end or when nobody wants them any more."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import torch

from stemma import executor
from stemma.decoding import Event, SamplingParams, Session, evaluating
from stemma.decoding.chunked import ChunkedSession, paged
from stemma.decoding.generation import check_beams
from stemma.decoding.layout import lay_out
from stemma.decoding.requests import GenerationRequest, requests
from stemma.decoding.sessions import check, running_kind
from stemma.engine.jobs import Busy, Closed, Expired, Job
from stemma.engine.lanes import Entry, Lane
from stemma.engine.meter import Meter, Stats
from stemma.engine.searches import Searches
from stemma.errors import NotFinite, StemmaError, UsageError
from stemma.nn.model import Model
from stemma.rewrites.adapters import ByRow

log = logging.getLogger(__name__)
T = TypeVar("T")
KV = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class Engine:
    """Decoding of one model for any number of callers.

    `rows`: texts that are decoded at once; `queue`: requests that may wait for a row, beyond which `submit` raises
    `Busy`; `chunk`: tokens of prompts that are read between two steps; `tokens`: what the cache has room for, of all
    texts together and of prompts that it keeps (for each row as many as the model's context, in at most 4 GiB, or half
    of the free memory of an accelerator); `kv`: what keys and values are kept in, `f32`, `bf16` or `f16` (as the model
    computes them), for caches with pages. The engine owns the model while it is open. Use it as a context manager, or
    `close` it.
    """

    def __init__(
        self,
        model: Model,
        *,
        rows: int = 32,
        queue: int = 256,
        chunk: int = 512,
        tokens: int | None = None,
        kv: str | None = None,
    ) -> None:
        if rows < 1 or queue < 1 or chunk < 1:
            raise UsageError(
                f"an engine has at least one row, one place in its queue and chunks of one token, not rows={rows}, "
                f"queue={queue}, chunk={chunk}"
            )
        self.model, self.rows, self.queue, self.chunk = model, rows, queue, chunk
        self.tokens = tokens
        if kv is not None and kv not in KV:
            raise UsageError(f"kv={kv!r} is none of {', '.join(KV)}")
        self.pages = paged(model, rows, chunk, tokens, None if kv is None else KV[kv])
        if kv is not None and self.pages is None:
            raise UsageError(
                f"kv={kv} is for keys and values in pages, and the cache of {model.name or 'this model'} has none: "
                "leave it out"
            )
        self.adapters = ByRow(model)
        self._waiting: deque[Job] = deque()
        self._inside: dict[int, Job] = {}  # that are read or decoded, by the index that events carry
        self._searches = Searches(model, self.adapters)
        self._calls: deque[tuple[Callable[[], None], str | None, Future[Any]]] = deque()
        self._lanes: dict[tuple[type[Session], bool, str | None], Lane] = {}
        self._changed = threading.Condition()
        self._open = True
        self._next = self._reading = 0
        self._meter = Meter()
        self._thread = threading.Thread(target=self._run, name="stemma-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        deadline: float | None = None,
        **options: Any,
    ) -> Job:
        """Ask for the continuation of a prompt (text or token ids); `params` and `options` as of `generate`.
        `adapter`: the name of the model's adapter to write with, "" for none of them; left out, those that took part
        when the engine began. A job that has not ended `deadline` seconds from now ends with `Expired`. Raises
        UsageError for what cannot be, and `Busy` where the queue is full."""
        if deadline is not None and deadline <= 0:
            raise UsageError(f"deadline must be more than 0 seconds, not {deadline:g}")
        (request,) = requests(self.model, [prompt], params, options)
        self.adapters.check(adapter)
        request = replace(request, adapter=adapter)
        if request.beams.num_beams > 1:
            check_beams([request], False, options.get("num_beams") is None and (params is None or not params.num_beams))
        if request.penalty_alpha:
            raise UsageError("an engine has no contrastive search: penalty_alpha must be 0")
        check(self.model, request)
        if self.pages is not None and _rows_have_pages(self.model, request):
            self.pages.check(len(request.prompt), request.rules.max_new_tokens, request.width)
        job = Job(request, deadline)
        with self._changed:
            if not self._open:
                raise Closed
            if len(self._waiting) >= self.queue:
                raise Busy(f"{self.queue} requests are waiting already: ask again later", self._wait())
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def call(self, work: Callable[[], T], adapter: str | None = None) -> Future[T]:
        """What `work()` returns or raises, called between two steps, when nothing else computes with the model;
        `adapter` as of `submit`. Raises UsageError where that is none."""
        self.adapters.check(adapter)
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        with self._changed:
            if not self._open:
                raise Closed
            self._calls.append((run, adapter, future))
            self._changed.notify_all()
        return future

    def stats(self) -> Stats:
        """How the engine stands now."""
        with self._changed:
            return self._meter.stats(len(self._inside) - self._reading, self._reading, len(self._waiting), self.pages)

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests and wait until those that are there have ended; with `drain=False`, or after `timeout`
        seconds, they are cancelled."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        if not drain:
            self.cancel_all()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self.cancel_all()
            self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(drain=False)

    def _wait(self) -> float:
        """Seconds after which a place in the queue may be free."""
        jobs = self._inside.values()
        return self._meter.wait(min((j.request.rules.max_new_tokens - len(j.events) for j in jobs), default=1))

    def cancel_all(self) -> None:
        """Cancel every job that is here now."""
        with self._changed:
            jobs = [*self._waiting, *self._inside.values()]
        for job in jobs:
            job.cancel()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        error: BaseException = Closed()
        try:
            with torch.inference_mode(), evaluating(self.model):
                if isinstance(executor.of(self.model), executor.Reason):
                    lay_out(self.model, self.rows)
                while self._work():
                    self._call()
                    self._leave()
                    self._admit()
                    self._decode()
                    self._search()
        except BaseException as failure:
            error = failure
            log.exception("the engine stopped")
        self.adapters.reset()
        with self._changed:
            self._open = False
            jobs = [*self._waiting, *self._inside.values()]
            futures = [future for _, _, future in self._calls]
        for job in jobs:
            job.fail(error)
        for future in futures:
            future.cancel()

    def _decode(self) -> None:
        """A piece of a prompt and a step of every lane. After an error outside of these, between two of them, what the
        caches hold is unknown: all jobs that were in them end, and later ones begin with new caches."""
        try:
            for lane in list(self._lanes.values()):
                self._read(lane)
                self._step(lane)
        except Exception as error:
            self._lanes.clear()
            self.pages = paged(self.model, self.rows, self.chunk, self.tokens)
            self._fail({i: job for i, job in self._inside.items() if i not in self._searches.going}, error)

    def _work(self) -> bool:
        """Wait for something to do. Returns False where nothing will come any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._inside or self._calls or not self._open)
            return bool(self._waiting or self._inside or self._calls)

    def _call(self) -> None:
        """One of the calls that wait."""
        with self._changed:
            if not self._calls:
                return
            run, adapter, future = self._calls.popleft()
        if future.set_running_or_notify_cancel():
            self.adapters.choose([adapter])
            run()

    def _leave(self) -> None:
        """Jobs that were cancelled, or did not end in time, leave."""
        now = time.monotonic()
        with self._changed:
            jobs = [*self._waiting, *self._inside.values()]
        for job in jobs:
            if job.deadline is not None and job.deadline <= now:
                job.fail(Expired(f"the text did not end in {job.deadline - job.created:g} seconds"))
        with self._changed:
            gone = [job for job in self._waiting if job.done]
            self._waiting = deque(job for job in self._waiting if not job.done)
            inside = [index for index, job in self._inside.items() if job.done]
        self._meter.cancelled += len(gone) + len(inside)
        if inside:
            for lane in self._lanes.values():
                lane.drop(inside)
            self._searches.drop(inside)
            self._forget(inside)

    def _admit(self) -> None:
        """Jobs that wait take the rows that are free, in their order. One of more texts than rows has them all."""
        while True:
            with self._changed:
                inside = sum(map(_rows, self._inside.values()))
                if not self._waiting or (inside and inside + _rows(self._waiting[0]) > self.rows):
                    return
                job, index = self._waiting.popleft(), self._next
                if job.request.beams.num_beams > 1:
                    self._searches.admit(self._next, job)
                elif not self._lane(job).admit(index, job):
                    self._waiting.appendleft(job)
                    return
                self._next += 1
                self._inside[index] = job
                self._count()

    def _lane(self, job: Job) -> Lane:
        """Where a job is decoded. Rows with a language do not mix with rows without one."""
        request = job.request
        kind = running_kind(self.model, request)
        key = kind, request.language is not None, None if self.adapters.mixes else request.adapter
        if key not in self._lanes:
            pages = self.pages if issubclass(kind, ChunkedSession) else None
            self._lanes[key] = Lane(self.model, kind, self.chunk, pages, self.adapters)
        return self._lanes[key]

    def _read(self, lane: Lane) -> None:
        """Read a chunk of a prompt. An error is that of its job alone: of several, each is then read by itself."""
        if not lane.readings:
            return
        begun = time.monotonic()
        try:
            tokens, session = lane.read()
        except Exception as error:
            self._failed_to_read(lane.fail(), error)
            return
        self._meter.pieced(time.monotonic() - begun, tokens)
        if session is not None:
            self._guard(lane, lane.read_tokens)
            lane.join(session)
            self._forget(())

    def _failed_to_read(self, entries: Sequence[Entry], error: Exception) -> None:
        """One job ends with an error; several are to be read again, each by itself."""
        if len(entries) == 1:
            self._fail({entries[0].number: entries[0].job}, error)
            return
        with self._changed:
            for index, job, _ in reversed(entries):
                job.alone = True
                del self._inside[index]
                self._waiting.appendleft(job)
            self._count()

    def _step(self, lane: Lane) -> None:
        """One token for every row of a lane."""
        if not lane.batch:
            return
        begun = time.monotonic()
        events = self._guard(lane, lane.step) or []
        self._meter.stepped(time.monotonic() - begun, sum(event.error is None for event in events))
        jobs = [self._inside[event.row] for event in events]
        ends = Counter(event.row for event in events if event.reason is not None)
        failed = {event.row for event in events if event.error is not None}
        ended = [index for index, n in ends.items() if index in failed or self._inside[index].left == n]
        self._meter.failed += len(failed)
        self._meter.ended += len(ended) - len(failed)
        lane.drop(ended)
        self._forget(ended)
        for job, event in zip(jobs, events, strict=True):
            job.put(event)

    def _search(self) -> None:
        """One step of every search with beams."""
        for number, (job, _) in list(self._searches.going.items()):
            try:
                events = self._searches.step(number)
            except Exception as error:
                self._searches.drop([number])
                self._fail({number: job}, error)
                continue
            if events is not None:
                self._searches.drop([number])
                self._meter.ended += 1
                self._meter.written += sum(len(event.result.ids) for event in events if event.result is not None)
                self._forget([number])
                for event in events:
                    job.put(event)

    def _guard(self, lane: Lane, work: Callable[[], list[Event] | None]) -> list[Event] | None:
        """Do a piece of work on a lane's batch. A row whose logits are not finite ends alone. After any other error
        the newest job ends and the others go on, if the step may be tried again; else what the batch holds is unknown,
        and all its jobs end."""
        try:
            return work()
        except Exception as error:
            every = [row.index for row in lane.batch.rows]
            again = isinstance(error, NotFinite) or lane.batch.tokens is not None
            bad = {every[i] for i in error.rows} if isinstance(error, NotFinite) else {every[-1]} if again else {*every}
            if again:
                lane.drop(list(bad), whole=False)
            else:
                lane.reset()
            self._fail({index: self._inside[index] for index in bad}, error)
        return None

    def _fail(self, jobs: dict[int, Job], error: Exception) -> None:
        """Jobs end with an error."""
        unforeseen = None if isinstance(error, StemmaError) and not isinstance(error, NotFinite) else error
        log.log(logging.INFO if unforeseen is None else logging.ERROR, "%d jobs failed: %s", len(jobs), error,
                exc_info=unforeseen)  # fmt: skip
        self._meter.failed += len(jobs)
        self._forget(jobs)
        for job in jobs.values():
            job.fail(error)

    def _forget(self, indices: Iterable[int]) -> None:
        """Jobs have left their rows."""
        with self._changed:
            for index in indices:
                del self._inside[index]
                self._meter.left()
            self._count()

    def _count(self) -> None:
        self._reading = sum(lane.reading for lane in self._lanes.values())


def _rows(job: Job) -> int:
    """The rows that a job takes."""
    return max(job.request.width, job.request.beams.num_beams)


def _rows_have_pages(model: Model, request: GenerationRequest) -> bool:
    return request.beams.num_beams == 1 and issubclass(running_kind(model, request), ChunkedSession)
