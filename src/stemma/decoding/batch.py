"""The rows of one running batch: requests join, draw a token a step each, and leave when their texts end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from stemma.decoding.detokenizer import Detokenizer
from stemma.decoding.requests import GenerationRequest
from stemma.decoding.results import Event, Result, Top
from stemma.decoding.rules import constrained, dead_end
from stemma.decoding.sampling import choice_seed, draw, sampled_logprobs
from stemma.decoding.session import Session
from stemma.decoding.sessions import begin
from stemma.decoding.speculative import Guess, accepted, guesser
from stemma.errors import NotFinite
from stemma.nn.model import Model

Report = tuple[list[float | None], list[Top]]  # of each token of a prompt its log-probability, and the likeliest ones
WAIT = 0.008  # seconds that a token may wait for others that are computed with it
MOST = 8  # tokens that are computed in one go
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
        self.guesser = guesser(request, self.result.seed, model.dims.vocab)
        greedy = request.sampler.temperature == 0 and not request.logprobs
        self.plain = greedy and request.rules.free and self.matcher is None  # it gets the model's likeliest token

    def guess(self, ring: int | None) -> list[Guess]:
        """What may come after the last token, which is drawn but not read. `ring`: tokens that can be taken back."""
        if self.guesser is None or self.request.speculate is None:
            return []
        left = self.request.rules.max_new_tokens - len(self.result.ids) - 1
        most = min(self.request.speculate.tokens, left, left if ring is None else ring - 1)
        return self.guesser(self.seen, most, self.request.sampler) if most > 0 else []

    def add(self, token: int, logprob: float, top: Top = (), drawn: float = 0.0) -> Event:
        """Take in a new token. `drawn`: its log-probability in the distribution that it was drawn from."""
        result, rules = self.result, self.request.rules
        result.ids.append(token)
        result.logprobs.append(logprob)
        if self.request.sampled_logprobs:
            result.sampled_logprobs.append(drawn)
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
    requests do not show it; `several`: a step may give several tokens of each row. The caller sets inference and eval
    mode."""

    def __init__(self, model: Model, pieces: bool, kind: type[Session] | None = None, several: bool = False) -> None:
        self.model, self.pieces, self.kind, self.several = model, pieces, kind, several
        self.pace = math.inf  # seconds of a step
        self.rows: list[Row] = []
        self.session: Session | None = None
        self.tokens: list[int] | None = None  # drawn, but not yet read: of all rows but those that have just joined

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
                session, report = read_with_logprobs(partial(self._begin, [request]), request)
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
        """Take the rows of a session that has read these requests' prompts; `report`: of `read_with_logprobs`."""
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
        """A token for every row, in the order in which they joined; where a row's next tokens were guessed, as many as
        the guesses are right for, and one more. Rows that end leave the batch."""
        assert self.session is not None
        events = [] if self.tokens is None else self._begin_rows(len(self.tokens))
        if any(event.reason is not None for event in events):  # the rows that are read are those of the next step
            return events
        if self.tokens is not None and self._guessing:
            ring = self.session.cache.ring
            guesses = [row.guess(ring) for row in self.rows]
            if any(guesses):
                return events + self._verify(self.tokens, guesses)
        if self.tokens is not None and (count := self._count()) > 1:
            return events + self._go_ahead(self.tokens, count)
        self._read()
        new = self._choose(range(len(self.rows)), self.session.logits, [None] * len(self.rows))
        self._go_on(new)
        return events + new

    def _count(self) -> int:
        """How many tokens of each row are computed in one go: what is written in WAIT seconds, where all rows get the
        likeliest tokens."""
        assert self.session is not None
        if not self.several or not all(row.plain and row.guesser is None for row in self.rows):
            return 1
        left = min(row.request.rules.max_new_tokens - len(row.result.ids) for row in self.rows)
        return min(left, MOST, int(WAIT / self.pace)) if self.session.goes_ahead else 1

    def _go_ahead(self, tokens: Sequence[int], count: int) -> list[Event]:
        """Several steps in one go. What comes behind the end of a row counts for nothing."""
        assert self.session is not None
        self.tokens = None
        began = time.perf_counter()
        found = self.session.steps(tokens, count)
        self.pace = (time.perf_counter() - began) / len(found)
        events: list[Event] = []
        last: dict[int, Event] = {}
        going = list(range(len(self.rows)))
        for step in found:
            for i in going:
                last[i] = self.rows[i].add(step.tokens[i], step.logprobs[i])
                events.append(last[i])
            going = [i for i in going if last[i].reason is None]
        self._go_on([last[i] for i in range(len(self.rows))])
        return events

    @property
    def _guessing(self) -> bool:
        return any(row.guesser is not None for row in self.rows)

    def _begin_rows(self, first: int) -> list[Event]:
        """The first tokens of the rows from `first` on, which joined beside tokens that are still to be read."""
        if first == len(self.rows):
            return []
        assert self.session is not None and self.tokens is not None
        at = range(first, len(self.rows))
        new = self._choose(at, self.session.logits[first:], [None] * len(at))
        self.tokens = [*self.tokens, *(event.token for event in new)]
        self._keep([*range(first), *(i for i, event in zip(at, new, strict=True) if event.reason is None)])
        return new

    def _verify(self, pending: Sequence[int], guesses: Sequence[list[Guess]]) -> list[Event]:
        """Read the tokens that were drawn and the guesses behind them, and keep the guesses that are what is chosen."""
        session, rows = self.session, range(len(self.rows))
        assert session is not None
        self.tokens = None
        before = session.lengths.tolist()
        session.mark()
        try:
            logits = session.extend([[t, *(g.token for g in own)] for t, own in zip(pending, guesses, strict=True)])
        except NotFinite as error:  # guesses are not read
            session.cut([n + 1 for n in before], error.logits[:, 0])
            raise
        last: dict[int, Event] = {}
        events: list[Event] = []
        going, counts = list(rows), [0] * len(rows)
        while going:
            at = counts[going[0]]
            these = [guesses[i][at] if at < len(guesses[i]) else None for i in going]
            new = self._choose(going, logits[going, at], these)
            events += new
            for i, event in zip(going, new, strict=True):
                last[i], counts[i] = event, at + 1
            going = [
                i
                for i, event in zip(going, new, strict=True)
                if event.reason is None and at < len(guesses[i]) and event.token == guesses[i][at].token
            ]
        kept = torch.tensor(counts, device=logits.device)
        session.cut([n + c for n, c in zip(before, counts, strict=True)], logits[list(rows), kept - 1])
        self._go_on([last[i] for i in rows])
        return events

    def _choose(self, at: Sequence[int], logits: Tensor, guesses: Sequence[Guess | None]) -> list[Event]:
        """A token for each of some rows, from their logits (B V), where there may be a guess at it."""
        rows = [self.rows[i] for i in at]
        assert self.session is not None
        found = self.session.likeliest(logits)
        if found is not None and all(row.plain for row in rows):
            return [row.add(t, p) for row, t, p in zip(rows, found.tokens, found.logprobs, strict=True)]
        scores = constrained(logits, [(r.request.rules, r.seen, len(r.result.ids)) for r in rows])
        scores = guided(scores, rows)
        free = scores is logits  # no rule excludes a token
        dead = [False] * len(rows) if free else (scores.amax(1) == -torch.inf).tolist()
        if any(dead):  # their draw counts for nothing
            scores = torch.where(torch.tensor(dead, device=scores.device)[:, None], logits, scores)
        tokens = chosen(scores, rows, guesses)
        drawn = [0.0] * len(rows)
        if any(row.request.sampled_logprobs for row in rows):
            drawn = sampled_logprobs(scores, [row.request.sampler for row in rows], tokens)
        logprobs = logits.log_softmax(-1)
        own = logprobs.gather(1, tokens[:, None])[:, 0]
        told = torch.stack([tokens.double(), own.double()], 1).tolist()  # both are exact, and the device waits once
        top = likeliest(logprobs, [r.request.logprobs or 0 for r in rows])
        return [
            row.fail() if dead[i] else row.add(int(token), logprob, top[i], drawn[i])
            for i, (row, (token, logprob)) in enumerate(zip(rows, told, strict=True))
        ]

    def _go_on(self, events: Sequence[Event]) -> None:
        """After the last event of each row: rows that ended leave, the tokens of the others are to be read."""
        self.tokens = [event.token for event in events]
        self._keep([i for i, event in enumerate(events) if event.reason is None])

    def drop(self, indices: Sequence[int], whole: bool = True) -> None:
        """Rows with these indices leave the batch; with `whole=False` because of an error."""
        self._keep([i for i, row in enumerate(self.rows) if row.index not in indices], whole)

    def read_tokens(self) -> None:
        """Read the tokens that were drawn, as is done before others join; where a row guesses, they are read together
        with its guesses later. Where this fails, `tokens` are there still if it may be tried again."""
        if not self._guessing:
            self._read()

    def _read(self) -> None:
        tokens, self.tokens = self.tokens, None
        if tokens is None or self.session is None:
            return
        began = time.perf_counter()
        try:
            self.session.step(tokens)
            self.pace = time.perf_counter() - began
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
            self.tokens = None if self.tokens is None else [self.tokens[i] for i in stay if i < len(self.tokens)]
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


