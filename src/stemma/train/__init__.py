"""Training: `pretrain` a family from scratch, `resume` a run that stopped, `verify_resume` to prove it exact.

Names load on first use: a plan is made without torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.train.config import Budget, Plan, Train, budget, overrides
    from stemma.train.evaluation import evaluate
    from stemma.train.loop import Diverged, Loop
    from stemma.train.plans import drafted, resolve
    from stemma.train.run import Run, pretrain, read_metrics, verify_resume
    from stemma.train.run import resume_run as resume
    from stemma.train.scale import SCALES, scaled

_WHERE = {
    "SCALES": "scale",
    "Budget": "config",
    "Diverged": "loop",
    "Loop": "loop",
    "Plan": "config",
    "Run": "run",
    "Train": "config",
    "budget": "config",
    "drafted": "plans",
    "evaluate": "evaluation",
    "overrides": "config",
    "pretrain": "run",
    "read_metrics": "run",
    "resolve": "plans",
    "resume": "run",
    "scaled": "scale",
    "verify_resume": "run",
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
    module = importlib.import_module(f"stemma.train.{_WHERE[name]}")
    return getattr(module, "resume_run" if name == "resume" else name)
