"""Requests in and out of one running batch, from any thread: an `Engine` decodes for all who ask, and a `Job` is what
one of them asked for."""

from __future__ import annotations

from stemma.engine.engine import Engine
from stemma.engine.jobs import Busy, Closed, Expired, Job
from stemma.engine.meter import Stats

__all__ = ["Busy", "Closed", "Engine", "Expired", "Job", "Stats"]
