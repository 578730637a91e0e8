"""A running mean of the weights (Polyak & Juditsky 1992), often a better model than the last step's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

SLOT = "average"  # how a checkpoint names it, beside the optimiser's slots


class Average:
    """After each update `mean = decay * mean + (1 - decay) * weights`; the first updates count more, by the warm-up
    `min(decay, (1 + n) / (10 + n))` of the reference implementations. Where a step of sampled answers has
    several updates, each counts, as in DeepSpeed-Chat and OpenRLHF; InstructGPT's paper does not say."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.own = {name: p.detach() for name, p in parameters.items()}
        self.mean = {name: p.clone() for name, p in self.own.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the mean with the weights as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.mean.values()), list(self.own.values()), 1.0 - decay)

    @contextlib.contextmanager
    def instead(self) -> Iterator[None]:
        """Within this, the model's weights are the mean."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their mean."""
        for name, p in self.own.items():
            held = p.clone()
            p.copy_(self.mean[name])
            self.mean[name].copy_(held)

    def state(self) -> dict[str, Tensor]:
        """The mean, as a checkpoint keeps it."""
        return {f"{name}:{SLOT}": t for name, t in self.mean.items()}

    def restore(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Restore the mean from a checkpoint's tensors, and remove it from them. `updates`: taken so far."""
        self.updates = updates
        for name, mean in self.mean.items():
            mean.copy_(tensors.pop(f"{name}:{SLOT}"))
