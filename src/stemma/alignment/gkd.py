"""Generalised knowledge distillation (GKD: Agarwal et al. 2024, arXiv:2306.13649): a student learns its teacher's
distribution at each token of answers that it wrote itself, or of those in the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stemma.alignment import offline
from stemma.alignment.experience import Experience
from stemma.alignment.online import RunOnline
from stemma.alignment.rollouts import Rollout
from stemma.data import random as draw
from stemma.declare import alignment as declared
from stemma.nn.model import Model
from stemma.objectives import base, policy
from stemma.objectives.policy_gradient import jensen_shannon
from stemma.objectives.purposes import ON_POLICY
from stemma.objectives.reference import still
from stemma.objectives.vocabulary import LOGITS

if TYPE_CHECKING:
    from stemma.alignment.online import OnlineSource

TEACHER = "teacher"


class RunGKD(RunOnline, of=declared.GKD):
    """The divergence of student and teacher, a mean over the tokens of the answers."""

    spec: declared.GKD
    main = "token"
    rewarded = False

    def set_advantages(self, experience: Experience) -> None:
        return

    def offline_answers(self, source: OnlineSource, slots: Sequence[int]) -> list[Rollout] | None:
        """In the share of the steps that are not on-policy, the answers of the data."""
        if not slots:
            return []
        step = slots[0] // source.full  # one choice for all ranks
        if draw.uniform((source.seed, ON_POLICY, step), 1)[0] < self.spec.on_policy:
            return None
        otherwise = "set objective.on_policy=1 to learn from the student's own answers alone"
        places = [source.order[slot][0] for slot in slots]
        most = self.spec.max_new_tokens
        return [one for place in places for one in offline.answers(source.prompts, place, 1, most, otherwise)]

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        teacher = nets[TEACHER]
        own = policy.states(model, batch)
        with still(teacher):
            theirs = policy.states(teacher, batch)
        total = distance(model, own, teacher, theirs, self.spec.beta, int(self.tokenizer.vocab_size))
        return base.Loss({self.main: total}, self.counts(batch))

    def held_out(self, source: OnlineSource, found: Sequence[Rollout]) -> dict[str, float]:
        """The divergence on held-out answers of the student."""
        total, many = 0.0, 0
        for begin in range(0, len(found), source.micro):
            pairs = [(one.prompt.ids, one.ids) for one in found[begin : begin + source.micro]]
            batch = policy.collate_answers(pairs, self.padding)
            batch = {name: t.to(source.loop.device) for name, t in batch.items()}
            with still(source.model), source.loop.autocast():
                loss = self.loss(source.model, batch, source.nets)
            total, many = total + float(loss.sums[self.main]), many + loss.counts[self.main]
        return {"divergence": total / many}


def distance(student: Model, own: Tensor, teacher: Model, theirs: Tensor, beta: float, vocab: int) -> Tensor:
    """The generalised Jensen-Shannon divergence of the first `vocab` tokens at each of N states, summed, fp32. `own`,
    `theirs`: what the heads of student and teacher read, N D. Logits exist in parts, which the backward pass computes
    again."""

    def some(h: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            goal = teacher.logits(t)[:, :vocab].float().log_softmax(-1)
        return jensen_shannon(student.logits(h)[:, :vocab].float().log_softmax(-1), goal, beta).sum()

    size = max(1, LOGITS // student.dims.vocab // 4)
    if len(own) <= size or not torch.is_grad_enabled():
        return torch.stack([some(h, t) for h, t in zip(own.split(size), theirs.split(size), strict=True)]).sum()
    parts: Any = zip(own.split(size), theirs.split(size), strict=True)
    return torch.stack([checkpoint(some, h, t, use_reentrant=False, preserve_rng_state=False) for h, t in parts]).sum()
