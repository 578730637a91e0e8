"""The rows of one running batch: requests join, draw a token a step each, and leave when their texts end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stemma.decoding.detokenizer import Detokenizer
from stemma.decoding.requests import GenerationRequest
from stemma.decoding.results import Event, Result, Top
from stemma.decoding.rules import constrained, dead_end
from stemma.decoding.sampling import choice_seed, draw
from stemma.decoding.session import Session
from stemma.decoding.sessions import begin
from stemma.errors import NotFinite, UsageError
from stemma.nn.model import Model


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

    def add(self, token: int, logprob: float, top: Top = ()) -> Event:
        """Take in a new token."""
        result, rules = self.result, self.request.rules
        result.ids.append(token)
        result.logprobs.append(logprob)
        if self.request.logprobs is not None:
            result.top.append(top)
        self.seen.append(token)
        reason = "eos" if token in rules.eos else "length" if len(result.ids) == rules.max_new_tokens else None
        piece = ""
        if self.pieces:
            assert self.detokenizer is not None
            piece, stopped = self.detokenizer.add(result.ids, reason is not None)
            reason = "stop" if stopped else reason
        if reason is not None:
            self._finish(reason)
        ended = None if reason is None else result
        return Event(self.index, token, logprob, piece, reason, ended, self.choice, top)

    def fail(self, error: UsageError) -> Event:
        """End without another token."""
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
        asked = [request for _, request in requests]
        prompts, room = [r.prompt for r in asked], [r.rules.max_new_tokens for r in asked]
        languages, starts = [r.language for r in asked], [r.start for r in asked if r.start is not None] or None
        if self.session is None:
            new = begin(self.model, prompts, room, languages, starts, self.kind)
        else:
            new = type(self.session)(self.model, prompts, room, languages, starts)
        self.join(requests, new)

    def join(self, requests: Sequence[tuple[int, GenerationRequest]], new: Session) -> None:
        """Take the rows of a session that has read these requests' prompts."""
        self.read_tokens()
        copies = [i for i, (_, request) in enumerate(requests) for _ in range(request.width)]
        if len(copies) > len(requests):
            new.keep(copies)
        if self.session is None:
            self.session = new
        else:
            self.session.take(new)
        self.rows += [Row(self.model, i, r, self.pieces, choice) for i, r in requests for choice in range(r.width)]

    def step(self) -> list[Event]:
        """A token for every row, in the order in which they joined. Rows that end leave the batch."""
        self.read_tokens()
        assert self.session is not None
        logits = self.session.logits
        scores = constrained(logits, [(r.request.rules, r.seen, len(r.result.ids)) for r in self.rows])
        dead = (scores.amax(1) == -torch.inf).tolist()
        if any(dead):  # their draw counts for nothing
            scores = torch.where(torch.tensor(dead, device=scores.device)[:, None], logits, scores)
        tokens = draw(scores, [r.request.sampler for r in self.rows], [r.generator for r in self.rows])
        logprobs = logits.log_softmax(-1)
        own = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
        top = likeliest(logprobs, [r.request.logprobs or 0 for r in self.rows])
        events = [
            row.fail(dead_end()) if dead[i] else row.add(token, own[i], top[i])
            for i, (row, token) in enumerate(zip(self.rows, tokens.tolist(), strict=True))
        ]
        self.tokens = tokens
        self._keep([i for i, event in enumerate(events) if event.reason is None])
        return events

    def drop(self, indices: Sequence[int], whole: bool = True) -> None:
        """Rows with these indices leave the batch; with `whole=False` because of an error."""
        self._keep([i for i, row in enumerate(self.rows) if row.index not in indices], whole)

    def read_tokens(self) -> None:
        """Read the tokens that were drawn. Where this fails, `tokens` are there still if it may be tried again."""
        tokens, self.tokens = self.tokens, None
        if tokens is None or self.session is None:
            return
        try:
            self.session.step(tokens)
        except NotFinite:
            raise
        except Exception:
            self.tokens = tokens if self.session.undo() else None
            raise

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
