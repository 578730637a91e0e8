"""The rows of one running batch: requests join, draw a token a step each, and leave when their texts end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from stemma.decoding.detokenizer import Detokenizer
from stemma.decoding.requests import GenerationRequest
from stemma.decoding.results import Event, Result, Top
from stemma.decoding.rules import constrained, dead_end
from stemma.decoding.sampling import choice_seed, draw
from stemma.decoding.session import Session
from stemma.decoding.sessions import begin
from stemma.nn.model import Model

CHUNK = 256  # tokens of a prompt whose logits are held at once


class Row:
    """One choice of a request in the batch."""

    def __init__(self, model: Model, index: int, request: GenerationRequest, pieces: bool, choice: int = 0) -> None:
        self.index, self.request, self.choice = index, request, choice
        self.seen = request.written
        self.result = Result(seed=choice_seed(request.seed, choice))
        self.generator = torch.Generator().manual_seed(self.result.seed)
        known = model.tokenizer is not None
        self.detokenizer = Detokenizer(model, request.prompt, request.stop) if known else None
        self.pieces = known and (pieces or bool(request.stop))
        self.matcher = None if request.matcher is None else request.matcher.copy()

    def add(self, token: int, logprob: float, top: Top = ()) -> Event:
        """Take in a new token."""
        result, rules = self.result, self.request.rules
        result.ids.append(token)
        result.logprobs.append(logprob)
        if self.request.logprobs is not None:
            result.top.append(top)
        self.seen.append(token)
        whole = token not in rules.eos and self.matcher is not None and self.matcher.take(token)
        reason = "eos" if token in rules.eos else "stop" if whole else None
        if reason is None and len(result.ids) == rules.max_new_tokens:
            reason = "length"
        piece = ""
        if self.pieces:
            assert self.detokenizer is not None
            piece, stopped = self.detokenizer.add(result.ids, reason is not None)
            reason = "stop" if stopped else reason
        if reason is not None:
            self._finish(reason)
        ended = None if reason is None else result
        return Event(self.index, token, logprob, piece, reason, ended, self.choice, top)

    def fail(self) -> Event:
        """End, for no token may follow."""
        written = None if self.detokenizer is None else self.detokenizer.decode(self.result.ids)
        error = dead_end() if self.matcher is None else self.matcher.dead_end(written)
        held = self.pieces and self.detokenizer is not None and self.result.ids
        piece = self.detokenizer.add(self.result.ids, True)[0] if held and self.detokenizer is not None else ""
        self._finish("error")
        return Event(self.index, -1, 0.0, piece, "error", self.result, self.choice, error=error)

    def _finish(self, reason: str) -> None:
        self.result.reason = reason
        if self.detokenizer is not None:
            self.result.text = self.detokenizer.text if self.pieces else self.detokenizer.decode(self.result.ids)


class Batch:
    """Rows that are decoded together. `pieces`: events carry text; `kind`: of the session, where the first
    requests do not show it. The caller sets inference and eval mode."""

    def __init__(self, model: Model, pieces: bool, kind: type[Session] | None = None) -> None:
        self.model, self.pieces, self.kind = model, pieces, kind
        self.rows: list[Row] = []
        self.session: Session | None = None
        self.tokens: Tensor | None = None  # drawn, but not yet read (B)

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, requests: Sequence[tuple[int, GenerationRequest]]) -> None:
        """Read the prompts of requests, each with the index that its events carry. A prompt is read once, and each of
        its choices becomes a row."""
        self._read_tokens()
        reported = [(i, r) for i, r in requests if r.prompt_logprobs is not None]
        plain = [(i, r) for i, r in requests if r.prompt_logprobs is None]
        if plain:
            self._take(self._begin([r for _, r in plain]))
            self._join(plain)
        for i, request in reported:
            session, report = read_aloud(partial(self._begin, [request]), request)
            self._take(session)
            for row in self._join([(i, request)]):
                row.result.prompt_logprobs, row.result.prompt_top = report

    def _begin(self, asked: Sequence[GenerationRequest], first: int | None = None) -> Session:
        """A session of new rows that has read their prompts, or the `first` tokens of them."""
        prompts = [r.prompt[:first] for r in asked]
        room = [r.rules.max_new_tokens + len(r.prompt) - len(p) for r, p in zip(asked, prompts, strict=True)]
        starts = [r.start for r in asked if r.start is not None] or None
        kind = self.kind if self.session is None else type(self.session)
        return begin(self.model, prompts, room, [r.language for r in asked], starts, kind)

    def _take(self, new: Session) -> None:
        if self.session is None:
            self.session = new
        else:
            self.session.take(new)

    def _join(self, requests: Sequence[tuple[int, GenerationRequest]]) -> list[Row]:
        """The rows of requests whose prompts the session has just read."""
        assert self.session is not None
        copies = [len(self.rows) + k for k, (_, r) in enumerate(requests) for _ in range(r.width)]
        if len(copies) > len(requests):
            self.session.keep([*range(len(self.rows)), *copies])
        new = [Row(self.model, i, r, self.pieces, choice) for i, r in requests for choice in range(r.width)]
        self.rows += new
        return new

    def step(self) -> list[Event]:
        """A token for every row, in the order in which they joined. Rows that end leave the batch."""
        self._read_tokens()
        assert self.session is not None
        logits = self.session.logits
        scores = constrained(logits, [(r.request.rules, r.seen, len(r.result.ids)) for r in self.rows])
        scores = guided(scores, self.rows)
        dead = (scores.amax(1) == -torch.inf).tolist()
        if any(dead):  # their draw counts for nothing
            scores = torch.where(torch.tensor(dead, device=scores.device)[:, None], logits, scores)
        tokens = draw(scores, [r.request.sampler for r in self.rows], [r.generator for r in self.rows])
        logprobs = logits.log_softmax(-1)
        own = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
        top = likeliest(logprobs, [r.request.logprobs or 0 for r in self.rows])
        events = [
            row.fail() if dead[i] else row.add(token, own[i], top[i])
            for i, (row, token) in enumerate(zip(self.rows, tokens.tolist(), strict=True))
        ]
        stay = [i for i, event in enumerate(events) if event.reason is None]
        if not stay:
            self.session = None
        elif len(stay) < len(self.rows):
            self.session.keep(stay)
            tokens = tokens[stay]
        self.rows = [self.rows[i] for i in stay]
        self.tokens = tokens if stay else None
        return events

    def drop(self, indices: Sequence[int]) -> None:
        """Rows with these indices leave the batch."""
        stay = [i for i, row in enumerate(self.rows) if row.index not in indices]
        if len(stay) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in stay]
        if not stay:
            self.session = self.tokens = None
            return
        assert self.session is not None
        self.session.keep(stay)
        self.tokens = None if self.tokens is None else self.tokens[stay]

    def _read_tokens(self) -> None:
        if self.tokens is not None and self.session is not None:
            self.session.step(self.tokens)
        self.tokens = None


def likeliest(logprobs: Tensor, wanted: Sequence[int]) -> list[Top]:
    """The likeliest tokens of each row of `logprobs` (B V), as many as it wants."""
    most = max(wanted)
    if not most:
        return [()] * len(wanted)
    best = logprobs.topk(most)
    pairs = zip(best.indices.tolist(), best.values.tolist(), wanted, strict=True)
    return [tuple(zip(ids[:n], values[:n], strict=True)) for ids, values, n in pairs]


def guided(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """Scores (B V) after the guides of rows."""
    bound = [(i, row, row.matcher) for i, row in enumerate(rows) if row.matcher is not None]
    if not bound:
        return scores
    allowed = torch.ones(scores.shape, dtype=torch.bool)
    for i, row, matcher in bound:
        allowed[i] = matcher.allowed(row.request.rules.eos)
    return scores.masked_fill(~allowed.to(scores.device), -torch.inf)


def read_aloud(
    begun: Callable[[int], Session], request: GenerationRequest
) -> tuple[Session, tuple[list[float | None], list[Top]]]:
    """A session that has read a prompt, and what it thought of each token. `begun(n)` has read `n` tokens of it."""
    session, prompt, most = begun(1), request.prompt, request.prompt_logprobs or 0
    own: list[float | None] = [None]
    top: list[Top] = [()]
    before = session.logits[:, None]
    for at in range(1, len(prompt), CHUNK):
        tokens = prompt[at : at + CHUNK]
        logits = session.extend([tokens])
        logprobs = torch.cat([before, logits[:, :-1]], 1)[0].log_softmax(-1)
        before = logits[:, -1:]
        own += logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
        top += likeliest(logprobs, [most] * len(tokens))
    return session, (own, top)
