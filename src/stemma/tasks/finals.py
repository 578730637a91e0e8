"""The final answer in a text, by a rule that is a value, and the answer that most of several texts give."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from stemma.errors import UsageError
from stemma.spec import Spec, require


@dataclass(frozen=True)
class Final(Spec, open=True):
    """How the final answer of a text is found."""

    def find(self, text: str) -> str | None:
        """The answer; None where the text gives none."""
        raise NotImplementedError


@dataclass(frozen=True)
class Number(Final):
    """The last number, without commas between its digits and zeros at its end: `1,200.50` is 1200.5."""

    def find(self, text: str) -> str | None:
        found = re.findall(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?", text)
        if not found:
            return None
        whole, _, part = found[-1].replace(",", "").partition(".")
        sign, digits, part = whole[: whole.startswith("-")], whole.lstrip("-0") or "0", part.rstrip("0")
        number = f"{digits}.{part}" if part else digits
        return number if number == "0" else sign + number


@dataclass(frozen=True)
class Letter(Final):
    """The letter of an option: the last in brackets (`(B)`); else the last behind `answer is`, `answer:` or `option`;
    else the one that the text begins with, if nothing else is of its word."""

    letters: str = "ABCDEFGHIJ"

    def check(self) -> None:
        require(self.letters.isalpha(), f"Letter.letters={self.letters!r} must be letters")

    def find(self, text: str) -> str | None:
        one = f"[{self.letters}]"
        for rule in (
            rf"[(\[]({one})[)\]]",
            rf"(?:answer(?:\s+is)?|option)\s*:?\s*({one})\b",
            rf"\A\s*({one})(?![\w'])(?=\W*$|[.):])",
        ):
            if found := re.findall(rule, text, re.IGNORECASE):
                return str(found[-1]).upper()
        return None


@dataclass(frozen=True)
class Whole(Final):
    """The whole text, without blanks around it."""

    def find(self, text: str) -> str | None:
        return text.strip() or None


@dataclass(frozen=True)
class Pattern(Final):
    """What a regular expression finds last: its first group, or all of it where it has none."""

    pattern: str

    def check(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UsageError(f"{self.pattern!r} is no regular expression: {error}") from None

    def find(self, text: str) -> str | None:
        matches = list(re.finditer(self.pattern, text))
        if not matches:
            return None
        found = matches[-1][1 if matches[-1].re.groups else 0]
        return None if found is None else str(found).strip()


WORDS: dict[str, Final] = {"number": Number(), "letter": Letter(), "text": Whole()}


def final(given: str | Final) -> Final:
    """A rule by its word (`number`, `letter`, `text`), or a regular expression. Raises UsageError for what is none."""
    return given if isinstance(given, Final) else WORDS[given] if given in WORDS else Pattern(given)


@dataclass(frozen=True)
class Vote:
    """The `answer` that most texts give, with its number of `votes`; None where no text gives one. `text`: the first
    that gives it; `counts`: the votes of all answers, in the order in which they came."""

    answer: str | None
    votes: int
    text: str
    counts: dict[str, int] = field(default_factory=dict)


def vote(texts: Sequence[str], rule: Final) -> Vote:
    """The plurality of the final answers (self-consistency: Wang et al. 2022, arXiv:2203.11171). Of answers with as
    many votes, the one that came first wins; texts without an answer have no vote."""
    found = [rule.find(text) for text in texts]
    counts = Counter(answer for answer in found if answer is not None)
    if not counts:
        return Vote(None, 0, texts[0] if texts else "")
    answer = max(counts, key=lambda one: counts[one])  # the first of the most
    return Vote(answer, counts[answer], texts[found.index(answer)], dict(counts))
