"""Counts of a server for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from stemma.serve.models import Models

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Engines(Collector):
    """How the engines stand when they are asked."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def collect(self) -> Iterator[Metric]:
        """A gauge for each figure, a line for each model."""
        words = {
            "running": "Texts that are being written",
            "waiting": "Requests that wait for a row",
        }
        for name, what in words.items():
            gauge = GaugeMetricFamily(f"stemma_requests_{name}", what, labels=["model"])
            for served in self.models.all():
                if served.engine is not None:
                    gauge.add_metric([served.name], getattr(served.engine.stats(), name))
            yield gauge


class Metrics:
    """The counts of one server."""

    def __init__(self, models: Models) -> None:
        own = self.registry = CollectorRegistry()
        own.register(Engines(models))
        self.requests = Counter("stemma_http_requests", "Requests", ["route", "status"], registry=own)
        self.open = Gauge("stemma_http_requests_open", "Requests that are being answered", registry=own)
        self.seconds = Histogram("stemma_http_seconds", "Time to the end of an answer", ["route"], registry=own)
        self.first = Histogram(
            "stemma_first_byte_seconds", "Time to the first byte of an answer", ["route"], registry=own, buckets=FIRST
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
