"""The metrics of tasks, by the libraries that the field uses."""

from __future__ import annotations

from stemma.tasks.metrics import bootstrap, labels, numbers, spans, tags, texts

__all__ = ["bootstrap", "labels", "numbers", "spans", "tags", "texts"]
