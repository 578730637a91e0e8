"""Jobs of one kind in one running batch: their prompts are read in pieces beside it, then they join it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stemma.decoding import Event, Session
from stemma.decoding.batch import CHUNK, Batch, Report, read_with_logprobs
from stemma.decoding.chunked import ChunkedSession
from stemma.decoding.compiled import CompiledSteps
from stemma.engine.jobs import Job
from stemma.executor import Executor
from stemma.nn.model import Model
from stemma.nn.pool import PageRow, Pages
from stemma.rewrites.adapters import ByRow

SMALL = 64  # tokens up to which reading costs about as much as reading one: the weights are what takes the time


class Entry(NamedTuple):
    """A job by the number that its events carry, and its pages, if it has some."""

    number: int
    job: Job
    row: PageRow | None = None


@dataclass
class Reading:
    """Jobs whose prompts are read together. `session`: None until the first tokens are read; `aloud`: a job that asks
    for its prompt's log-probabilities, and its `report`."""

    entries: list[Entry]
    session: ChunkedSession | None = None
    aloud: bool = False
    report: Report | None = None

    def close(self, pages: Pages | None, whole: bool = True) -> None:
        """Give back what it holds."""
        if self.session is not None:
            self.session.close(whole)
        elif pages is not None:
            for entry in self.entries:
                if entry.row is not None:
                    pages.close(entry.row)


