"""GRPO and its kin: policy gradients on groups of sampled answers, without a value model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stemma.alignment import health, offline
from stemma.alignment.experience import Experience
from stemma.alignment.online import RunOnline
from stemma.alignment.rollouts import Rollout
from stemma.declare import alignment as declared
from stemma.nn.model import Model
from stemma.objectives import base, policy
from stemma.objectives.advantages import kl_estimate
from stemma.objectives.policy_gradient import group_advantages, overlong_penalty, surrogate, token_weights
from stemma.objectives.vocabulary import token_logprobs

if TYPE_CHECKING:
    from stemma.alignment.online import OnlineSource

ALIKE = 1e-8  # of the standard deviation of rewards that are equal


class RunGRPO(RunOnline, of=declared.GRPO):
    """The clipped policy gradient with advantages from groups; see the declaration."""

    spec: declared.GRPO

    @property
    def remembers(self) -> bool:
        return super().remembers or (self.spec.penalty == "reward" and bool(self.spec.kl))

    @property
    def tries(self) -> int:  # type: ignore[override]
        return self.spec.tries if self.spec.equal == "again" else 1

    def is_useless(self, rewards: Sequence[float]) -> bool:
        return self.spec.equal == "again" and bool(alike(torch.tensor(rewards)))

    def offline_answers(self, source: OnlineSource, slots: Sequence[int]) -> list[Rollout] | None:
        if not self.spec.offline:
            return None
        otherwise = "leave out objective.offline to sample answers, or set objective.samples"
        places = [source.order[slot][0] for slot in slots]
        many, most = self.spec.samples, self.spec.max_new_tokens
        return [one for place in places for one in offline.answers(source.prompts, place, many, most, otherwise)]

    # ------------------------------------------------------------ advantages

    def set_advantages(self, experience: Experience) -> None:
        spec = self.spec
        rewards = self.penalised(experience).view(-1, spec.samples)
        equal = alike(experience.scores.view(-1, spec.samples))
        found = group_advantages(rewards, spec.baseline, spec.scale)
        experience.metrics |= {"zero_variance": float(equal.float().mean()), "advantage": float(found.abs().mean())}
        for own, value in zip(experience.facts, found.flatten().tolist(), strict=True):
            own["advantages"] = torch.full_like(own["keep"], value)
        left = [
            (spec.equal == "keep" or not equal[i // spec.samples]) and (spec.cut == "keep" or one.finished)
            for i, one in enumerate(experience.rollouts)
        ]
        if any(left):  # else there is nothing to choose from: all are kept
            for own, stays in zip(experience.facts, left, strict=True):
                own["keep"] = own["keep"] * stays

    def penalised(self, experience: Experience) -> Tensor:
        """The scores of answers, less what they lose for their length and, with penalty=reward, for their divergence
        from the reference; fp64."""
        spec, found = self.spec, experience.scores.double()
        if spec.overlong:
            sizes = torch.tensor([len(one.ids) for one in experience.rollouts], dtype=torch.float64)
            found = found - overlong_penalty(sizes, spec.max_new_tokens, spec.overlong)
        if not spec.kl or spec.offline:  # answers of others say nothing of the divergence
            return found
        drawn = [
            own.get("old", torch.tensor(one.sampled))
            for own, one in zip(experience.facts, experience.rollouts, strict=True)
        ]
        gaps = [(a - own["reference"]).double() * own["keep"] for a, own in zip(drawn, experience.facts, strict=True)]
        each = torch.stack([gap.sum() for gap in gaps])
        health.check_divergence(spec.gates, experience, each)
        experience.metrics["kl"] = float(each.mean())
        return found - spec.kl * each if spec.penalty == "reward" else found

    # ------------------------------------------------------------ loss

    def counts(self, batch: base.Batch) -> dict[str, int]:
        kept = batch["keep"] > 0
        many = int(kept.sum()) if self.spec.reduction == "tokens" else len(batch["rows"][kept].unique())
        return {self.main: many} | ({"kl": many} if self.penalises else {})

    @property
    def penalises(self) -> bool:
        """Whether the divergence is a part of the loss."""
        return bool(self.spec.kl) and self.spec.penalty == "loss"

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        spec = self.spec
        hidden, kept = policy.states(model, batch), batch["keep"].nonzero().squeeze(1)
        some = {name: batch[name].index_select(0, kept) for name in ("targets", "advantages")}
        rows = batch["rows"].index_select(0, kept).unique(return_inverse=True)[1]
        new = token_logprobs(model, hidden.index_select(0, kept), some["targets"], spec.temperature)
        old = batch["old"].index_select(0, kept) if "old" in batch else new.detach()
        clip = (spec.clip, spec.clip if spec.clip_high is None else spec.clip_high)
        each, ratios = surrogate(new, old, some["advantages"], rows, clip, spec.ratio)
        weights = token_weights(rows, spec.reduction, spec.max_new_tokens)
        sums = {self.main: (each * weights).sum()}
        if self.penalises:
            reference = batch["reference"].index_select(0, kept)
            sums["kl"] = (kl_estimate(new, reference, "k3") * weights).sum()
        if "old" in batch and bool(batch["first"]):
            health.check_ratio(spec.gates, float((ratios.detach() - 1).abs().max()))
        told = {"entropy": -new.detach()}
        if "old" in batch:
            told = drift((new - old).detach(), ratios.detach(), some["advantages"], clip)
        metrics = {name: float(values.sum()) for name, values in told.items()}
        over = dict.fromkeys(metrics, float(len(kept)))
        return base.Loss(sums, self.counts(batch), metrics, {"kl": spec.kl}, over=over)


def alike(scores: Tensor) -> Tensor:
    """Whether the scores of a group are all equal (... S -> ...): none of its answers is better than another."""
    return scores.amax(-1) - scores.amin(-1) < ALIKE


def drift(log: Tensor, ratios: Tensor, advantages: Tensor, clip: tuple[float, float]) -> dict[str, Tensor]:
    """Of each token how far the policy has gone within a step: its ratio, whether the clip holds it back, and an
    estimate of the divergence from the policy before the step (k3)."""
    low, high = clip
    held = ((ratios > 1 + high) & (advantages > 0)) | ((ratios < 1 - low) & (advantages < 0))
    return {"ratio": ratios, "clipfrac": held.float(), "approx_kl": torch.expm1(log) - log}
