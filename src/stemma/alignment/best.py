"""Best-of-n: of several answers to a prompt the one with the highest reward (Nakano et al. 2021, arXiv:2112.09332).

    best_of(model, prompts, reward, n=16)     # a `Pick` a prompt: the answers, their rewards, and which is the best

The divergence of such answers from the model's own is at most `kl_bound(n)` nats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stemma.conversations import Turn, comparisons, prompt_ids, shapes, templates
from stemma.data import random as draw
from stemma.data import read
from stemma.data.files import ROWS
from stemma.decoding import Result, generate
from stemma.decoding.sampling import SamplingParams
from stemma.errors import DataError, UsageError
from stemma.instruct.writers import Continuation, Sampling, prompt_of
from stemma.nn.model import Model

PURPOSE = 0xB0F  # of the draws
# (prompts, an answer to each, the row of each) -> a reward for each
Score = Callable[[Sequence["Prompt"], Sequence[str], Sequence[Mapping[str, Any]]], Sequence[float]]


@dataclass(frozen=True)
class Prompt:
    """Turns whose next answer is wanted, and the row that they are from."""

    turns: tuple[Turn, ...]
    row: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def text(self) -> str:
        """What the user said last."""
        return self.turns[-1].content

    @property
    def messages(self) -> list[dict[str, Any]]:
        """As rows of data have them."""
        return shapes.Conversation(self.turns).messages


@dataclass(frozen=True)
class Pick:
    """Answers to one prompt, their rewards (none where the prompt leaves no room for an answer), and the index of the
    best; None where no answer came to its end."""

    answers: tuple[Continuation, ...]
    rewards: tuple[float, ...]
    best: int | None

    @property
    def text(self) -> str | None:
        """The best answer."""
        return None if self.best is None else self.answers[self.best].text


def kl_bound(n: int) -> float:
    """The most nats by which the best of `n` diverges from the model's own distribution: log n - (n - 1) / n (Stiennon
    et al. 2020, arXiv:2009.01325; an upper bound: Beirami et al. 2024, arXiv:2401.01879)."""
    if n < 1:
        raise UsageError(f"best of n needs n of at least 1, not {n}")
    return math.log(n) - (n - 1) / n


def prompt(row: Mapping[str, Any]) -> Prompt:
    """The prompt of a row: its turns up to the last answer, which may be missing. Raises DataError for a row that asks
    nothing."""
    return Prompt(comparisons.asked(row).turns, row)


def prompts(source: str) -> list[Prompt]:
    """The prompts of rows. Raises DataError for a row without one, naming its place, and where there are none."""
    found = []
    for document in read(source, field=ROWS).documents():
        try:
            found.append(prompt(json.loads(document.text)))
        except DataError as error:
            raise DataError(f"{document.name}: {error}") from None
    if not found:
        raise DataError(f"{source} has no rows")
    return found


class Sampler:
    """Draws several answers to a prompt from a decoder on this machine; the prompt is read once. `template`: of
    conversations, where it is not the model's own; `batch`: rows at a time. Raises UsageError for a model that answers
    no conversation."""

    def __init__(self, model: Model, name: str, template: str | None = None, batch: int = 32) -> None:
        if model.tokenizer is None:
            raise UsageError(f"{name} has no tokenizer, and writing needs one")
        if model.arch.structure != "decoder":
            raise UsageError(f"{name} is an {model.arch.structure}, and conversations are answered by decoders")
        self.model, self.name, self.batch = model, name, batch
        self.writer = templates.writer(model.tokenizer, template)

    def draw(
        self, asked: Sequence[Sequence[Turn]], n: int, how: Sampling, seeds: Sequence[int]
    ) -> list[list[Continuation]]:
        """`n` answers to each conversation. One without room for `how.tokens` new tokens (or half of the context) gets
        answers that do not fit."""
        context = self.model.dims.context
        tokens = min(how.tokens, context // 2)
        ids = [prompt_ids(self.model.tokenizer, prompt_of(self.writer, list(turns))) for turns in asked]
        fits = [i for i, one in enumerate(ids) if len(one) + tokens <= context]
        found = [[Continuation("", False, fits=False)] * n for _ in ids]
        stops = tuple(dict.fromkeys([*how.stops, *self.writer.stops()]))
        params = [
            SamplingParams(
                max_new_tokens=tokens, temperature=how.temperature, top_k=0, top_p=how.top_p, stop=stops, num_beams=1,
                n=n, seed=seeds[i],
            )
            for i in fits
        ]  # fmt: skip
        if fits:
            made = generate(self.model, [ids[i] for i in fits], params, batch=max(n, self.batch))
            for i, result in zip(fits, made, strict=True):
                found[i] = [Continuation((r.text or "").strip(), r.reason != "length") for r in result.choices]
        return found


def picks(
    sampler: Sampler, asked: Sequence[Prompt], score: Score, n: int, how: Sampling, seeds: Sequence[int]
) -> list[Pick]:
    """For each prompt `n` answers, and which has the highest reward; of equal ones the first. An answer that is empty
    or was cut at the most tokens has a reward and is never the best. Raises DataError for a reward that is no number.
    """
    drawn = sampler.draw([one.turns for one in asked], n, how, seeds)
    flat = [(one, own.text) for one, answers in zip(asked, drawn, strict=True) for own in answers if own.fits]
    rewards = iter(rated(score, [one for one, _ in flat], [text for _, text in flat]) if flat else ())
    found = []
    for answers in drawn:
        own = tuple(next(rewards) for answer in answers if answer.fits)
        whole = [i for i, answer in enumerate(answers) if answer.whole and answer.text]
        found.append(Pick(tuple(answers), own, max(whole, key=own.__getitem__, default=None)))
    return found


def rated(score: Score, asked: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
    """The rewards of answers, checked: as many as there are answers, each a finite number. Raises DataError."""
    found = [float(value) for value in score(asked, answers, [one.row for one in asked])]
    if len(found) != len(answers):
        raise DataError(f"the reward gave {len(found)} numbers for {len(answers)} answers")
    if (odd := next((i for i, value in enumerate(found) if not math.isfinite(value)), None)) is not None:
        raise DataError(f"the reward of {answers[odd][:60]!r} is {found[odd]}, and a finite number was expected")
    return found


def ranked(results: Sequence[Result], texts: Sequence[str], score: Score, keep: int = 1) -> list[Result]:
    """Of each result's choices the `keep` with the highest reward, the best first; of equal ones the earlier. `texts`:
    the prompts."""
    asked = [_prompt(text) for text in texts]
    flat = [(one, choice) for one, result in zip(asked, results, strict=True) for choice in result.choices]
    rewards = iter(rated(score, [one for one, _ in flat], [choice.text or "" for _, choice in flat]))
    found = []
    for result in results:
        own = [(next(rewards), choice) for choice in result.choices]
        best = [choice for _, choice in sorted(own, key=lambda pair: -pair[0])][:keep]
        best[0].others = best[1:]
        found.append(best[0])
    return found


def best_of(
    model: Model, asked: Sequence[Prompt | str | Sequence[Turn]], score: Score, n: int = 16, *, tokens: int = 256,
    temperature: float = 1.0, top_p: float = 1.0, seed: int = 0, template: str | None = None,
) -> list[Pick]:  # fmt: skip
    """For each prompt (a `Prompt`, what a user says, or turns) the best of `n` answers by `score`. Prompt i draws with
    seeds of its own, so that more prompts change none. Raises UsageError for a model that answers no conversation."""
    given = [_prompt(one) for one in asked]
    if n > 1 and temperature <= 0:
        raise UsageError(f"{n} answers at temperature {temperature} are one and the same: give more")
    seeds = draw.integers((seed, PURPOSE), len(given), 2**31).tolist()
    sampler = Sampler(model, "the model", template)
    return picks(sampler, given, score, n, Sampling(tokens, temperature, top_p), seeds)


def _prompt(one: Prompt | str | Sequence[Turn]) -> Prompt:
    if isinstance(one, Prompt):
        return one
    turns = (Turn("user", one),) if isinstance(one, str) else tuple(one)
    return Prompt(turns, {"prompt": shapes.Conversation(turns).messages})
