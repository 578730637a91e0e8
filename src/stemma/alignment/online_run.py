"""What runs of sampled answers add to a run's life: held-out prompts that are answered, judged and kept.

RUN/samples.jsonl   answers to held-out prompts: `step`, `number`, `prompt`, `answer`, `reward`, `finished`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from stemma import disk
from stemma.alignment.experience import rollout_metrics
from stemma.alignment.rollouts import Rollout, seed_of
from stemma.objectives import policy
from stemma.objectives.vocabulary import token_logprobs
from stemma.train.loop import Loop
from stemma.train.run import Pretraining

SAMPLES = "samples.jsonl"
KEPT = 16  # answers of an evaluation that are kept
APART = -1  # in place of a slot: prompts of evaluations take seeds of their own


class OnlineRun(Pretraining):
    """Held-out prompts, the same with the same seeds each time: evaluations differ by the weights alone."""

    def __init__(self, run: Path, loop: Loop, store: Any) -> None:
        super().__init__(run, loop, store)
        held: tuple[Any, Any] = loop.source, loop.objective  # of `alignment.online`
        self.source, self.objective = held
        self.prompts = self.source.prompts_of(self.held)
        self.last: list[dict[str, Any]] = []

    def evaluate(self) -> dict[str, float]:
        """Mean reward, divergence from the reference, length and share of natural ends of answers to held-out prompts;
        some of them are kept in `samples.jsonl`."""
        count = min(len(self.prompts), self.objective.spec.judged)
        asked = [self.prompts[i] for i in range(count)]
        with self.loop.averaged():
            self.source.refresh_models()
            found = self.source.sampled(asked, [seed_of(self.plan.seed, APART - i) for i in range(count)], samples=1)
            judged = self.source.scored(found, self.source.rewards.of_any())
            more = self.divergence(found) | self.objective.quality(self.source.model, self.loop.autocast)
            more |= self.objective.held_out(self.source, found)
        self.last = [
            {
                "step": self.loop.step, "number": one.prompt.place, "prompt": one.prompt.words, "answer": one.text,
                "reward": own.reward, "finished": one.finished,
            }
            for one, own in zip(found[:KEPT], judged, strict=False)
        ]  # fmt: skip
        if self.loop.is_main:
            self.keep()
        parts = {
            name: value for name, value in rollout_metrics(judged).items() if name not in ("reward_std", "distinct")
        }
        return parts | more | {"targets": float(count)}

    def divergence(self, found: Sequence[Rollout]) -> dict[str, float]:
        """The mean divergence of answers from the reference in nats; nothing where none is asked for."""
        if not self.objective.spec.kl:
            return {}
        each: list[float] = []
        heat = self.objective.spec.temperature
        for begin in range(0, len(found), self.source.micro):
            part = found[begin : begin + self.source.micro]
            pairs = [(one.prompt.ids, one.ids) for one in part]
            batch = policy.collate_answers(pairs, self.objective.padding)
            batch = {k: v.to(self.loop.device) for k, v in batch.items()}
            with torch.no_grad(), self.loop.autocast():
                model = self.source.model
                own = token_logprobs(model, policy.states(model, batch), batch["targets"], heat)
                gap = own - self.source.reference(batch)
            each += [float(x.sum()) for x in gap.cpu().split([len(one.ids) for one in part])]
        return {"kl": fmean(each)}

    def keep(self) -> None:
        """Write the last answers beside those of earlier evaluations; a run that goes on from an earlier step writes
        the later ones again."""
        path = self.run / SAMPLES
        before = [row for _, row in disk.read_jsonl(path)] if path.exists() else []
        with disk.write_jsonl(path) as add:
            for row in [*(row for row in before if row.get("step", 0) < self.loop.step), *self.last]:
                add(row)

    def summarize(self, quality: dict[str, float]) -> dict[str, Any]:
        """As of other runs, with samples of before and after."""
        path = self.run / SAMPLES
        first = [row for _, row in disk.read_jsonl(path) if row.get("step") == 0] if path.exists() else []
        return super().summarize(quality) | {"answers": {"before": first, "after": self.last}}
