"""Policy gradients on answers that were sampled in groups: advantages, the clipped surrogate and its reduction, and the
divergence of distillation, as pure functions of tensors; `stemma.alignment` samples the answers."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.objectives.advantages import policy_losses

Baseline = Literal["group", "others", "batch", "none"]
Scale = Literal["group", "batch", "whiten", "none"]
Ratio = Literal["token", "sequence", "mean"]
Reduction = Literal["sequences", "tokens", "constant"]
EPSILON = 1e-4  # beside a standard deviation (GRPO's released code)


def group_advantages(rewards: Tensor, baseline: Baseline, scale: Scale) -> Tensor:
    """The advantage of each answer from rewards P S: S answers to each of P prompts.

    `baseline`: the mean of its group (GRPO: Shao et al. 2024, arXiv:2402.03300, section 4.1), the mean of the others in
    it (RLOO: Ahmadian et al. 2024, arXiv:2402.14740, eq. 7), the mean of the batch, or none.
    `scale`: what is left is divided by the standard deviation of the group's rewards or of the batch's, or, with
    `whiten`, gets the mean 0 and the standard deviation 1 over the batch (REINFORCE++: Hu 2025, arXiv:2501.03262). A
    standard deviation has n - 1 in its denominator; one of a single value is 0."""
    samples = rewards.shape[1]
    match baseline:
        case "group":
            found = rewards - rewards.mean(1, keepdim=True)
        case "others":
            found = (rewards - rewards.mean(1, keepdim=True)) * (samples / max(1, samples - 1))
        case "batch":
            found = rewards - rewards.mean()
        case _:
            found = rewards
    match scale:
        case "group":
            return found / (_deviation(rewards, 1) + EPSILON)
        case "batch":
            return found / (_deviation(rewards.flatten(), 0) + EPSILON)
        case "whiten":
            return (found - found.mean()) / (_deviation(found.flatten(), 0) + EPSILON)
    return found


def _deviation(values: Tensor, dim: int) -> Tensor:
    if values.shape[dim] < 2:
        return torch.zeros_like(values)
    return values.std(dim, keepdim=True)


def surrogate(
    logprobs: Tensor, old: Tensor, advantages: Tensor, rows: Tensor, clip: tuple[float, float], ratio: Ratio = "token"
) -> tuple[Tensor, Tensor]:
    """PPO's clipped loss of each token, to be minimised (Schulman et al. 2017, arXiv:1707.06347, eq. 7), and its
    probability ratio: N each.

    `advantages` and `rows` (the number of its answer) are given for each token. `clip`: below and above 1, which DAPO
    sets apart (Yu et al. 2025, arXiv:2503.14476, section 3.1). `ratio`: of each token; of the whole sequence (RLOO); or
    the geometric `mean` over the sequence (GSPO: Zheng et al. 2025, arXiv:2507.18071, eq. 7)."""
    log = logprobs - old
    if ratio != "token":
        log = _per_answer(log, rows, mean=ratio == "mean").index_select(0, rows)
    ratios = log.exp()
    return policy_losses(ratios, advantages, *clip), ratios


def _per_answer(values: Tensor, rows: Tensor, mean: bool) -> Tensor:
    """The sum or mean of the values (N) of each answer."""
    many = int(rows.max()) + 1 if len(rows) else 0
    total = values.new_zeros(many).index_add(0, rows, values)
    return total / lengths(rows, many).to(values.dtype) if mean else total


def lengths(rows: Tensor, many: int) -> Tensor:
    """The number of tokens of each of `many` answers, at least 1."""
    return torch.bincount(rows, minlength=many).clamp(min=1)


def token_weights(rows: Tensor, reduction: Reduction, longest: int) -> Tensor:
    """What each token counts (N). A loss is the sum of the weighted tokens over `reduced`.

    sequences: each answer counts as much (GRPO); tokens: each token does (DAPO, section 3.3); constant: each token
    counts 1 / `longest`, the most tokens of an answer (Dr. GRPO: Liu et al. 2025, arXiv:2503.20783, section 3.1)."""
    if reduction == "sequences":
        many = int(rows.max()) + 1 if len(rows) else 0
        return (1.0 / lengths(rows, many).float()).index_select(0, rows)
    return torch.full(rows.shape, 1.0 / longest if reduction == "constant" else 1.0, device=rows.device)


def overlong_penalty(length: Tensor, longest: int, soft: int) -> Tensor:
    """What an answer of `length` tokens loses: nothing up to `longest - soft`, then in proportion, 1 at `longest`
    (DAPO, section 3.4, eq. 13)."""
    return ((length - (longest - soft)).clamp(min=0) / max(1, soft)).clamp(max=1.0)


def jensen_shannon(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """The generalised Jensen-Shannon divergence of two distributions given by log-probabilities N V, for each token: N
    (GKD: Agarwal et al. 2024, arXiv:2306.13649, eq. 1). `beta` 0 is KL(teacher, student), 1 is KL(student, teacher)."""
    if beta == 0:
        return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    if beta == 1:
        return F.kl_div(teacher, student, reduction="none", log_target=True).sum(-1)
    share = torch.tensor(beta, dtype=student.dtype, device=student.device)
    both = torch.logaddexp(student + torch.log1p(-share), teacher + share.log())
    theirs = F.kl_div(both, teacher, reduction="none", log_target=True).sum(-1)
    own = F.kl_div(both, student, reduction="none", log_target=True).sum(-1)
    return beta * theirs + (1 - beta) * own
