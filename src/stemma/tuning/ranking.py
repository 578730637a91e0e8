"""Rank classification: of several answers that a row lists, the one that a tuned model finds most likely.

The score of an option is the log-likelihood of all its tokens and of the end behind them, not divided by their number
(Wei et al. 2021, section 2.3; Brown et al. 2020, section 2.4 has both)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from stemma import conversations
from stemma.conversations import Conversation, Turn, shapes
from stemma.declare.tasks import ChatTask
from stemma.errors import DataError, brief
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.objectives.answers import trimmed
from stemma.objectives.vocabulary import sequence_logprobs
from stemma.tasks.base import Marked, reader
from stemma.tasks.hard import prompted

OPTIONS = "options"  # the column with the answers to choose from
Row = Mapping[str, Any]


def options(row: Row) -> list[str]:
    """What there is to choose from. Raises DataError for a row that lists no two different texts."""
    found = row.get(OPTIONS)
    if not isinstance(found, list) or not all(isinstance(one, str) and one.strip() for one in found):
        raise DataError(f"its column {OPTIONS!r} holds {brief(found)}, and a list of texts was expected")
    if len(found) < 2 or len({*found}) < len(found):
        raise DataError(f"its options are {brief(found)}, and at least two different ones were expected")
    return found


def truth(row: Row) -> int:
    """Which option is right: the row's own last answer. Raises DataError if it is none of them."""
    answer, chosen = conversations.read(row).answers[-1], options(row)
    if answer not in chosen:
        raise DataError(f"its answer is {brief(answer)}, and none of its options ({', '.join(chosen)})")
    return chosen.index(answer)


class Ranker:
    """Scores options as the last answers of a model that was tuned to a task of conversations."""

    def __init__(self, model: Model, task: ChatTask, context: int) -> None:
        self.model, self.prompts = model, task.prompts
        task = replace(task, loss_on="last answer", ghost=None)
        self.reader = reader(task, model.tokenizer, context, model.arch.structure)

    def marked(self, row: Row) -> list[Marked]:
        """The ids of a row with each of its options as the last answer. Raises DataError for a row without a question,
        and for one that is too long."""
        chosen = options(row)
        asked = prompted(shapes.question(row), self.prompts, row.get("task"))
        return [self.reader.marked(Conversation((*asked.turns, Turn("assistant", one)))) for one in chosen]

    @torch.inference_mode()
    def scores(self, marked: Sequence[Marked]) -> list[float]:
        """The log-likelihood of the last answer of each example, in nats."""
        pad = (self.model.text.pad_id if self.model.text is not None else None) or 0
        ids = [np.asarray(one.ids) for one in marked]
        cuts = [one.marks[1] for one in marked]
        asked, said = (
            ids,
            [np.where(np.arange(len(own)) < cut, IGNORED, own) for own, cut in zip(ids, cuts, strict=True)],
        )
        if self.model.arch.structure == "encoder-decoder":
            asked, said = ([own[part] for own, part in zip(ids, parts, strict=True)] for parts in _sides(cuts))
        mask = trimmed([np.ones(len(own), np.int64) for own in asked], 0)
        here = self.model.device
        inputs = Inputs(trimmed(asked, pad).to(here), mask.to(here))
        found: list[float] = sequence_logprobs(self.model, inputs, trimmed(said, IGNORED).to(here)).sum(1).tolist()
        return found


def _sides(cuts: Sequence[int]) -> tuple[list[slice], list[slice]]:
    return [slice(cut) for cut in cuts], [slice(cut, None) for cut in cuts]
