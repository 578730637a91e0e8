"""What the routes of a server share: its models, its settings and its counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from stemma import __version__
from stemma.decoding import SamplingParams
from stemma.engine import Job
from stemma.serve.metrics import Metrics
from stemma.serve.models import Models, Served
from stemma.serve.problems import bad
from stemma.serve.settings import Settings
from stemma.serve.store import Store

LOG = logging.getLogger("stemma.serve")


class Server:
    """One server."""

    fingerprint = f"stemma-{__version__}"

    def __init__(self, settings: Settings, models: Models | None = None) -> None:
        self.settings = settings
        self.models = models or Models(settings)
        self.metrics = Metrics(self.models)
        self.store = Store(settings.store)
        self.device = "cpu"  # where models go that are loaded by request
        self.feedback: Any = None  # what keeps feedback (`feedback.Feedback`), where it is kept

    def loaded(self, task: asyncio.Future[None]) -> None:
        """The models that were asked for are there, or an error is logged."""
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.error("a model could not be loaded", exc_info=error)

    def submit(self, served: Served, prompt: list[int], params: SamplingParams, adapter: str | None = None) -> Job:
        """Give a prompt to a model's engine. Raises Busy where its queue is full."""
        more: dict[str, Any] = {} if adapter is None else {"adapter": adapter}
        return served.writing().submit(prompt, params, **more)

    def submit_all(
        self, served: Served, prompts: Sequence[list[int]], params: Sequence[SamplingParams], adapter: str | None = None
    ) -> list[Job]:
        """Several prompts, all of them or none. Raises Problem for more than there ever is room for."""
        if len(prompts) > (most := served.rows + served.queue):
            raise bad(f"{len(prompts)} prompts are more than the {most} that may be written or wait here; send fewer")
        jobs: list[Job] = []
        try:
            for prompt, own in zip(prompts, params, strict=True):
                jobs.append(self.submit(served, prompt, own, adapter))
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
        return jobs

    def used(self, served: Served, read: int, written: int, cached: int = 0) -> dict[str, Any]:
        """The usage of a request, which is counted. `cached`: tokens of prompts that were not computed again."""
        self.metrics.tokens(served.name, read, written)
        return {
            "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": cached},
        }  # fmt: skip
