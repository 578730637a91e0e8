"""Reward models in use: scores of answers, and the combination of two models as LLaMA-2-Chat's.

    judge = RewardModel.load("runs/reward")
    judge.scores([talk, ...])            # a number for each conversation, of its last answer

A score is of one text: no batch, order or padding has a part in it, and nothing is dropped out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma import formats
from stemma.conversations import Conversation, Turn
from stemma.declare.alignment import PreferTask, Ranking
from stemma.errors import DataError, UsageError
from stemma.formats import kept
from stemma.formats.where import model_path
from stemma.nn import parts
from stemma.nn.model import Model
from stemma.objectives.ranking import RunRanking
from stemma.objectives.setting import Setting

EPSILON = 1e-8  # of a variance


class RewardModel:
    """A model that scores answers: with the task that it was learnt for, or (a model of another library) with the chat
    template of its tokenizer. Raises UsageError for a model without a head of one number."""

    def __init__(self, model: Model, task: PreferTask | None = None) -> None:
        head = model.arch.heads.task
        where = model.origin or model.name
        if not isinstance(head, parts.Classify) or head.labels != 1:
            raise UsageError(
                f"{where} is no reward model: it has no head of one number; `stemma align reward --from {where}` makes "
                "one"
            )
        if model.tokenizer is None or model.text is None:
            raise UsageError(f"{where} has no tokenizer, and scores are of texts")
        self.model, self.task = model.eval(), task or PreferTask()
        setting = Setting(model.tokenizer, model.text, model.dims.context, 0, structure=model.arch.structure)
        self.goal = RunRanking(Ranking(task=replace(self.task, ties="half", margins=())), setting)

    @classmethod
    def load(cls, path: str | Path, **how: Any) -> RewardModel:
        """The reward model at `path`: a run, a folder, a hub id; `how` as in `stemma.load`."""
        return cls(formats.load(path, **how), task_of(path))

    def scores(self, talks: Sequence[Conversation]) -> list[float]:
        """The score of the last answer of each conversation. Raises DataError for one that is longer than the model
        reads."""
        examples = [self.goal.made(*self.read(talk)) for talk in talks]
        return [one[0] + self.task.shift for one in self.goal.score(self.model, examples)]

    def read(self, talk: Conversation) -> tuple[Any, list[int]]:
        """The ids of a conversation and their marks. Raises DataError for one that cannot be read."""
        if not talk.turns or talk.turns[-1].role != "assistant":
            raise DataError("a score is of an answer, and the last turn is not the assistant's")
        marked = self.goal.reader.texts([talk])
        return np.asarray(marked.ids), marked.marks

    def answers(self, prompt: Sequence[Turn], answers: Sequence[str]) -> list[float]:
        """The scores of several answers to one prompt."""
        return self.scores([Conversation((*prompt, Turn("assistant", answer))) for answer in answers])


def task_of(path: str | Path) -> PreferTask | None:
    """What a reward model was learnt for, as the file beside its weights says; None without one."""
    place = model_path(path)
    found = kept.load(place) if place is not None and place.is_dir() else None
    return found if isinstance(found, PreferTask) else None


# ---------------------------------------------------------------- two models


def safety_first(helpfulness: Tensor, safety: Tensor, tagged: Tensor, threshold: float = 0.15) -> Tensor:
    """The reward of LLaMA-2-Chat before it is whitened (Touvron et al. 2023, section 3.2.3): the safety model's score
    of prompts that are `tagged` as unsafe and of answers to which it gives a probability under `threshold`, else the
    helpfulness model's. Scores are logits, whose sigmoid is the probability: the paper's logit of it is the score
    itself, so that a probability of 0 or 1 needs no clamping. N each."""
    return torch.where(tagged | (safety.sigmoid() < threshold), safety, helpfulness)


def whitened(rewards: Tensor) -> Tensor:
    """Rewards with mean 0 and variance 1 (the biased variance), N; all 0 where they are equal."""
    variance, mean = torch.var_mean(rewards.double(), unbiased=False)
    return ((rewards.double() - mean) * torch.rsqrt(variance + EPSILON)).to(rewards.dtype)


class SafetyFirst:
    """Two reward models as one (see `safety_first`). `white`: the rewards that are asked for together get mean 0 and
    variance 1, as the paper's; then they depend on each other."""

    def __init__(
        self, helpfulness: RewardModel, safety: RewardModel, threshold: float = 0.15, white: bool = True
    ) -> None:
        if not 0 <= threshold <= 1:
            raise UsageError(f"threshold={threshold} must be a probability, from 0 to 1")
        self.helpfulness, self.safety, self.threshold, self.white = helpfulness, safety, threshold, white

    def scores(self, talks: Sequence[Conversation], tagged: Sequence[bool] | None = None) -> list[float]:
        """The reward of the last answer of each conversation. `tagged`: which prompts are unsafe; None: no one is known
        to be."""
        if not talks:
            return []
        unsafe = torch.tensor([False] * len(talks) if tagged is None else list(tagged))
        helpful, safe = (torch.tensor(judge.scores(talks)).double() for judge in (self.helpfulness, self.safety))
        found = safety_first(helpful, safe, unsafe, self.threshold)
        return list((whitened(found) if self.white else found).tolist())