def chosen(scores: Tensor, rows: Sequence[Row], guesses: Sequence[Guess | None]) -> Tensor:
    """A token for each row (B) from scores (B V). A guess that was drawn is taken or replaced; any other is none."""
    drawn = [i for i, g in enumerate(guesses) if g is not None and g.share is not None]
    plain = [i for i in range(len(rows)) if i not in drawn]
    samplers, generators = [r.request.sampler for r in rows], [r.generator for r in rows]
    if not drawn:
        return draw(scores, samplers, generators)
    tokens = torch.empty(len(rows), dtype=torch.int64, device=scores.device)
    if plain:
        tokens[plain] = draw(scores[plain], [samplers[i] for i in plain], [generators[i] for i in plain])
    for i in drawn:
        guess = guesses[i]
        assert guess is not None
        tokens[i] = accepted(scores[i], guess, samplers[i], generators[i])
    return tokens


def guided(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """Scores (B V) after the guides of rows."""
    bound = [(i, row, row.matcher) for i, row in enumerate(rows) if row.matcher is not None]
    if not bound:
        return scores
    allowed = torch.ones(scores.shape, dtype=torch.bool)
    for i, row, matcher in bound:
        allowed[i] = matcher.allowed(row.request.rules.eos)
    return scores.masked_fill(~allowed.to(scores.device), -torch.inf)


def read_with_logprobs(
    begun: Callable[[int], Session], request: GenerationRequest, chunk: int = CHUNK
) -> tuple[Session, Report]:
    """A session that has read a prompt, at most `chunk` tokens at once, and what it thought of each token. `begun(n)`
    has read `n` tokens of it."""
    session, prompt, most = begun(1), request.prompt, request.prompt_logprobs or 0
    own: list[float | None] = [None]
    top: list[Top] = [()]
    before = session.logits[:, None]
    for at in range(1, len(prompt), chunk):
        tokens = prompt[at : at + chunk]
        logits = session.extend([tokens])
        logprobs = torch.cat([before, logits[:, :-1]], 1)[0].log_softmax(-1)
        before = logits[:, -1:]
        own += logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
        top += likeliest(logprobs, [most] * len(tokens))
    return session, (own, top)
