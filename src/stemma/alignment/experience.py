"""A step of sampled answers, and where a run of such steps stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from stemma.alignment.rollouts import Rollout

Facts = dict[str, Tensor]  # what is known of each token of an answer, by name


@dataclass(frozen=True)
class OnlineCursor:
    """Where a run stands: `slot`, the next prompt in their endless order; `text_slot` and `text_offset`, the place in
    the pretraining text; `coefficient` of the divergence, where it adapts (0: as it is set); `weak`: for how many steps
    there has been nothing to learn from."""

    slot: int = 0
    text_slot: int = 0
    text_offset: int = 0
    coefficient: float = 0.0
    weak: int = 0


@dataclass(frozen=True)
class ScoredRollout:
    """An answer, its reward, and the parts of that by name."""

    rollout: Rollout
    reward: float
    parts: Mapping[str, float]


def rollout_metrics(found: Sequence[ScoredRollout]) -> dict[str, float]:
    """Numbers of judged answers for a record."""
    rewards, rollouts = [one.reward for one in found], [one.rollout for one in found]
    names = found[0].parts
    metrics = {"reward": fmean(rewards), "reward_std": float(np.std(rewards))} if names else {}
    metrics |= {
        "length": fmean(len(one.ids) for one in rollouts),
        "finished": fmean(one.finished for one in rollouts),
        "distinct": len({one.ids for one in rollouts}) / len(rollouts),
    }
    if len(names) > 1:
        metrics |= {f"reward_{name}": fmean(one.parts[name] for one in found) for name in names}
    return metrics


@dataclass
class Experience:
    """The answers of a step: their `scores`, and of each token of each answer the `facts` by name, on the CPU.
    `metrics`: numbers for the step's record; `cursor`: of the next step. A method adds to all three."""

    step: int
    rollouts: list[Rollout]
    scores: Tensor
    cursor: OnlineCursor
    facts: list[Facts] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def padded(self, name: str) -> Tensor:
        """A fact of all answers, B T; 0 behind an answer's end."""
        return torch.nn.utils.rnn.pad_sequence([own[name] for own in self.facts], batch_first=True)

    def put(self, name: str, values: Tensor) -> None:
        """Add a fact of all answers, given as B T."""
        for own, row, one in zip(self.facts, values, self.rollouts, strict=True):
            own[name] = row[: len(one.ids)]
