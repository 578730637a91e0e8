"""Methods that learn from answers which the model samples itself: what a step is made of.

A step takes the next prompts of the data, samples answers to them from the weights as they are, has rewards judge
them, and computes what the old policy and the reference say of their tokens. A method makes advantages of that. The
step's updates are passes over the answers in minibatches.

All of it follows from the weights, the seed and the cursor, so a run that was killed at any moment of a step takes the
same step again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.alignment import health, rollout_server
from stemma.alignment import rewards as judges
from stemma.alignment.experience import Experience, Facts, OnlineCursor, ScoredRollout, rollout_metrics
from stemma.alignment.online_run import OnlineRun
from stemma.alignment.rewards import RewardInput, Rewards
from stemma.alignment.rollouts import EncodedPrompt, Rollout, Sampling, sample, seed_of
from stemma.conversations import writer
from stemma.data import random as draw
from stemma.declare.alignment import Online
from stemma.errors import DataError, UsageError
from stemma.nn.model import Model
from stemma.nn.parts import Arch, Causal, Cycle, Sliding
from stemma.objectives import base, policy, reference
from stemma.objectives.answers import singles, trimmed
from stemma.objectives.purposes import MINIBATCH
from stemma.objectives.vocabulary import token_logprobs
from stemma.rewrites import adapters
from stemma.tasks.base import reader
from stemma.train.config import Plan
from stemma.train.device import pick_device
from stemma.train.source import MICRO, Draw, DummyBatch, Source

EVERY = torch.ones(1)  # of an answer of which nothing is known
SHOWN = {"raw", "entropy"}  # facts that no loss needs


class RunOnline(base.Objective):
    """What a method of this kind has. A subclass makes advantages of rewards (`set_advantages`), and says what is
    minimised."""

    main = "policy"
    structures = ("decoder",)
    of_rows = True
    in_bits = False
    records = True
    spec: Online

    @classmethod
    def incompatible_reason(cls, spec: Any, arch: Arch) -> str | None:
        if (why := super().incompatible_reason(spec, arch)) is not None:
            return why
        if arch.heads.lm is None:
            return "it has no language-model head, so it writes no answers"
        if not isinstance(arch.mask, Causal | Sliding | Cycle):
            return "answers are sampled from decoders that read from left to right"
        return None

    @property
    def answers(self) -> int:
        """Answers of a step."""
        return self.spec.prompts * self.spec.samples

    @property
    def remembers(self) -> bool:
        """Whether the loss compares with the policy that sampled: not where the first update is the only one."""
        own = self.spec
        return own.inner > 1 or (own.minibatch or self.answers) < self.answers or bool(own.server)

    def sampling(self) -> Sampling:
        """How answers are drawn."""
        own = self.spec
        stops = writer(self.tokenizer, getattr(own.task, "template", "") or None).stops()
        return Sampling(own.samples, own.max_new_tokens, own.temperature, own.top_k, own.top_p, stops)

    # ------------------------------------------------------------ what a method says

    @abstractmethod
    def set_advantages(self, experience: Experience) -> None:
        """Add to each answer's facts what the loss needs beside `old`: advantages."""

    def token_facts(self, model: Model, batch: base.Batch, nets: base.Nets) -> Facts:
        """More facts of the tokens of a batch, N each: values, a teacher's predictions."""
        return {}

    def facts_of(self, experience: Experience, chosen: Sequence[int]) -> list[Facts]:
        """The facts of an update's answers."""
        return [experience.facts[i] for i in chosen]

    rewarded: bool = True  # whether it needs a reward
    tries: int = 1  # prompts that are drawn at most for each of a step

    def is_useless(self, rewards: Sequence[float]) -> bool:
        """Whether another prompt is drawn in place of one whose answers have these rewards."""
        return False

    def offline_answers(self, source: OnlineSource, slots: Sequence[int]) -> list[Rollout] | None:
        """Answers to prompts, by their indices in the order, that are not sampled; None: they are."""
        return None

    def extra_batches(self, experience: Experience, update: int, rows: int) -> list[base.Batch]:
        """Further micro-batches of an update on so many answers: pretraining text."""
        return []

    def quality(self, model: Model, autocast: Any) -> dict[str, float]:
        """What an evaluation says beside rewards."""
        return {}

    def held_out(self, source: OnlineSource, found: Sequence[Rollout]) -> dict[str, float]:
        """What an evaluation says of sampled answers to held-out prompts beside rewards."""
        return {}

    # ------------------------------------------------------------ a run

    def examples_of_step(self, plan: Any) -> int:
        return self.spec.prompts

    def source(self, plan: Any, view: Any, folder: Path | None) -> Any:
        return OnlineSource(plan, self, view, folder)

    def kind(self) -> Any:
        return OnlineRun

    def size(self, view: Any) -> int:
        """Tokens of a prompt and its answers at most."""
        return round(view.tokens_total / max(1, len(view))) + self.spec.samples * self.spec.max_new_tokens

    def remarks(self, view: Any, held: Any) -> list[str]:
        """How many prompts leave no room for an answer."""
        most = self.spec.max_new_tokens
        if not (long := int((view.lengths + most > self.context).sum())):
            return []
        return [
            f"{long:,} of {len(view):,} prompts are passed over: with objective.max_new_tokens={most} they do not fit "
            f"into {self.context} tokens"
        ]

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        return singles(self, view, cursor, once)

    def example(self, view: base.View, document: int) -> base.Example:
        """A prompt."""
        return {"input_ids": np.asarray(view[document])}

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        return {"input_ids": trimmed([e["input_ids"] for e in examples], self.padding)}

    def counts(self, batch: base.Batch) -> dict[str, int]:
        return {self.main: len(batch["targets"])}


