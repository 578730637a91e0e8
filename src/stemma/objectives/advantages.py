"""What policy gradients are made of, as pure functions: estimates of a divergence, rewards by token, advantages,
whitening, the clipped losses of PPO.

Everything is B T: a row an answer, `mask` 1 where a token of it counts, its end token included. Numbers outside of the
mask have no influence. PPO is that of Schulman et al. 2017 (arXiv:1707.06347); what it left open follows Ziegler et
al. 2019 (arXiv:1909.08593) and its released code, the base of InstructGPT (Ouyang et al. 2022, arXiv:2203.02155).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stemma.errors import UsageError

EPSILON = 1e-8  # added to a variance before its root is taken
Estimator = Literal["k1", "k2", "k3"]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of all that the mask keeps. Raises UsageError if it keeps nothing."""
    if not bool(mask.any()):
        raise UsageError("a mean over no tokens was asked for: every answer is empty")
    keep = mask.bool()
    return x.masked_fill(~keep, 0.0).sum() / keep.sum()


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """`(x - mean) / sqrt(variance + 1e-8)` over all that the mask keeps; the variance is the biased one. Without
    `shift_mean` the mean is added again, so that only the scale changes (rewards). 0 outside of the mask."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask)
    found = (x - mean) * torch.rsqrt(variance + EPSILON)
    return (found if shift_mean else found + mean).masked_fill(~mask.bool(), 0.0)


def kl_estimate(logprobs: Tensor, reference: Tensor, kind: Estimator = "k1") -> Tensor:
    """An estimate of KL(policy | reference) at each token that the policy sampled, from the log-probabilities that both
    give it (Schulman 2020, "Approximating KL Divergence"). With d = logprobs - reference: `k1` is d, without bias and
    of either sign; `k2` is d^2 / 2; `k3` is exp(-d) - 1 + d, without bias and never negative."""
    d = logprobs - reference
    match kind:
        case "k1":
            return d
        case "k2":
            return d.square() / 2
        case "k3":
            return torch.expm1(-d) + d


def last_places(mask: Tensor) -> Tensor:
    """The place of the last token that each row's mask keeps (B), wherever padding stands. Raises UsageError for a row
    without one."""
    keep = mask.bool()
    if not bool(keep.any(1).all()):
        raise UsageError(f"answer {int((~keep.any(1)).nonzero()[0])} is empty, and a score stands at its last token")
    return keep.shape[1] - 1 - keep.flip(1).int().argmax(1)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """The reward of each token: `-beta * kl`, and at the last one of a row its score (B) too. A positive `kl` is a
    penalty."""
    found = (-beta * kl).masked_fill(~mask.bool(), 0.0)
    return found.scatter_add(1, last_places(mask)[:, None], scores[:, None].to(found.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv:1506.02438, eq. 16):

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1}

    over the tokens that the mask keeps, in their order; the value after the last is 0. 0 outside of the mask. The
    returns are A + V."""
    keep = mask.bool()
    ahead, following = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    found = torch.zeros_like(values)
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following - values[:, t]
        here = keep[:, t]
        ahead = torch.where(here, delta + gamma * lam * ahead, ahead)
        following = torch.where(here, values[:, t], following)
        found[:, t] = torch.where(here, ahead, 0.0)
    return found


def adapted(beta: float, kl: float, target: float, rows: int, horizon: float = 10_000.0) -> float:
    """The coefficient of the divergence after `rows` answers whose mean divergence (nats an answer) was `kl`:
    `beta * (1 + clip(kl / target - 1, -0.2, 0.2) * rows / horizon)` (Ziegler et al. 2019, section 2.2)."""
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return beta * (1.0 + error * rows / horizon)


def policy_losses(ratio: Tensor, advantages: Tensor, low: float, high: float | None = None) -> Tensor:
    """PPO's loss of each token, `max(-A ratio, -A clip(ratio, 1 - low, 1 + high))`; left out, `high` is `low`."""
    clipped = ratio.clamp(1.0 - low, 1.0 + (low if high is None else high))
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def value_losses(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Half of the squared error of each value; with `clip` the larger one of the value and of the value that lies at
    most `clip` from the `old` one."""
    error = (values - returns).square()
    if clip is not None:
        near = torch.minimum(torch.maximum(values, old - clip), old + clip)
        error = torch.maximum(error, (near - returns).square())
    return 0.5 * error


def entropies(logits: Tensor) -> Tensor:
    """The entropy in nats of the distribution of each row of logits (... V)."""
    logprobs = logits.float().log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)
