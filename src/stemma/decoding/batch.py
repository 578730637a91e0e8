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

Report = tuple[list[float | None], list[Top]]  # of each token of a prompt its log-probability, and the likeliest ones
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
        self.read_tokens()
        plain = [(i, r) for i, r in requests if r.prompt_logprobs is None]
        if plain:
            self.join(plain, self._begin([r for _, r in plain]))
        for i, request in requests:
            if request.prompt_logprobs is not None:
                session, report = read_aloud(partial(self._begin, [request]), request)
                self.join([(i, request)], session, report)

    def _begin(self, asked: Sequence[GenerationRequest], first: int | None = None) -> Session:
        """A session of new rows that has read their prompts, or the `first` tokens of them."""
        prompts = [r.prompt[:first] for r in asked]
        room = [r.rules.max_new_tokens + len(r.prompt) - len(p) for r, p in zip(asked, prompts, strict=True)]
        starts = [r.start for r in asked if r.start is not None] or None
        kind = self.kind if self.session is None else type(self.session)
        return begin(self.model, prompts, room, [r.language for r in asked], starts, kind)

    def join(
        self, requests: Sequence[tuple[int, GenerationRequest]], new: Session, report: Report | None = None
    ) -> None:
        """Take the rows of a session that has read these requests' prompts; `report`: what `read_aloud` found."""
        self.read_tokens()
        copies = [i for i, (_, request) in enumerate(requests) for _ in range(request.width)]
        if len(copies) > len(requests):
            new.keep(copies)
        if self.session is None:
            self.session = new
        else:
            self.session.take(new)
        rows = [Row(self.model, i, r, self.pieces, choice) for i, r in requests for choice in range(r.width)]
        for row in rows:
            row.result.prompt_logprobs, row.result.prompt_top = report or ([], [])
        self.rows += rows

    def step(self) -> list[Event]:
        """A token for every row, in the order in which they joined. Rows that end leave the batch."""
        self.read_tokens()
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
        self.tokens = tokens
        self._keep([i for i, event in enumerate(events) if event.reason is None])
        return events

    def drop(self, indices: Sequence[int], whole: bool = True) -> None:
        """Rows with these indices leave the batch; with `whole=False` because of an error."""
        self._keep([i for i, row in enumerate(self.rows) if row.index not in indices], whole)

    def read_tokens(self) -> None:
        """Read the tokens that were drawn. Where this fails, they count as read."""
        tokens, self.tokens = self.tokens, None
        if tokens is not None and self.session is not None:
            self.session.step(tokens)

    def _keep(self, stay: Sequence[int], whole: bool = True) -> None:
        if len(stay) == len(self.rows):
            return
        session = self.session
        assert session is not None
        for i in sorted(set(range(len(self.rows))) - set(stay)):
            session.leave(i, self.rows[i].seen, whole)
        self.rows = [self.rows[i] for i in stay]
        if stay:
            session.keep(stay)
            self.tokens = None if self.tokens is None else self.tokens[list(stay)]
        else:
            session.close()
            self.session = self.tokens = None


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


def read_aloud(begun: Callable[[int], Session], request: GenerationRequest) -> tuple[Session, Report]:
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
