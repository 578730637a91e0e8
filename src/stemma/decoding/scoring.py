"""How likely a model finds given continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stemma.decoding.inputs import answers, check_model, evaluating, generates, language_of
from stemma.decoding.requests import Prompts, encode
from stemma.decoding.session import Session
from stemma.decoding.sessions import begin
from stemma.errors import CheckpointError, UsageError
from stemma.nn.model import Model

LOGITS = 1 << 24  # numbers of logits that are held at once
Text = str | Sequence[int]


@dataclass(frozen=True)
class Score:
    """A continuation: its token ids, the log-probability of each, and whether each is the likeliest at its place."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    greedy: bool

    @property
    def logprob(self) -> float:
        """The log-probability of the whole continuation."""
        return sum(self.logprobs)


def score(
    model: Model,
    prompts: Prompts,
    continuations: Sequence[Sequence[Text]],
    *,
    batch: int = 32,
    language: str | int | None = None,
) -> list[list[Score]]:
    """The log-probabilities of continuations (texts or token ids), some for each prompt (as of `generate`). A prompt is
    read once for all of its continuations; `batch` of them are read at a time. An encoder-decoder's are answers, which
    begin after its start token; no end token is added. Raises UsageError for what cannot be."""
    check_model(model)
    if not generates(model):
        raise UsageError("this model writes no texts, so it has no log-probabilities of continuations")
    if batch < 1:
        raise UsageError(f"batch must be at least 1, not {batch}")
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(continuations) != len(asked) or any(isinstance(own, str) for own in continuations):
        raise UsageError(f"score takes a list of continuations for each of the {len(asked)} prompts")
    texts = [[_ids(model, text) for text in own] for own in continuations]
    parts = [(i, own[at : at + batch]) for i, own in enumerate(texts) for at in range(0, len(own), batch)]
    read, number = [encode(model, prompt) for prompt in asked], language_of(model, language)
    found: list[list[Score]] = [[] for _ in asked]
    with torch.inference_mode(), evaluating(model):
        while parts:
            now = [parts.pop(0)]
            while parts and sum(len(own) for _, own in now) + len(parts[0][1]) <= batch:
                now.append(parts.pop(0))
            scores = _scored(model, [read[i] for i, _ in now], [own for _, own in now], number)
            for i, own in now:
                found[i] += [scores.pop(0) for _ in own]
    return found


def _ids(model: Model, text: Text) -> list[int]:
    if not isinstance(text, str):
        ids = encode(model, text)
    elif model.tokenizer is None:
        raise CheckpointError("a text needs a tokenizer, and this checkpoint came without one")
    elif answers(model):
        ids = model.tokenizer.encode(text, add_special=False)
    else:
        ids = model.tokenizer.encode_continuation(text)
    if wrong := [i for i in ids if not 0 <= i < model.dims.vocab]:
        raise UsageError(f"a continuation holds the token id {wrong[0]}; ids are 0 to {model.dims.vocab - 1}")
    return ids


def _scored(model: Model, prompts: list[list[int]], texts: list[list[list[int]]], language: int | None) -> list[Score]:
    """The scores of texts, those of each prompt side by side."""
    rows = [text for own in texts for text in own]
    room = [max(map(len, own)) for own in texts]
    session = begin(model, prompts, room, [language] * len(prompts))
    session.keep([i for i, own in enumerate(texts) for _ in own])
    tallies = [Tally() for _ in rows]
    alive = list(range(len(rows)))
    before, at = session.logits[:, None], 0  # B T V: of the tokens from `at` on
    while True:
        for logits, i in zip(before, alive, strict=True):
            tallies[i].add(logits, rows[i][at : at + len(logits)])
        at += before.shape[1]
        stay = [k for k, i in enumerate(alive) if len(rows[i]) > at]
        if not stay:
            return [Score(tuple(row), tuple(t.logprobs), t.greedy) for row, t in zip(rows, tallies, strict=True)]
        session.keep(stay)
        alive = [alive[k] for k in stay]
        before = _read(session, [rows[i] for i in alive], at - 1)


def _read(session: Session, rows: Sequence[Sequence[int]], at: int) -> Tensor:
    """Read tokens from place `at` on, but for the last one of each row. Returns the logits after each (B T V)."""
    if not session.EXTENDS:
        return session.step(torch.tensor([row[at] for row in rows], device=session.device))[:, None]
    width = max(1, LOGITS // session.logits.numel())
    return session.extend([row[at : min(at + width, len(row) - 1)] for row in rows])


class Tally:
    """What is known of a continuation so far."""

    def __init__(self) -> None:
        self.logprobs: list[float] = []
        self.greedy = True

    def add(self, logits: Tensor, tokens: Sequence[int]) -> None:
        """The next tokens, and the logits at their places (T V, or more)."""
        if not tokens:
            return
        own, at = logits[: len(tokens)], torch.tensor(tokens, device=logits.device)
        self.logprobs += own.log_softmax(-1).gather(1, at[:, None])[:, 0].tolist()
        self.greedy &= bool((own.argmax(-1) == at).all())
