"""A policy on answers that were sampled: batches of prompts with their answers, and what networks say of each token.

An answer's token at place t of its text is predicted by the state at t - 1, which has read all before it: `where` names
that place. So is its value, which is that of the text before the token. All is N: the tokens of all answers of a batch,
one answer behind another. Prompts and padding have no place in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.nn.inputs import Inputs
from stemma.nn.model import Model
from stemma.objectives import base
from stemma.objectives.answers import trimmed
from stemma.objectives.vocabulary import LOGITS, picked, scaled


def collate_answers(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], padding: int) -> base.Batch:
    """A batch of (prompt, answer), both ids: `input_ids` (B T, padded at their ends; an answer's last token predicts
    nothing), and of each answer's token its id (`targets`), the place that predicts it in the flattened batch
    (`where`), and the number of its answer (`rows`): N each."""
    texts = [np.asarray([*prompt, *answer[:-1]], dtype=np.int64) for prompt, answer in pairs]
    ids = trimmed(texts, padding)
    width = ids.shape[1]
    where = [i * width + len(p) - 1 + np.arange(len(a)) for i, (p, a) in enumerate(pairs)]
    found = {
        "targets": np.concatenate([np.asarray(answer, dtype=np.int64) for _, answer in pairs]),
        "where": np.concatenate(where).astype(np.int64),
        "rows": np.repeat(np.arange(len(pairs)), [len(answer) for _, answer in pairs]),
    }
    return {"input_ids": ids, **{name: torch.from_numpy(x) for name, x in found.items()}}


def states(model: Model, batch: base.Batch) -> Tensor:
    """N D: the decoder's states from which the tokens of answers are predicted. Padding stands at the end of a row,
    where nothing looks back at it."""
    inputs = Inputs(batch["input_ids"])
    inputs.contexts = base.alone(model, batch)
    return picked(model.decode(inputs), batch)


class Known(NamedTuple):
    """Of each token: its log-probability at the temperature and as the model has it, and the entropy of the policy at
    its place. N each, fp32, without gradients."""

    logprobs: Tensor
    raw: Tensor
    entropy: Tensor


@torch.no_grad()
def known(model: Model, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Known:
    """What a policy says of tokens, in one pass through its head."""
    found: list[list[Tensor]] = []
    size = max(1, LOGITS // model.dims.vocab // 2)
    for h, goal in zip(hidden.split(size), targets.split(size), strict=True):
        logits = model.logits(h).float()
        heated = scaled(logits, temperature)
        own = -F.cross_entropy(heated, goal, reduction="none")  # as `token_logprobs`, bit for bit
        raw = own if heated is logits else -F.cross_entropy(logits, goal, reduction="none")
        logprobs = heated.log_softmax(-1)
        found.append([own, raw, -(logprobs.exp() * logprobs).sum(-1)])
    return Known(*map(torch.cat, zip(*found, strict=True)))


def values(net: Model, batch: base.Batch) -> Tensor:
    """N: what a network with a head of one number says of the text before each token of the answers, fp32. A summary of
    the head reads each place as if the text ended there, so a reward model gives an answer's beginning the score that
    it would have."""
    head, x = net.task, states(net, batch)
    assert head is not None
    if head.summary is not None:
        x = head.summary(x[:, None])
    return head.out(x).float()[:, 0]
