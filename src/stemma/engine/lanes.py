"""Jobs of one kind in one running batch: their prompts are read in pieces beside it, then they join it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from stemma.decoding import Session
from stemma.decoding.batch import Batch, Report, read_aloud
from stemma.decoding.chunked import ChunkedSession
from stemma.engine.jobs import Job
from stemma.nn.model import Model

SMALL = 64  # tokens up to which reading costs about as much as reading one: the weights are what takes the time
Entry = tuple[int, Job]  # a job by the index that its events carry


@dataclass
class Reading:
    """Jobs whose prompts are read together. `session`: None until the first tokens are read; `aloud`: a job that asks
    for its prompt's log-probabilities, and its `report`."""

    entries: list[Entry]
    session: ChunkedSession | None = None
    aloud: bool = False
    report: Report | None = None


class Lane:
    """Rows that one kind of session decodes. `chunk`: tokens of prompts that are read between two steps."""

    def __init__(self, model: Model, kind: type[Session], chunk: int) -> None:
        self.model, self.kind, self.chunk = model, kind, chunk
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

    def admit(self, index: int, job: Job) -> None:
        """Begin with a job: with others that wait for their first token to be read, where that costs little."""
        aloud = job.request.prompt_logprobs is not None
        if self.readings and self.readings[-1].session is None and not (aloud or self.readings[-1].aloud):
            entries = self.readings[-1].entries
            lengths = [len(job.prompt), *(len(other.prompt) for _, other in entries)]
            padded = max(lengths) * len(lengths)
            if padded <= self.chunk and padded <= max(SMALL, 1.5 * sum(lengths)):
                entries.append((index, job))
                return
        self.readings.append(Reading([(index, job)], aloud=aloud))

    def read(self) -> tuple[int, Session | None]:
        """Read a chunk of the first reading, and put it behind the others. Returns how many tokens were read, and the
        session where all are: `join` is to follow. A reading that fails stays the first one."""
        reading = self.readings[0]
        asked = [job.request for _, job in reading.entries]
        prompts, room = [r.prompt for r in asked], [r.rules.max_new_tokens for r in asked]
        languages, starts = [r.language for r in asked], [r.start for r in asked if r.start is not None] or None
        if reading.aloud:
            room = [r.rules.max_new_tokens + len(r.prompt) - 1 for r in asked]
            session, reading.report = read_aloud(
                lambda n: self.kind(self.model, [p[:n] for p in prompts], room, languages), asked[0]
            )
            return sum(map(len, prompts)), session
        if not issubclass(self.kind, ChunkedSession):
            return sum(map(len, prompts)), self.kind(self.model, prompts, room, languages, starts)
        if reading.session is None:
            reading.session = self.kind.opened(self.model, prompts, room, languages)
        opened, before = reading.session, reading.session.unread
        if opened.go_on(self.chunk):
            return before, opened
        self.readings.rotate(-1)
        return before - opened.unread, None

    def join(self, session: Session) -> None:
        """The jobs of the first reading join the batch."""
        reading = self.readings.popleft()
        self.batch.join([(index, job.request) for index, job in reading.entries], session, reading.report)

    def split(self) -> Reading:
        """After the first reading failed: its jobs are read one by one. Returns it; a reading of one job is gone."""
        failed = self.readings.popleft()
        if failed.session is not None:
            failed.session.close()
        if len(failed.entries) > 1:
            self.readings.extendleft(Reading([entry], aloud=failed.aloud) for entry in reversed(failed.entries))
        return failed

    def drop(self, indices: Sequence[int], whole: bool = True) -> None:
        """Jobs leave, wherever they are."""
        self.batch.drop(indices, whole)
        kept: list[Reading] = []
        for reading in self.readings:
            stay = [at for at, (index, _) in enumerate(reading.entries) if index not in indices]
            if len(stay) == len(reading.entries):
                kept.append(reading)
            elif stay:
                reading.entries = [reading.entries[at] for at in stay]
                if reading.session is not None:
                    reading.session.keep(stay)
                kept.append(reading)
            elif reading.session is not None:
                reading.session.close()
        self.readings = deque(kept)
