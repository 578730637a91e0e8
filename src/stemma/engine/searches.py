"""Jobs that search with beams, each with a session of its own: they go on in turns, one step at a time."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from stemma.decoding import Event, beams
from stemma.decoding.generation import beam_result
from stemma.engine.jobs import Job
from stemma.nn.model import Model
from stemma.rewrites.adapters import ByRow


class Searches:
    """The searches of an engine, by the number of their jobs."""

    def __init__(self, model: Model, adapters: ByRow) -> None:
        self.model, self.adapters = model, adapters
        self.going: dict[int, tuple[Job, Generator[None, None, list[list[beams.Beam]]]]] = {}

    def admit(self, number: int, job: Job) -> None:
        """Begin with a job."""
        self.going[number] = job, beams.steps(self.model, [job.request])

    def step(self, number: int) -> list[Event] | None:
        """One step of a search. Returns the events of its texts when it has ended."""
        job, going = self.going[number]
        self.adapters.choose([job.request.adapter])
        try:
            next(going)
        except StopIteration as end:
            (found,) = end.value
            return [self._event(number, job, choice, beam) for choice, beam in enumerate(found)]
        return None

    def _event(self, number: int, job: Job, choice: int, beam: beams.Beam) -> Event:
        result = beam_result(self.model, job.request, beam)
        return Event(number, beam.ids[-1], beam.logprobs[-1], result.text or "", result.reason, result, choice)

    def drop(self, numbers: Sequence[int]) -> None:
        """Jobs leave."""
        for number in numbers:
            if number in self.going:
                self.going.pop(number)[1].close()
