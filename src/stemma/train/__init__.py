"""Training: `pretrain` a family from scratch, `resume` a run that stopped, `verify_resume` to prove it exact.

Names load on first use: a plan is made without torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.runs.metrics import read_metrics
    from stemma.runs.spikes import Diverged
    from stemma.train.config import Budget, Plan, Train, budget, overrides
    from stemma.train.evaluation import evaluate
    from stemma.train.loop import Loop
    from stemma.train.plans import drafted, resolve
    from stemma.train.run import Run, pretrain, verify_resume
    from stemma.train.run import resume_run as resume
    from stemma.train.scale import SCALES, scaled

_WHERE = {
    "SCALES": "train.scale",
    "Budget": "train.config",
    "Diverged": "runs.spikes",
    "Loop": "train.loop",
    "Plan": "train.config",
    "Run": "train.run",
    "Train": "train.config",
    "budget": "train.config",
    "drafted": "train.plans",
    "evaluate": "train.evaluation",
    "overrides": "train.config",
    "pretrain": "train.run",
    "read_metrics": "runs.metrics",
    "resolve": "train.plans",
    "resume": "train.run",
    "scaled": "train.scale",
    "verify_resume": "train.run",
}

__all__ = [
    "SCALES",
    "Budget",
    "Diverged",
    "Loop",
    "Plan",
    "Run",
    "Train",
    "budget",
    "drafted",
    "evaluate",
    "overrides",
    "pretrain",
    "read_metrics",
    "resolve",
    "resume",
    "scaled",
    "verify_resume",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'stemma.train' has no attribute {name!r}")
    module = importlib.import_module(f"stemma.{_WHERE[name]}")
    return getattr(module, "resume_run" if name == "resume" else name)
