"""Beam search, ranking by log-probability over length to a power (Wu et al. 2016, section 7, without coverage)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stemma.decoding.choose import penalise
from stemma.decoding.session import begin, written
from stemma.nn.model import Model


@dataclass
class Beam:
    """A continuation: its token ids, the log-probability of each, and their sum."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    score: float = 0.0

    def grown(self, token: int, logprob: float, score: float) -> Beam:
        return Beam([*self.ids, token], [*self.logprobs, logprob], score)


class Search:
    """The beams of one prompt: `width` running ones, and the `width` best that have ended."""

    def __init__(self, width: int, length_penalty: float, ends: Collection[int]) -> None:
        self.width, self.power, self.ends = width, length_penalty, ends
        self.running = [Beam()]
        self.ended: list[tuple[float, Beam]] = []
        self.done = False

    def advance(self, candidates: list[tuple[float, int, int, float]], last: bool) -> list[int]:
        """Take the best candidates (score, row, token, its logprob), best first, of which the first `width` may end.

        Returns which row each running beam grew from. Stops when no running beam can rank above the ended ones.
        """
        running: list[Beam] = []
        rows: list[int] = []
        for rank, (score, row, token, logprob) in enumerate(candidates):
            beam = self.running[row].grown(token, logprob, score)
            if token in self.ends or last:
                if rank < self.width and not self.done:
                    self.ended.append((score / len(beam.ids) ** self.power, beam))
            elif len(running) < self.width:
                running.append(beam)
                rows.append(row)
        self.ended.sort(key=lambda pair: -pair[0])
        del self.ended[self.width :]
        if last or not running:
            self.done = True
            return rows
        self.running = running
        best = running[0].score / len(running[0].ids) ** self.power
        if len(self.ended) == self.width and best <= self.ended[-1][0]:
            self.done = True
        return rows


def search(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    width: int,
    max_new_tokens: int,
    length_penalty: float,
    repetition_penalty: float,
    ends: Collection[int],
    language: int | None = None,
) -> list[Beam]:
    """The best continuation of each prompt."""
    session = begin(model, prompts, max_new_tokens, language)
    searches = [Search(width, length_penalty, ends) for _ in prompts]
    prefix = [written(model, p) for p in prompts]
    keep = (1 + len(set(ends))) * width  # enough that `width` of them do not end
    open_ = list(range(len(prompts)))  # the prompts that rows of the session belong to, in order
    for step in range(max_new_tokens):
        logprobs = session.logits.log_softmax(-1)
        if repetition_penalty != 1.0:
            seen = [prefix[i] + beam.ids for i in open_ for beam in searches[i].running]
            logprobs = penalise(logprobs, seen, repetition_penalty)
        rows: list[int] = []
        first = 0
        for i in open_:
            running = searches[i].running
            own = logprobs[first : first + len(running)]
            grown = searches[i].advance(_candidates(own, running, keep), last=step == max_new_tokens - 1)
            if not searches[i].done:
                rows += [first + r for r in grown]
            first += len(running)
        open_ = [i for i in open_ if not searches[i].done]
        if not open_:
            break
        session.pick(torch.tensor(rows, device=session.device))
        session.step(torch.tensor([b.ids[-1] for i in open_ for b in searches[i].running], device=session.device))
    return [s.ended[0][1] for s in searches]


def _candidates(logprobs: Tensor, running: list[Beam], keep: int) -> list[tuple[float, int, int, float]]:
    """The `keep` best ways to go on: (score, running beam, token, its logprob). `logprobs`: beams V."""
    total = logprobs + torch.tensor([b.score for b in running], device=logprobs.device)[:, None]
    best = total.flatten().topk(min(keep, total.numel()))
    own = logprobs.flatten()[best.indices].tolist()
    vocab = logprobs.shape[-1]
    picked = zip(best.values.tolist(), best.indices.tolist(), own, strict=True)
    return [(score, at // vocab, at % vocab, logprob) for score, at, logprob in picked]
