"""Signs that a run which samples has lost its way, each of which stops it with a sentence (`declare.alignment.Gates`).

What a run learnt up to then is kept: the driver writes a checkpoint of the last whole step.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from stemma.alignment.experience import Experience
from stemma.declare.alignment import Gates
from stemma.errors import RewardError, VerifyError

NOISE = 0.05  # nats an answer by which a divergence may lie below 0, however small its standard error


class Unhealthy(RewardError):
    """A run that samples does no longer learn what it should."""


def check(gates: Gates, experience: Experience) -> None:
    """After sampling: enough answers end by themselves, rewards differ, answers differ. Raises Unhealthy when one of
    these has failed for `patience` steps in a row; the experience's cursor counts them."""
    found, many = experience.metrics, len(experience.rollouts)
    why = None
    if gates.finished is not None and found["finished"] < gates.finished:
        why = (
            f"{found['finished']:.1%} of the answers end by themselves, and objective.gates.finished="
            f"{gates.finished:g} were expected: raise objective.max_new_tokens, or begin from a model that has learnt "
            "to end its answers"
        )
    elif gates.spread is not None and many > 1 and found.get("reward_std", math.inf) <= gates.spread:
        why = (
            f"all {many} answers have the reward {found['reward']:.4g}, so there is nothing to learn from them: the "
            "task is solved or too hard, or the reward tells nothing apart (objective.gates.spread)"
        )
    elif gates.distinct is not None and many > 1 and found["distinct"] < gates.distinct:
        why = (
            f"of {many} answers {round(found['distinct'] * many)} are different: the policy has collapsed; raise "
            "objective.kl or lower recipe.lr (objective.gates.distinct)"
        )
    weak = experience.cursor.weak + 1 if why is not None else 0
    experience.cursor = replace(experience.cursor, weak=weak)
    if why is not None and weak >= gates.patience:
        raise Unhealthy(f"step {experience.step + 1}: {why}")


def check_divergence(gates: Gates, experience: Experience, each: Tensor) -> None:
    """`each`: the estimated divergence of every answer in nats. A mean that is negative beyond noise means that answers
    were not drawn from the distribution whose log-probabilities are compared; of one answer the noise is not known.
    Raises Unhealthy."""
    kl = float(each.mean())
    error = float(each.std(correction=0)) / math.sqrt(len(each))
    if gates.negative is not None and error > 0 and kl < -max(NOISE, gates.negative * error):
        raise Unhealthy(
            f"step {experience.step + 1}: the divergence from the reference is {kl:.3g} nats an answer, "
            f"{-kl / error:.1f} standard errors below 0: answers are drawn from another distribution than the "
            "policy's; leave out objective.top_k and top_p (objective.gates.negative)"
        )
    if gates.kl is not None and not kl <= gates.kl:
        raise Unhealthy(
            f"step {experience.step + 1}: the divergence from the reference is {kl:.4g} nats an answer, more than "
            f"objective.gates.kl={gates.kl:g}: raise objective.kl or lower recipe.lr"
        )


def check_gap(gates: Gates, step: int, gap: float) -> None:
    """`gap`: the mean distance between what sampling and learning say of a token. Raises Unhealthy."""
    if gates.gap is not None and not gap <= gates.gap:
        raise Unhealthy(
            f"step {step + 1}: the model that sampled and the one that learns are {gap:.3g} nats a token apart, more "
            f"than objective.gates.gap={gates.gap:g}: answers came from other weights, or from another distribution"
        )


def check_ratio(gates: Gates, worst: float) -> None:
    """`worst`: how far the ratio of a token is from 1 before the first update of a step. Raises VerifyError."""
    if gates.ratio is not None and not worst <= gates.ratio:
        raise VerifyError(
            f"the probability ratio of the policy to itself is off 1 by {worst:.3g} before any update, more than "
            f"objective.gates.ratio={gates.ratio:g}: old log-probabilities are not those of the policy that learns"
        )
