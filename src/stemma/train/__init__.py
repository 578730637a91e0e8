"""Training: `pretrain` a family from scratch, `resume` a run that stopped, `verify_resume` to prove it exact."""

from stemma.train.config import Budget, Plan, Train, budget, overrides
from stemma.train.evaluate import evaluate
from stemma.train.loop import Diverged, Loop
from stemma.train.run import Run, pretrain, read_metrics, resolve, verify_resume
from stemma.train.run import resume_run as resume
from stemma.train.scale import SCALES, scaled

__all__ = [
    "SCALES",
    "Budget",
    "Diverged",
    "Loop",
    "Plan",
    "Run",
    "Train",
    "budget",
    "evaluate",
    "overrides",
    "pretrain",
    "read_metrics",
    "resolve",
    "resume",
    "scaled",
    "verify_resume",
]
