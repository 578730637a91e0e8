"""What runs of sampled answers add to a run's life: held-out prompts that are answered, judged and kept.

RUN/samples.jsonl   answers to held-out prompts: `step`, `number`, `prompt`, `answer`, `reward`, `finished`
RUN/judged.jsonl    of each evaluation its `step` and the `rewards` of all answers, in the order of the prompts
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
from stemma.objectives.preference import interval
from stemma.objectives.vocabulary import token_logprobs
from stemma.train.loop import Loop
from stemma.train.run import Pretraining

SAMPLES, JUDGED = "samples.jsonl", "judged.jsonl"
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
        self.rewards: list[float] = []

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
        self.rewards = [one.reward for one in judged]
        if self.loop.is_main:
            self.keep(SAMPLES, self.last)
            self.keep(JUDGED, [{"step": self.loop.step, "rewards": self.rewards}])
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

    def keep(self, name: str, new: Sequence[dict[str, Any]]) -> None:
        """Write rows of this evaluation beside those of earlier ones; a run that goes on from an earlier step writes
        the later ones again."""
        before = [row for row in self.kept(name) if row.get("step", 0) < self.loop.step]
        with disk.write_jsonl(self.run / name) as add:
            for row in [*before, *new]:
                add(row)

    def kept(self, name: str) -> list[dict[str, Any]]:
        """The rows of earlier evaluations."""
        path = self.run / name
        return [row for _, row in disk.read_jsonl(path) if isinstance(row, dict)] if path.exists() else []

    def summarize(self, quality: dict[str, float]) -> dict[str, Any]:
        """As of other runs, with samples of before and after, and how often an answer has a higher reward than the one
        before the run to the same prompt."""
        first = [row for row in self.kept(SAMPLES) if row.get("step") == 0]
        found = super().summarize(quality) | {"answers": {"before": first, "after": self.last}}
        before: list[float] = next((row["rewards"] for row in self.kept(JUDGED) if row.get("step") == 0), [])
        return found | (wins(before, self.rewards) if len(before) == len(self.rewards) > 0 else {})


def wins(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """The share of prompts where the reward is higher than before, equal ones half, with its interval of 95 of 100."""
    pairs = list(zip(before, after, strict=True))
    share = fmean((new > old) + 0.5 * (new == old) for old, new in pairs)
    low, high = interval(share, len(pairs))
    return {"win": {"share": share, "low": low, "high": high, "prompts": len(pairs)}}
