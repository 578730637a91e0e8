"""Requests in and out of one running batch, from any thread: an `Engine` decodes for all who ask, and a `Job` is what
one of them asked for."""

from __future__ import annotations

from stemma.engine.engine import Engine, Stats
from stemma.engine.jobs import Busy, Job

__all__ = ["Busy", "Engine", "Job", "Stats"]
