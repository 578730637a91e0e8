"""How a tuned model's texts are drawn, and the vote of several (self-consistency: Wang et al. 2022,
arXiv:2203.11171)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from stemma.decoding import generate
from stemma.decoding.sampling import SamplingParams, row_seed
from stemma.errors import DataError, UsageError
from stemma.nn.model import Model
from stemma.tasks.finals import Final, final, vote

ROWS = 16  # that are answered together
TEMPERATURE = 0.7  # of several samples (Singhal et al. 2022)


@dataclass(frozen=True)
class Decoding:
    """One text a row, the likeliest, or `samples` at a `temperature`, of whose final answers the one with the most
    votes is taken. `final`: how an answer is found in a text (a rule of `stemma.tasks.finals`, its word, or a regular
    expression); `tokens`: of a text at most. Raises UsageError for samples that cannot differ, or cannot be put to the
    vote."""

    samples: int = 1
    temperature: float | None = None
    final: Final | str | None = None
    seed: int = 1
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"samples must be at least 1, not {self.samples}")
        if self.samples > 1 and self.temperature is not None and self.temperature <= 0:
            raise UsageError(
                f"{self.samples} samples at temperature {self.temperature} are one and the same: give more"
            )
        if self.samples > 1 and self.final is None:
            raise UsageError(
                f"{self.samples} samples are put to the vote by their final answers: say how one is found "
                "(final: number, letter, text, or a regular expression)"
            )
        if self.final is not None:
            object.__setattr__(self, "final", final(self.final))

    @property
    def plain(self) -> bool:
        """Whether nothing but a seed is asked for."""
        return self == Decoding(seed=self.seed)

    @property
    def rule(self) -> Final | None:
        """How an answer is found."""
        assert not isinstance(self.final, str)
        return self.final

    @property
    def heat(self) -> float:
        """The temperature."""
        return self.temperature if self.temperature is not None else TEMPERATURE if self.samples > 1 else 0.0


def room(model: Model) -> int:
    """The tokens that a model reads behind what stands in front of every text."""
    decoder, ahead = model.decoder, model.prompt.length + model.prefix.length
    limited = decoder is not None and model.encoder is None and decoder.position.limit is not None
    return model.dims.context - (ahead if limited else 0)


def answered(
    model: Model, prompts: Sequence[Sequence[int]], how: Decoding, tokens: int, stops: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """What a model writes for each prompt, in `tokens` at most: {"text"}, with a rule {"text", "answer"} and, of
    several samples, "votes" for each answer. Sample j of row i draws from a seed of its own, so that more change none.
    """
    beams = 1 if stops or how.heat else None  # else as the checkpoint says
    one = SamplingParams(max_new_tokens=tokens, temperature=how.heat, stop=tuple(stops), num_beams=beams)
    seeds = [row_seed(row_seed(how.seed, i), j) for i in range(len(prompts)) for j in range(how.samples)]
    params = [one.changed({"seed": seed}) for seed in seeds]
    repeated = [list(prompt) for prompt in prompts for _ in range(how.samples)]
    texts = [(found.text or "").strip() for found in generate(model, repeated, params, batch=ROWS)]
    groups = [texts[i : i + how.samples] for i in range(0, len(texts), how.samples)]
    return [_answer(group, how) for group in groups]


def _answer(texts: list[str], how: Decoding) -> dict[str, Any]:
    if how.rule is None:
        return {"text": texts[0]}
    found = vote(texts, how.rule)
    answer = {"text": found.text, "answer": found.answer}
    return answer | {"votes": found.counts} if how.samples > 1 else answer


def right_of(text: str, rule: Final) -> str:
    """The final answer that a row's own text gives. Raises DataError where it gives none."""
    if (found := rule.find(text)) is None:
        raise DataError(f"no final answer is found in its target {text[-80:]!r}; give another rule (--final)")
    return found


def measured(wanted: Sequence[str], answers: Sequence[Mapping[str, Any]], how: Decoding) -> dict[str, float]:
    """Share of rows whose final answer is right, and of those that have one; of several samples, the mean share of
    their votes that the answer has."""
    assert how.rule is not None
    count = max(1, len(wanted))
    right = [right_of(text, how.rule) == one["answer"] for text, one in zip(wanted, answers, strict=True)]
    found = {"accuracy": sum(right) / count, "answered": sum(one["answer"] is not None for one in answers) / count}
    if how.samples > 1 and answers:
        found["agreement"] = mean(max(one["votes"].values(), default=0) / how.samples for one in answers)
    return found
