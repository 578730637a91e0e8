"""Speculative decoding: a few next tokens are guessed, read by the model in one pass, and kept as far as the model
agrees (Leviathan et al. 2023). What is written has the distribution that it has without guesses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.decoding.inputs import evaluating
from stemma.decoding.requests import GenerationRequest
from stemma.decoding.sampling import Draft, Lookup, Sampler, choice_seed
from stemma.decoding.session import Session
from stemma.decoding.sessions import begin


class Guess(NamedTuple):
    """A token that may come next. `share` (V): the probabilities that it was drawn from; None: it was not drawn."""

    token: int
    share: Tensor | None = None


def accepted(scores: Tensor, guess: Guess, sampler: Sampler, generator: torch.Generator) -> int:
    """The token at the place of a guess x that was drawn from q, where the model's scores (V, before temperature) give
    p: x with the probability min(1, p(x) / q(x)), else one drawn from max(0, p - q), made a distribution (Leviathan et
    al. 2023, section 2.3)."""
    assert guess.share is not None
    p, q = sampler.scores(scores[None])[0].softmax(-1).cpu(), guess.share
    if torch.rand((), generator=generator) * q[guess.token] < p[guess.token]:
        return guess.token
    return int(torch.multinomial((p - q).clamp(min=0.0), 1, generator=generator))


class Guesser:
    """What guesses for one text."""

    def __call__(self, seen: Sequence[int], most: int, sampler: Sampler) -> list[Guess]:
        """At most `most` guesses behind the tokens of a text so far."""
        raise NotImplementedError


def guesser(request: GenerationRequest, seed: int, vocab: int) -> Guesser | None:
    """What guesses for a text of a request, if it asks for guesses. `seed`: of the text; `vocab`: of the model."""
    match request.speculate:
        case Lookup() as how:
            return Found(how, request.prompt if request.answers else [])
        case Draft() as how:
            return Drafted(how, request, seed, vocab)
        case _:
            return None


class Found(Guesser):
    """Guesses from earlier in the text, or in what is `before` it: where its last tokens stood last, what followed
    there. A guess that is no draw is taken where the model draws the same token, so that a seed gives the same text as
    without guesses."""

    def __init__(self, how: Lookup, before: Sequence[int]) -> None:
        self.how, self.before = how, list(before)
        self.known: dict[tuple[int, ...], int] = {}  # runs of tokens, and where the last of each ends
        self.done = 0

    def __call__(self, seen: Sequence[int], most: int, sampler: Sampler) -> list[Guess]:
        text = [*self.before, *seen]
        lengths = range(self.how.shortest, self.how.ngram + 1)
        for end in range(self.done + 1, len(text)):
            self.known |= {tuple(text[end - n : end]): end for n in lengths if end >= n}
        self.done = len(text) - 1
        runs = (tuple(text[len(text) - n :]) for n in reversed(lengths) if len(text) >= n)
        at = next((self.known[run] for run in runs if run in self.known), len(text))
        return [Guess(token) for token in text[at : at + most]]


class Drafted(Guesser):
    """Guesses by a smaller model, drawn from its own distribution by the request's own sampler. Its session has one
    row, so that guesses do not depend on other texts."""

    def __init__(self, how: Draft, request: GenerationRequest, seed: int, vocab: int) -> None:
        self.model, self.request, self.vocab = how.model, request, vocab
        self.generator = torch.Generator().manual_seed(choice_seed(seed, -1))
        self.session: Session | None = None
        self.read = list(request.written)  # what the session has read

    def __call__(self, seen: Sequence[int], most: int, sampler: Sampler) -> list[Guess]:
        assert self.model.decoder is not None
        limit = self.model.decoder.position.limit
        if limit is not None and len(seen) + self.model.ahead > limit:
            return []
        with evaluating(self.model):
            session = self._catch_up(seen)
            most = min(most, session.cache.ring or most)
            guesses: list[Guess] = []
            session.mark()
            while len(guesses) < most and session.fits(1):
                if guesses:
                    self.read.append(guesses[-1].token)
                    session.step(torch.tensor([guesses[-1].token], device=session.device))
                guesses.append(self._draw(session.logits, sampler))
        return guesses

    def _catch_up(self, seen: Sequence[int]) -> Session:
        """The session, which has read the text so far."""
        if self.session is None:
            starts = None if self.request.start is None else [self.request.start]
            self.session = begin(self.model, [self.request.prompt], 0, [self.request.language], starts)
        same = next((i for i, (a, b) in enumerate(zip(self.read, seen, strict=False)) if a != b), len(self.read))
        if same < len(self.read):
            self.session.cut([same], self.session.logits)
        self.session.extend([seen[same:]])
        self.read = list(seen)
        return self.session

    def _draw(self, logits: Tensor, sampler: Sampler) -> Guess:
        logits = logits[:, : self.vocab]
        logits = F.pad(logits, (0, self.vocab - logits.shape[1]), value=-torch.inf)
        if sampler.temperature == 0:
            return Guess(int(logits.argmax()))
        share = sampler.scores(logits)[0].softmax(-1).cpu()
        return Guess(int(torch.multinomial(share, 1, generator=self.generator)), share)
