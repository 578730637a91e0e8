"""Activation checkpointing by path: modules that match a pattern drop their activations and recompute them in the
backward pass (Chen et al. 2016, arXiv:1604.06174). Applied from outside; model code does not know of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stemma.errors import UsageError


def recompute(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Wrap the modules of `model` whose path matches one of the `patterns`. Only the outermost match counts:
    `*.blocks.*` wraps each block and nothing inside. Returns the paths; raises UsageError for a pattern that matches
    none."""
    found: list[str] = []
    unused = set(patterns)
    for path, module in model.named_modules():
        hits = {p for p in patterns if path and fnmatchcase(path, p)}
        unused -= hits
        if hits and not any(path.startswith(f"{outer}.") for outer in found):
            module.forward = _wrapped(module.forward)
            found.append(path)
    if unused:
        near = [path for path, _ in model.named_modules() if path.count(".") == 2][:3]
        raise UsageError(
            f"train.recompute={sorted(unused)[0]!r} matches no module; the model has {', '.join(near)} and so on"
        )
    return found


def _wrapped(forward: Callable[..., Any]) -> Callable[..., Any]:
    again = partial(checkpoint, forward, use_reentrant=False)

    def run(*args: Any, **kwargs: Any) -> Any:
        return again(*args, **kwargs) if torch.is_grad_enabled() else forward(*args, **kwargs)

    return run
