"""Counts of a server for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from stemma.engine import Stats
from stemma.serve.models import Models

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

NOW = {
    "running": "Requests whose texts are being written",
    "reading": "Requests whose prompts are being read",
    "waiting": "Requests that wait for a row",
}
SINCE = {
    "read": "Tokens of prompts that were read",
    "written": "Tokens that were written",
    "ended": "Requests that ended with a text",
    "failed": "Requests that ended with an error",
    "cancelled": "Requests that nobody wanted any more",
    "steps": "Steps of decoding",
    "step_seconds": "Seconds of steps of decoding",
    "pieces": "Pieces of prompts that were read",
    "piece_seconds": "Seconds of reading prompts",
}


class Engines(Collector):
    """How the engines stand when they are asked."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def collect(self) -> Iterator[Metric]:
        """A figure each, a line for each model."""
        for name, what in NOW.items():
            gauge = GaugeMetricFamily(f"stemma_requests_{name}", what, labels=["model"])
            for served, stats in self._stats():
                gauge.add_metric([served], getattr(stats, name))
            yield gauge
        for name, what in SINCE.items():
            counter = CounterMetricFamily(f"stemma_engine_{name}", what, labels=["model"])
            for served, stats in self._stats():
                counter.add_metric([served], getattr(stats, name))
            yield counter

    def _stats(self) -> Iterator[tuple[str, Stats]]:
        for served in self.models.all():
            if served.engine is not None:
                yield served.name, served.engine.stats()


class Metrics:
    """The counts of one server."""

    def __init__(self, models: Models) -> None:
        own = self.registry = CollectorRegistry()
        own.register(Engines(models))
        self.requests = Counter("stemma_http_requests", "Requests", ["route", "status"], registry=own)
        self.open = Gauge("stemma_http_requests_open", "Requests that are being answered", registry=own)
        self.seconds = Histogram("stemma_http_seconds", "Time to the end of an answer", ["route"], registry=own)
        self.first = Histogram(
            "stemma_first_part_seconds", "Time to the first text of an answer", ["route"], registry=own, buckets=FIRST
        )
        self.read = Counter("stemma_prompt_tokens", "Tokens of prompts", ["model"], registry=own)
        self.written = Counter("stemma_completion_tokens", "Tokens written", ["model"], registry=own)

    def tokens(self, model: str, read: int, written: int) -> None:
        """Count the tokens of a request."""
        self.read.labels(model).inc(read)
        self.written.labels(model).inc(written)

    @property
    def text(self) -> bytes:
        """All counts as Prometheus reads them."""
        return generate_latest(self.registry)