class Prompts:
    """The prompts of some rows, as far as they leave room for an answer in `context` tokens. Raises DataError if none
    does."""

    def __init__(self, objective: RunOnline, view: Any, context: int) -> None:
        fits = np.flatnonzero(view.lengths + objective.spec.max_new_tokens <= context)
        if not len(fits):
            raise DataError(
                f"none of {len(view):,} prompts leaves room for objective.max_new_tokens="
                f"{objective.spec.max_new_tokens} in {context} tokens: the shortest has {int(min(view.lengths))}; "
                "lower it, or raise train.context"
            )
        self.left_out = len(view) - len(fits)
        self.view = view.pick(fits) if self.left_out else view
        setting = objective.setting
        self.reader = reader(objective.spec.task, setting.tokenizer, setting.context, setting.structure)

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, place: int) -> EncodedPrompt:
        record = json.loads(self.view.text(place))
        return EncodedPrompt(
            tuple(self.view[place].tolist()), self.reader.read(record).turns[-1].content, record, place
        )


class OnlineSource(Source):
    """Steps of sampled answers."""

    online = True
    cursor_type = OnlineCursor
    loop: Any
    model: Model  # whole, and as it is: `refresh_models` again after an update
    nets: base.Nets

    def __init__(self, plan: Plan, objective: RunOnline, view: Any, folder: Path | None) -> None:
        rows = plan.train.micro or max(1, MICRO[pick_device(plan).type] // plan.context)
        super().__init__(objective.spec.prompts, rows)
        self.micro = min(rows, objective.answers)
        self.objective, self.seed = objective, plan.seed
        self.context = plan.context
        self.prompts = self.prompts_of(view)
        self.order = objective.order(self.prompts.view)
        self.how = objective.sampling()
        self.server = rollout_server.of(objective.spec, folder, plan.train.start or "")
        rewarded = objective.rewarded or objective.spec.rewards
        self.rewards = judges.of(objective.spec.rewards, objective.spec.seconds) if rewarded else Rewards([], [])

    def attach(self, loop: Any) -> None:
        self.loop, self.model, self.nets = loop, loop.model, loop.nets
        if self.objective.spec.kl:
            reference.check(loop.model, loop.nets)
        if loop.model.embed.noise:
            raise UsageError("recipe.neftune changes what the policy reads, so its ratio would not be 1; leave it out")
        if self.server is not None:
            self.server.adapted, self.server.tokenizer = bool(adapters.names(loop.model)), self.objective.tokenizer
        if any(part.spec.dropout for part in adapters.layers(loop.model)):
            raise UsageError("adapters with dropout are not the policy that samples; give them a dropout of 0")

    def share(self, reader: int, readers: int) -> None:
        self.reader, self.readers = reader, readers
        self.micro = min(self.micro, -(-self.objective.answers // readers))

    def refresh_models(self) -> None:
        """Take the model and the nets as they are now, whole on every rank."""
        found = dict(self.loop.whole())
        self.model, self.nets = found.pop("model"), found
        if self.server is not None:
            if self.loop.is_main:
                self.server.push(self.model)
            self.loop.everyone([])  # nobody asks before the weights are there

    def prompts_of(self, view: Any) -> Prompts:
        """The prompts of some rows."""
        return Prompts(self.objective, view, self.context)

    # ------------------------------------------------------------ a step

    def draws(self, cursor: OnlineCursor, step: int) -> Iterator[Draw]:
        for number in itertools.count(step):
            experience = self.collect(cursor, number)
            yield Draw(self.updates(experience), experience.cursor, self.tokens(experience), experience.metrics)
            cursor = experience.cursor

    def skip(self, cursor: OnlineCursor, step: int, steps: int) -> OnlineCursor:
        return replace(cursor, slot=cursor.slot + steps * self.full)

    def tokens(self, experience: Experience) -> int:
        """Tokens that were read and written in a step."""
        return sum(len(one.prompt.ids) + len(one.ids) for one in experience.rollouts)

    def collect(self, cursor: OnlineCursor, step: int) -> Experience:
        """Sample the answers of a step and judge them. Raises what stops an unhealthy run. A rank samples, judges and
        measures its own share; in the end every rank has all."""
        self.refresh_models()
        with self.loop.products():
            found, slot = self.answers(cursor.slot)
        scores = torch.tensor([one.reward for one in found], dtype=torch.float32)
        rollouts = [one.rollout for one in found]
        experience = Experience(
            step, rollouts, scores, replace(cursor, slot=slot), [{} for _ in found], rollout_metrics(found)
        )
        health.check(self.objective.spec.gates, experience)
        self.measure(experience)
        self.objective.set_advantages(experience)
        return experience

    def sampled(
        self, prompts: Sequence[EncodedPrompt], seeds: Sequence[int], samples: int | None = None
    ) -> list[Rollout]:
        """Answers from the weights as they are now, so many to each prompt."""
        how = self.how if samples is None else replace(self.how, samples=samples)
        if not prompts:  # more ranks than prompts
            return []
        if self.server is not None:
            return self.server.sample(prompts, how, seeds)
        fast = self.loop.device.type == "cpu"  # there decoding has kernels of its own
        return sample(self.model, prompts, how, seeds, autocast=contextlib.nullcontext if fast else self.loop.autocast)

    def answers(self, slot: int) -> tuple[list[ScoredRollout], int]:
        """The answers of a step to the prompts from index `slot` of their order on, and the index behind these. In
        place of prompts whose answers are useless others are drawn, as often as the method `tries`; with none left the
        step goes on with fewer, or, where all are useless, with the first ones."""
        kept: list[list[ScoredRollout]] = []
        useless: list[list[ScoredRollout]] = []
        left = self.full * self.objective.tries
        while len(kept) < self.full and left > 0:
            slots = range(slot, slot + min(self.full - len(kept), left))
            own = slots[len(slots) * self.reader // self.readers : len(slots) * (self.reader + 1) // self.readers]
            given = self.objective.offline_answers(self, own)
            if given is None:
                asked = [self.prompts[self.order[i][0]] for i in own]
                given = self.sampled(asked, [seed_of(self.seed, i) for i in own])
            found = self.loop.everyone(self.scored(given))
            size = len(found) // len(slots)
            for i in range(0, len(found), size):
                group = found[i : i + size]
                (useless if self.objective.is_useless([one.reward for one in group]) else kept).append(group)
            slot, left = slots.stop, left - len(slots)
        return [one for group in kept or useless[: self.full] for one in group], slot

    def scored(self, found: Sequence[Rollout], rewards: Rewards | None = None) -> list[ScoredRollout]:
        """Answers with their rewards (left out, those that are learnt from). One that did not end may have a reward of
        its own (`unfinished`)."""
        asked = [RewardInput(one.prompt.words, one.text, one.prompt.record) for one in found]
        made, cut = (rewards or self.rewards).scores(asked), self.objective.spec.unfinished
        return [
            ScoredRollout(
                one,
                total if one.finished or cut is None else cut,
                {name: part[i] for name, part in made.parts.items()},
            )
            for i, (one, total) in enumerate(zip(found, made.totals, strict=True))
        ]

    # ------------------------------------------------------------ what is known of the tokens

    def minibatches(self, experience: Experience, number: int) -> list[list[int]]:
        """The answers of each update of a pass, shuffled; within an update by their lengths."""
        n = len(experience.rollouts)
        order = draw.permutation((self.seed, MINIBATCH, experience.step, number), n).tolist()
        order = [i for i in order if bool(experience.facts[i].get("keep", EVERY).any())]
        size = self.objective.spec.minibatch or n

        def length(i: int) -> int:
            return len(experience.rollouts[i].prompt.ids) + len(experience.rollouts[i].ids)

        return [sorted(order[i : i + size], key=length) for i in range(0, len(order), size)]

    def micro_batches(self, chosen: Sequence[int]) -> list[list[int]]:
        """Of the answers of an update this rank's, by micro-batches."""
        own = list(chosen[self.reader :: self.readers])
        return [own[i : i + self.micro] for i in range(0, len(own), self.micro)]

    def evenly(self, batches: list[base.Batch], most: int, other: Callable[[], base.Batch]) -> list[base.Batch]:
        """Micro-batches of this rank, and as many of `other` as it lacks of `most`, which count nothing."""
        return batches + [DummyBatch(other()) for _ in range(most - len(batches))]

    def collated(self, experience: Experience, chosen: Sequence[int]) -> base.Batch:
        """The ids of some answers behind their prompts."""
        pairs = [(experience.rollouts[i].prompt.ids, experience.rollouts[i].ids) for i in chosen]
        return policy.collate_answers(pairs, self.objective.padding)

    @torch.no_grad()
    def measure(self, experience: Experience) -> None:
        """Compute what the policy, its reference and other nets say of the tokens: in the micro-batches, the mode and
        the precision of the first pass, so that its ratio is 1."""
        parts = list(itertools.chain.from_iterable(map(self.micro_batches, self.minibatches(experience, 0))))
        for chosen in parts:
            batch = {k: v.to(self.loop.device) for k, v in self.collated(experience, chosen).items()}
            with self.loop.autocast(), self.loop.products():
                found = self._facts(batch)
            sizes = [len(experience.rollouts[i].ids) for i in chosen]
            for name, values in found.items():
                for i, own in zip(chosen, values.float().cpu().split(sizes), strict=True):
                    experience.facts[i][name] = own
        for i, facts in self.loop.everyone([(i, experience.facts[i]) for chosen in parts for i in chosen]):
            experience.facts[i] = facts
        for own, one in zip(experience.facts, experience.rollouts, strict=True):
            kept = one.chosen if any(one.chosen) else (True,) * len(one.ids)
            own["keep"] = torch.tensor(kept, dtype=torch.float32)
        experience.metrics |= self.gaps(experience)

    def _facts(self, batch: base.Batch) -> Facts:
        objective, model, nets = self.objective, self.model, self.nets
        targets, heat = batch["targets"], objective.spec.temperature
        found: Facts = {}
        if objective.remembers:
            own = policy.known(model, policy.states(model, batch), targets, heat)
            found |= {"old": own.logprobs, "raw": own.raw, "entropy": own.entropy}
        if objective.spec.kl:
            found["reference"] = self.reference(batch)
        return found | objective.token_facts(model, batch, nets)

    def reference(self, batch: base.Batch) -> Tensor:
        """N: the log-probabilities of a batch's tokens under the reference, at the temperature of sampling."""
        heat = self.objective.spec.temperature
        with reference.frozen(self.model, self.nets) as net:
            return token_logprobs(net, policy.states(net, batch), batch["targets"], heat)

    def gaps(self, experience: Experience) -> dict[str, float]:
        """How far decoding and training are apart in what they say of a token: `engine_gap` of the model's own
        distribution, `sampled_gap` between what was drawn from and what is learnt (truncation shows there)."""
        if not self.objective.remembers:
            return {}
        pairs = list(zip(experience.facts, experience.rollouts, strict=True))
        raw = torch.cat([torch.tensor(one.logprobs) - own["raw"] for own, one in pairs])
        drawn = torch.cat([torch.tensor(one.sampled) - own["old"] for own, one in pairs])
        entropy = torch.cat([own["entropy"] for own in experience.facts])
        gaps = {"engine_gap": float(raw.abs().mean()), "sampled_gap": float(drawn.mean())}
        health.check_gap(self.objective.spec.gates, experience.step, gaps["engine_gap"])
        return gaps | {"entropy": float(entropy.mean())}

    # ------------------------------------------------------------ updates

    def updates(self, experience: Experience) -> list[list[base.Batch]]:
        """The micro-batches of each update: passes over the answers, and what the method puts beside them."""
        found: list[list[base.Batch]] = []
        for number in range(self.objective.spec.inner):
            for chosen in self.minibatches(experience, number):
                facts = dict(zip(chosen, self.objective.facts_of(experience, chosen), strict=True))
                first = not found
                batches = [self.batch(experience, part, facts, first) for part in self.micro_batches(chosen)]
                most = math.ceil(math.ceil(len(chosen) / self.readers) / self.micro)
                batches = self.evenly(batches, most, partial(self.batch, experience, chosen[:1], facts, first))
                beside = self.objective.extra_batches(experience, len(found), len(chosen))
                most = math.ceil(len(beside) / self.readers)
                found.append(
                    batches + self.evenly(beside[self.reader :: self.readers], most, partial(beside.__getitem__, 0))
                )
        return found

    def batch(self, experience: Experience, part: Sequence[int], facts: Mapping[int, Facts], first: bool) -> base.Batch:
        """A micro-batch of some answers with their facts. `first`: of the step's first update."""
        names = sorted(facts[part[0]].keys() - SHOWN)
        batch = self.collated(experience, part) | {"first": torch.tensor(first)}
        return batch | {name: torch.cat([facts[i][name] for i in part]) for name in names}
