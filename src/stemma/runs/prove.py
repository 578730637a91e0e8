"""Proof that stopping and resuming a run changes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stemma.errors import VerifyError
from stemma.runs.trainer import Trainer


def prove(fresh: Callable[[], Trainer], steps: int) -> dict[str, Any]:
    """Take `steps` steps (at least 2) in one go, and in another place half of them, a checkpoint, everything anew, and
    the rest; losses, gradient norms and final weights must agree bit for bit. `fresh` makes a trainer at step 0.
    Returns the losses. Raises VerifyError naming the first step that differs."""
    half = steps // 2
    with tempfile.TemporaryDirectory(prefix="stemma-verify-") as name:
        whole = fresh()
        expected = [whole.advance() for _ in range(steps)]
        first = fresh()
        found = [first.advance() for _ in range(half)]
        place = first.save(Path(name))
        second = fresh()
        second.restore(place)
        found += [second.advance() for _ in range(steps - half)]
    for a, b in zip(expected, found, strict=True):
        if a != b:
            raise VerifyError(
                f"step {a['step']} differs after resuming: loss {b['loss']!r} instead of {a['loss']!r} (stopped after "
                f"step {half})"
            )
    kinds = ("the weights of {}", "the optimiser's or the mean's {}")
    for what, ours, theirs in zip(kinds, whole.tensors(), second.tensors(), strict=True):
        if wrong := [k for k in ours if k not in theirs or not torch.equal(ours[k], theirs[k])]:
            raise VerifyError(f"{what.format(wrong[0])} differ after resuming, though all losses agree")
    return {"steps": steps, "stopped_after": half, "losses": [r["loss"] for r in expected], "identical": True}
