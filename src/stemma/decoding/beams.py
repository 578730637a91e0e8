"""Beam search, ranking by log-probability over length to a power (Wu et al. 2016, section 7, without coverage)."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stemma.decoding.requests import GenerationRequest
from stemma.decoding.rules import constrained, dead_end
from stemma.decoding.sessions import begin
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

    def __init__(self, request: GenerationRequest) -> None:
        self.rules, ranking = request.rules, request.beams
        self.width, self.power, self.early = ranking.num_beams, ranking.length_penalty, ranking.early_stopping
        self.keep = (1 + len(set(self.rules.eos))) * self.width  # enough that `width` of them do not end
        self.prefix = request.written
        self.running = [Beam()]
        self.ended: list[tuple[float, Beam]] = []
        self.done = False

    def advance(self, candidates: list[tuple[float, int, int, float]], last: bool) -> list[int]:
        """Take candidates (score, row, token, its logprob), best first; only the first `width` of them may end a text.

        Returns the row that each running beam grew from. Done when no running beam can rank above the ended ones.
        """
        running: list[Beam] = []
        rows: list[int] = []
        for rank, (score, row, token, logprob) in enumerate(candidates):
            beam = self.running[row].grown(token, logprob, score)
            if token in self.rules.eos or last:
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
        best = running[0].score / (self.rules.max_new_tokens if far else len(running[0].ids)) ** self.power
        if len(self.ended) == self.width and (self.early is True or best <= self.ended[-1][0]):
            self.done = True
        return rows


def search(model: Model, requests: Sequence[GenerationRequest]) -> list[list[Beam]]:
    """The `n` best continuations of each prompt, the best first."""
    going = steps(model, requests)
    while True:
        try:
            next(going)
        except StopIteration as end:
            found: list[list[Beam]] = end.value
            return found


def steps(model: Model, requests: Sequence[GenerationRequest]) -> Generator[None, None, list[list[Beam]]]:
    """The same step by step: yields after each pass through the model, and returns the continuations."""
    starts = [r.start for r in requests if r.start is not None] or None
    room, languages = [r.rules.max_new_tokens for r in requests], [r.language for r in requests]
    session = begin(model, [r.prompt for r in requests], room, languages, starts)
    searches = [Search(r) for r in requests]
    running = searches  # the searches that rows of the session belong to, in order
    yield
    for step in range(max(room)):
        logprobs = session.logits.log_softmax(-1)
        scores = constrained(logprobs, [(s.rules, s.prefix + beam.ids, step) for s in running for beam in s.running])
        if not bool((scores > -math.inf).any(1).all()):
            raise dead_end()
        rows: list[int] = []
        first = 0
        for search in running:
            own = slice(first, first + len(search.running))
            first = own.stop
            best = _candidates(scores[own], logprobs[own], search.running, search.keep)
            grown = search.advance(best, last=step == search.rules.max_new_tokens - 1)
            if not search.done:
                rows += [own.start + r for r in grown]
        running = [s for s in running if not s.done]
        if not running:
            break
        session.keep(rows)
        session.step(torch.tensor([b.ids[-1] for s in running for b in s.running], device=session.device))
        yield
    return [[beam for _, beam in s.ended[: r.n]] for s, r in zip(searches, requests, strict=True)]


def _candidates(
    scores: Tensor, logprobs: Tensor, running: list[Beam], keep: int
) -> list[tuple[float, int, int, float]]:
    """The `keep` best next tokens: (score, running beam, token, its logprob). `scores`: of the next token alone, -inf
    where it is excluded; `logprobs`: the model's own; beams V."""
    total = scores + torch.tensor([b.score for b in running], device=logprobs.device)[:, None]
    best = total.flatten().topk(min(keep, total.numel()))
    own = logprobs.flatten()[best.indices].tolist()
    vocab = scores.shape[-1]
    picked = zip(best.values.tolist(), best.indices.tolist(), own, strict=True)
    return [(score, at // vocab, at % vocab, logprob) for score, at, logprob in picked if score > -math.inf]
