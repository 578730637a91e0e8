"""What decoding hands out: the events of a text that is being written, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stemma.errors import UsageError

Top = tuple[tuple[int, float], ...]  # the likeliest tokens of a place and their log-probabilities, the likeliest first


@dataclass
class Result:
    """A continuation: its new token ids, their text (None without a tokenizer), the log-probability that the model
    gave each (before rules and temperature), and why it ended: `"eos"`, `"stop"` or `"length"`. `seed`: what its
    drawing began with; alone and with this seed the prompt gets this text again. `top`: where `logprobs` were asked
    for, the likeliest tokens at the place of each token. `prompt_logprobs`, `prompt_top`: the same of the prompt's
    tokens, where they were asked for; the first one has no log-probability. `sampled_logprobs`: where they were asked
    for, what each token had in the distribution that it was drawn from. `others`: the other choices, where a prompt has
    several."""

    ids: list[int] = field(default_factory=list)
    text: str | None = None
    logprobs: list[float] = field(default_factory=list)
    reason: str = "length"
    seed: int = field(default=0, repr=False, compare=False)
    top: list[Top] = field(default_factory=list, repr=False)
    prompt_logprobs: list[float | None] = field(default_factory=list, repr=False)
    prompt_top: list[Top] = field(default_factory=list, repr=False)
    sampled_logprobs: list[float] = field(default_factory=list, repr=False)
    others: list[Result] = field(default_factory=list, repr=False)

    @property
    def choices(self) -> list[Result]:
        """All texts of the prompt: this one, and the others."""
        return [self, *self.others]


@dataclass(frozen=True)
class Event:
    """One new token of a row (the prompt's index), and of which of its choices. `text`: new whole characters, of this
    token and perhaps of earlier ones ("" while none is complete, and without a tokenizer). `reason` and `result` come
    with the last token of a text. `top`: see `Result`. A text that cannot go on has an event with the reason "error",
    the token -1 and the `error`; its result is what was written before."""

    row: int
    token: int
    logprob: float
    text: str = ""
    reason: str | None = None
    result: Result | None = None
    choice: int = 0
    top: Top = ()
    error: UsageError | None = None


def gathered(written: Mapping[int, Result], n: int) -> Result:
    """The result of a prompt from its written choices. Where more than `n` were written, the best are kept: those with
    the highest mean log-probability, the best first."""
    choices = [written[i] for i in sorted(written)]
    if len(choices) > n:
        choices = sorted(choices, key=lambda r: -sum(r.logprobs) / max(len(r.logprobs), 1))[:n]
    first = choices[0]
    first.others = choices[1:]
    return first
