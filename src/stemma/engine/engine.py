"""A thread that decodes for all who ask. Requests wait in a queue of bounded length, join the running batch where a row
is free, and leave it when their texts end or when nobody wants them any more."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stemma.decoding import SamplingParams, evaluating
from stemma.decoding.batch import Batch
from stemma.decoding.requests import requests
from stemma.engine.jobs import Busy, Job, cancelled
from stemma.errors import StemmaError, UsageError
from stemma.nn.model import Model


@dataclass(frozen=True)
class Stats:
    """How an engine stands: rows that are decoded, requests that wait, and tokens read and written since it began."""

    running: int
    waiting: int
    read: int
    written: int


class Engine:
    """Decoding of one model for any number of callers.

    `rows`: texts that are decoded at once; `queue`: requests that may wait for a row, beyond which `submit` raises
    `Busy`. The engine owns the model while it is open. Use it as a context manager, or `close` it.
    """

    def __init__(self, model: Model, *, rows: int = 32, queue: int = 256) -> None:
        if rows < 1 or queue < 1:
            raise UsageError(f"an engine has at least one row and one place in its queue, not {rows} and {queue}")
        self.model, self.rows, self.queue = model, rows, queue
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}  # by the index that events carry
        self._changed = threading.Condition()
        self._open = True
        self._next = self._read = self._written = 0
        self._thread = threading.Thread(target=self._run, name="stemma-engine", daemon=True)
        self._thread.start()

    def submit(self, prompt: str | Sequence[int], params: SamplingParams | None = None, **options: Any) -> Job:
        """Ask for the continuation of a prompt (text or token ids); `params` and `options` as of `generate`. Raises
        UsageError for what cannot be, and `Busy` where the queue is full."""
        (request,) = requests(self.model, [prompt], params, options)
        if request.beams.num_beams > 1:
            raise UsageError("an engine searches with no beams: num_beams must be 1")
        job = Job(request)
        with self._changed:
            if not self._open:
                raise UsageError("this engine is closed")
            if len(self._waiting) >= self.queue:
                raise Busy(f"{self.queue} requests are waiting already: ask again later", self._wait())
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def stats(self) -> Stats:
        """How the engine stands now."""
        with self._changed:
            return Stats(len(self._running), len(self._waiting), self._read, self._written)

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests and wait until those that are there have ended; with `drain=False`, or after `timeout`
        seconds, they are cancelled."""
        with self._changed:
            self._open = False
            if not drain:
                self._cancel_all()
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._changed:
                self._cancel_all()
            self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(drain=False)

    # ------------------------------------------------------------ the thread

    def _wait(self) -> float:
        """Seconds after which a place in the queue may be free."""
        return 1.0

    def _cancel_all(self) -> None:
        for job in (*self._waiting, *self._running.values()):
            job.cancelled = True

    def _run(self) -> None:
        batch = Batch(self.model, pieces=True)
        with torch.inference_mode(), evaluating(self.model):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._running or not self._open)
                    if not (self._waiting or self._running):
                        return
                try:
                    self._leave(batch)
                    self._join(batch)
                    if len(batch):
                        self._deliver(batch)
                except Exception as error:  # of the step: whoever waits is told, and the engine goes on
                    self._fail(error)
                    batch = Batch(self.model, pieces=True)

    def _leave(self, batch: Batch) -> None:
        """Jobs that were cancelled end."""
        with self._changed:
            gone = [(i, job) for i, job in self._running.items() if job.cancelled]
            waiting = [job for job in self._waiting if job.cancelled]
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
            for i, _ in gone:
                del self._running[i]
        batch.drop([i for i, _ in gone])
        for job in (*waiting, *(job for _, job in gone)):
            job.fail(cancelled())

    def _join(self, batch: Batch) -> None:
        """Jobs that wait take the rows that are free, each read by itself so that an error is its own."""
        while True:
            with self._changed:
                if not self._waiting or len(batch) >= self.rows:
                    return
                job, index = self._waiting.popleft(), self._next
                self._next += 1
                self._running[index] = job
            try:
                batch.add([(index, job.request)])
                self._read += len(job.prompt)
            except StemmaError as error:
                with self._changed:
                    del self._running[index]
                job.fail(error)

    def _deliver(self, batch: Batch) -> None:
        """One token for every row."""
        ended = []
        for event in batch.step():
            job = self._running.get(event.row)
            if job is None:  # another choice of it has failed
                continue
            self._written += event.error is None
            job.put(event)
            if job.done:
                ended.append(event.row)
                with self._changed:
                    del self._running[event.row]
        batch.drop(ended)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            jobs = list(self._running.values())
            self._running.clear()
        for job in jobs:
            job.fail(error)