class Lane:
    """Rows that one kind of session decodes. `chunk`: tokens of prompts that are read between two steps; `pages`: of
    their keys and values, if they have pages."""

    def __init__(
        self, model: Model, kind: type[Session], chunk: int, pages: Pages | None = None, adapters: ByRow | None = None
    ) -> None:
        self.model, self.kind, self.chunk, self.pages = model, kind, chunk, pages
        self.adapters = adapters or ByRow(model)
        self._executors: dict[str | None, Executor | CompiledSteps | None] = {}  # by the adapter of all rows
        self.batch = Batch(model, pieces=True, kind=kind)
        self.readings: deque[Reading] = deque()

    @property
    def rows(self) -> int:
        """Jobs that are decoded."""
        return len(self.batch)

    @property
    def reading(self) -> int:
        """Jobs whose prompts are read."""
        return sum(len(reading.entries) for reading in self.readings)

    def __bool__(self) -> bool:
        return bool(self.batch or self.readings)

    def admit(self, number: int, job: Job) -> bool:
        """Begin with a job: with others that wait for their first token to be read, where that costs little. Returns
        False where the cache has no room for it now."""
        row, request = None, job.request
        if self.pages is not None:
            salt = b"" if request.adapter is None else request.adapter.encode() + b"+"
            share = request.prompt_logprobs is None  # else all of it is to be computed
            row = self.pages.open(job.prompt, request.rules.max_new_tokens, request.width, salt, share)
            if row is None:
                return False
        entry = Entry(number, job, row)
        if self.readings and self._together(self.readings[-1], entry):
            self.readings[-1].entries.append(entry)
        else:
            self.readings.append(Reading([entry], aloud=request.prompt_logprobs is not None))
        return True

    def _together(self, reading: Reading, new: Entry) -> bool:
        """Whether a job is read with others: not where one of them may read what the other leaves in its pages."""
        aloud = reading.aloud or new.job.request.prompt_logprobs is not None
        if aloud or reading.session is not None or any(entry.job.alone for entry in (*reading.entries, new)):
            return False
        begins = [entry.row.names[0] for entry in (*reading.entries, new) if entry.row and entry.row.names]
        if len(set(begins)) < len(begins):
            return False
        lengths = [len(entry.job.prompt) for entry in (*reading.entries, new)]
        padded = max(lengths) * len(lengths)
        return padded <= self.chunk and padded <= max(SMALL, 1.5 * sum(lengths))

    def read(self) -> tuple[int, Session | None]:
        """Read a chunk of the first reading, and put it behind the others. Returns how many tokens were read, and the
        session where all are: `join` is to follow. A reading that fails stays the first one."""
        reading = self.readings[0]
        asked = [entry.job.request for entry in reading.entries]
        self.adapters.choose([request.adapter for request in asked])
        prompts, room = [r.prompt for r in asked], [r.rules.max_new_tokens for r in asked]
        languages, starts = [r.language for r in asked], [r.start for r in asked if r.start is not None] or None
        if reading.aloud:
            room = [r.rules.max_new_tokens + len(r.prompt) - 1 for r in asked]
            session, reading.report = read_with_logprobs(
                lambda n: self._begun(reading, [p[:n] for p in prompts], room, languages), asked[0],
                min(CHUNK, self.chunk),
            )  # fmt: skip
            return sum(map(len, prompts)), session
        if not issubclass(self.kind, ChunkedSession):
            return sum(map(len, prompts)), self.kind(self.model, prompts, room, languages, starts)
        if reading.session is None:
            rows = [entry.row for entry in reading.entries if entry.row is not None]
            reading.session = self.kind.opened(self.model, prompts, room, languages, self.pages, rows)
            for entry in reading.entries:
                entry.job.cached = 0 if entry.row is None else entry.row.length
        opened, before = reading.session, reading.session.unread
        if opened.go_on(self.chunk):
            return before, opened
        self.readings.rotate(-1)
        return before - opened.unread, None

    def _begun(
        self, reading: Reading, prompts: list[list[int]], room: list[int], languages: list[int | None]
    ) -> Session:
        """A session that has read the beginnings of prompts."""
        if not issubclass(self.kind, ChunkedSession):
            return self.kind(self.model, prompts, room, languages)
        rows = [entry.row for entry in reading.entries if entry.row is not None]
        reading.session = session = self.kind.opened(self.model, prompts, room, languages, self.pages, rows)
        while not session.go_on(self.chunk):
            pass
        return session

    def join(self, session: Session) -> None:
        """The jobs of the first reading join the batch."""
        if self.batch.session is None:
            session.find_executor()
        reading = self.readings.popleft()
        for entry in reading.entries:
            entry.job.report = reading.report
        self.batch.join([(e.number, e.job.request) for e in reading.entries], session, reading.report)

    def read_tokens(self) -> None:
        """Read the tokens that were drawn."""
        self._choose()
        self.batch.read_tokens()

    def step(self) -> list[Event]:
        """A token for every row."""
        self._choose()
        return self.batch.step()

    def _choose(self) -> None:
        """Compute with the rows' adapters. An executor has one choice of them for all rows."""
        rows, session = [row.request.adapter for row in self.batch.rows], self.batch.session
        self.adapters.choose(rows)
        if session is None or not self.adapters.names:
            return
        if len(set(rows)) > 1:
            session.executor = None
        else:
            if rows[0] not in self._executors:
                session.find_executor()
                self._executors[rows[0]] = session.executor
            session.executor = self._executors[rows[0]]

    def fail(self) -> list[Entry]:
        """After the first reading failed: it ends. Returns its jobs."""
        failed = self.readings.popleft()
        failed.close(self.pages, whole=False)
        return failed.entries

    def reset(self) -> None:
        """After a step that cannot be tried again: all rows end."""
        if self.batch.session is not None:
            self.batch.session.close(whole=False)
        self.batch = Batch(self.model, pieces=True, kind=self.kind)

    def drop(self, indices: Sequence[int], whole: bool = True) -> None:
        """Jobs leave, wherever they are."""
        self.batch.drop(indices, whole)
        kept: list[Reading] = []
        for reading in self.readings:
            stay = [at for at, entry in enumerate(reading.entries) if entry.number not in indices]
            if not stay:
                reading.close(self.pages)
                continue
            if len(stay) < len(reading.entries):
                gone = [entry for entry in reading.entries if entry.number in indices]
                if reading.session is not None:
                    reading.session.keep(stay)
                else:
                    Reading(gone).close(self.pages)
                reading.entries = [reading.entries[at] for at in stay]
            kept.append(reading)
        self.readings = deque(kept)
