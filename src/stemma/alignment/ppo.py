"""Proximal policy optimisation as in InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, appendix C.4), which follows
Ziegler et al. 2019 (arXiv:1909.08593) and its released code; with pretraining gradients, PPO-ptx."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma.alignment import health
from stemma.alignment.experience import Experience, Facts
from stemma.alignment.online import RunOnline
from stemma.alignment.pretraining import PretrainingText
from stemma.declare import alignment as declared
from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.objectives import advantages as adv
from stemma.objectives import base, policy
from stemma.objectives.vocabulary import token_logprobs

VALUE = "value"  # the role of the value model


class RunPPO(RunOnline, of=declared.PPO):
    """Advantages by a value model that learns beside the policy; clipped losses, each a mean over the chosen tokens of
    an update."""

    spec: declared.PPO
    remembers = True  # the divergence is part of the reward
    text: PretrainingText | None = None

    def source(self, plan: Any, view: Any, folder: Path | None) -> Any:
        if self.spec.ptx:
            self.text = PretrainingText(plan, self.setting, self.spec.ptx, folder)
        return super().source(plan, view, folder)

    # ------------------------------------------------------------ what is known before the updates

    def token_facts(self, model: Model, batch: base.Batch, nets: base.Nets) -> Facts:
        if VALUE not in nets:
            raise UsageError("PPO needs a value model: name the weights that it begins from (objective.value=FOLDER)")
        return {"values": policy.values(nets[VALUE], batch)}

    def set_advantages(self, experience: Experience) -> None:
        own, mask = self.spec, experience.padded("keep")
        values = experience.padded("values")
        coefficient = experience.cursor.coefficient or own.kl
        kl = torch.zeros_like(values)
        if own.kl:
            kl = adv.kl_estimate(experience.padded("old"), experience.padded("reference")).masked_fill(mask == 0, 0.0)
            self.divergence(experience, kl.sum(1), coefficient)
        rewards = adv.token_rewards(experience.scores, kl, mask, coefficient)
        if own.whiten_rewards:
            rewards = adv.whiten(rewards, mask, shift_mean=False)
        found = adv.gae(rewards, values, mask, own.gamma, own.lam)
        returns = found + values * mask
        experience.metrics |= {
            "advantage": float(adv.masked_mean(found, mask)),
            "return": float(adv.masked_mean(returns, mask)),
            "value": float(adv.masked_mean(values, mask)),
        }
        experience.put("returns", returns)
        experience.put("advantages", adv.whiten(found, mask) if own.whiten == "step" else found)

    def divergence(self, experience: Experience, each: Tensor, coefficient: float) -> None:
        """Record the divergence that is penalised (`each`: nats of every answer), stop where it cannot be, and adapt
        its coefficient."""
        health.check_divergence(self.spec.gates, experience, each)
        kl = float(each.mean())
        experience.metrics |= {"kl": kl, "kl_coefficient": coefficient}
        if self.spec.kl_target is not None:
            adapted = adv.adapted(coefficient, kl, self.spec.kl_target, len(each), self.spec.kl_horizon)
            experience.cursor = replace(experience.cursor, coefficient=adapted)

    def facts_of(self, experience: Experience, chosen: Sequence[int]) -> list[Facts]:
        found = super().facts_of(experience, chosen)
        if self.spec.whiten != "update":
            return found
        together = torch.cat([own["advantages"] for own in found])
        keep = torch.cat([own["keep"] for own in found])
        parts = adv.whiten(together, keep).split([len(own["keep"]) for own in found])
        return [own | {"advantages": part} for own, part in zip(found, parts, strict=True)]

    def extra_batches(self, experience: Experience, update: int, rows: int) -> list[base.Batch]:
        if self.text is None or not self.spec.ptx_weight:
            return []
        batches, experience.cursor = self.text.batches(experience.cursor, max(1, round(rows * self.spec.ptx_rows)))
        return batches

    def quality(self, model: Model, autocast: Any) -> dict[str, float]:
        return {} if self.text is None else {"pretraining_loss": self.text.evaluate(model, autocast)}

    # ------------------------------------------------------------ loss

    def counts(self, batch: base.Batch) -> dict[str, int]:
        chosen = int(batch["keep"].sum()) if "keep" in batch else 0
        found = {self.main: chosen, "value": chosen}
        if self.text is not None and self.spec.ptx_weight:
            found["ptx"] = 0 if "keep" in batch else len(batch["targets"])
        return found

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        weights = {"value": self.spec.value_weight, "ptx": self.spec.ptx_weight}
        if "keep" not in batch:
            assert self.text is not None
            return base.Loss({"ptx": self.text.loss(model, batch)}, self.counts(batch), weights=weights)
        own, keep = self.spec, batch["keep"]
        new = token_logprobs(model, policy.states(model, batch), batch["targets"], own.temperature)
        log = (new - batch["old"]) * keep
        ratio = log.exp()
        if bool(batch["first"]):
            health.check_ratio(own.gates, float((ratio.detach() - 1).abs().max()))
        losses = adv.policy_losses(ratio, batch["advantages"], own.clip) * keep
        values = policy.values(nets[VALUE], batch)
        errors = adv.value_losses(values, batch["values"], batch["returns"], own.value_clip) * keep
        with torch.no_grad():
            beyond = ((ratio - 1).abs() > own.clip) * keep
            metrics = {"ratio": ratio * keep, "clipfrac": beyond, "approx_kl": torch.expm1(log) - log}
        found = {name: float(x.sum()) for name, x in metrics.items()}
        return base.Loss({self.main: losses.sum(), "value": errors.sum()}, self.counts(batch), found, weights)
