"""The rows of one running batch: requests join, draw a token a step each, and leave when their texts end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stemma.decoding.detokenizer import Detokenizer
from stemma.decoding.requests import GenerationRequest
from stemma.decoding.rules import constrained
from stemma.decoding.sampling import draw
from stemma.decoding.session import Session
from stemma.decoding.sessions import begin
from stemma.nn.model import Model


@dataclass
class Result:
    """A continuation: its new token ids, their text (None without a tokenizer), the log-probability that the model
    gave each (before any temperature), and why it ended: `"eos"`, `"stop"` or `"length"`. `seed`: what its drawing
    began with; alone and with this seed the prompt gets this text again."""

    ids: list[int] = field(default_factory=list)
    text: str | None = None
    logprobs: list[float] = field(default_factory=list)
    reason: str = "length"
    seed: int = field(default=0, repr=False, compare=False)


@dataclass(frozen=True)
class Event:
    """One new token of a row (the prompt's index). `text`: new whole characters, of this token and perhaps of earlier
    ones ("" while none is complete, and without a tokenizer). `reason` and `result` come with the row's last token."""

    row: int
    token: int
    logprob: float
    text: str = ""
    reason: str | None = None
    result: Result | None = None


class Row:
    """One request in the batch."""

    def __init__(self, model: Model, index: int, request: GenerationRequest, pieces: bool) -> None:
        self.index, self.request = index, request
        self.seen = request.written
        self.result = Result(seed=request.seed)
        self.generator = torch.Generator().manual_seed(request.seed)
        known = model.tokenizer is not None
        self.detokenizer = Detokenizer(model, request.prompt, request.stop) if known else None
        self.pieces = known and (pieces or bool(request.stop))

    def add(self, token: int, logprob: float) -> Event:
        """Take in a new token."""
        result, rules = self.result, self.request.rules
        result.ids.append(token)
        result.logprobs.append(logprob)
        self.seen.append(token)
        reason = "eos" if token in rules.eos else "length" if len(result.ids) == rules.max_new_tokens else None
        piece = ""
        if self.pieces:
            assert self.detokenizer is not None
            piece, stopped = self.detokenizer.add(result.ids, reason is not None)
            reason = "stop" if stopped else reason
        if reason is None:
            return Event(self.index, token, logprob, piece)
        result.reason = reason
        if self.detokenizer is not None:
            result.text = self.detokenizer.text if self.pieces else self.detokenizer.decode(result.ids)
        return Event(self.index, token, logprob, piece, reason, result)


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
        """Read the prompts of requests, each with the index that its events carry."""
        self._read_tokens()
        asked = [request for _, request in requests]
        prompts, room = [r.prompt for r in asked], [r.rules.max_new_tokens for r in asked]
        languages, starts = [r.language for r in asked], [r.start for r in asked if r.start is not None] or None
        if self.session is None:
            self.session = begin(self.model, prompts, room, languages, starts, self.kind)
        else:
            self.session.admit(prompts, room, languages, starts)
        self.rows += [Row(self.model, i, request, self.pieces) for i, request in requests]

    def step(self) -> list[Event]:
        """A token for every row, in the order in which they joined. Rows that end leave the batch."""
        self._read_tokens()
        assert self.session is not None
        logits = self.session.logits
        scores = constrained(logits, [(r.request.rules, r.seen, len(r.result.ids)) for r in self.rows])
        tokens = draw(scores, [r.request.sampler for r in self.rows], [r.generator for r in self.rows])
        logprobs = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].tolist()
        events = [
            row.add(token, logprob) for row, token, logprob in zip(self.rows, tokens.tolist(), logprobs, strict=True)
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
