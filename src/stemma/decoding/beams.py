"""Beam search, ranking by log-probability over length to a power (Wu et al. 2016, section 7, without coverage)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stemma.decoding.choose import penalise
from stemma.decoding.rules import Beams, Rules
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

    def __init__(self, width: int, ranking: Beams, longest: int, ends: Collection[int]) -> None:
        self.width, self.power, self.early, self.ends = width, ranking.penalty, ranking.early, ends
        self.longest = longest  # tokens that a hypothesis can have
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
        far = self.early == "never" and self.power > 0
        best = running[0].score / (self.longest if far else len(running[0].ids)) ** self.power
        if len(self.ended) == self.width and (self.early is True or best <= self.ended[-1][0]):
            self.done = True
        return rows


def search(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    width: int,
    rules: Rules,
    ranking: Beams,
    repetition_penalty: float,
    ends: Collection[int],
    language: int | None = None,
    start: int | str | None = None,
) -> list[Beam]:
    """The best continuation of each prompt."""
    session = begin(model, prompts, rules.length, language, start)
    searches = [Search(width, ranking, rules.length, ends) for _ in prompts]
    prefix = [written(model, p, start) for p in prompts]
    keep = (1 + len(set(ends))) * width  # enough that `width` of them do not end
    open_ = list(range(len(prompts)))  # the prompts that rows of the session belong to, in order
    for step in range(rules.length):
        logprobs = scores = session.logits.log_softmax(-1)
        if repetition_penalty != 1.0 or not rules.free:
            seen = [prefix[i] + beam.ids for i in open_ for beam in searches[i].running]
            scores = logprobs if repetition_penalty == 1.0 else penalise(logprobs, seen, repetition_penalty)
            scores = rules.apply(scores, seen, step, ends)
        rows: list[int] = []
        first = 0
        for i in open_:
            running = searches[i].running
            own = slice(first, first + len(running))
            best = _candidates(scores[own], logprobs[own], running, keep)
            grown = searches[i].advance(best, last=step == rules.length - 1)
            if not searches[i].done:
                rows += [first + r for r in grown]
            first += len(running)
        open_ = [i for i in open_ if not searches[i].done]
        if not open_:
            break
        session.pick(torch.tensor(rows, device=session.device))
        session.step(torch.tensor([b.ids[-1] for i in open_ for b in searches[i].running], device=session.device))
    return [s.ended[0][1] for s in searches]


def _candidates(
    scores: Tensor, logprobs: Tensor, running: list[Beam], keep: int
) -> list[tuple[float, int, int, float]]:
    """The `keep` best ways to go on that are open: (score, running beam, token, its logprob). `scores`: of the next
    token alone, -inf where it is out, and `logprobs`: the model's own; beams V."""
    total = scores + torch.tensor([b.score for b in running], device=logprobs.device)[:, None]
    best = total.flatten().topk(min(keep, total.numel()))
    own = logprobs.flatten()[best.indices].tolist()
    vocab = scores.shape[-1]
    picked = zip(best.values.tolist(), best.indices.tolist(), own, strict=True)
    return [(score, at // vocab, at % vocab, logprob) for score, at, logprob in picked if score > -math.inf]
