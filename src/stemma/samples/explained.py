"""Questions whose answers follow step by step, each with an explanation (Orca, Stable Beluga 2).

Five kinds, one or two for each sub-collection of FLAN: chains of sums (`chain`), days of the week (`days`), letters of
words (`letters`, with a definition in front), who has the most (`most`, multiple choice), amounts in a smaller unit
(`units`). Two teachers answer: `terse` writes the steps as sums, `wordy` as sentences with reasons. An answer ends with
"The answer is X.", so that any text can be checked (`is_right`).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LICENCE = "Apache-2.0"
ROWS, PART = 3000, 5  # rows of the first stage, and which share of them the second has
SHORT, LONG = (1, 3), (4, 6)  # steps of what is learnt, and of longer problems
HELD = 8  # one of so many questions is held out
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus")
THINGS = ("apples", "books", "coins", "pens", "shells")
WORDS = (
    "tree", "green", "seven", "letter", "kettle", "banana", "pepper", "summer", "ladder", "butter", "evening",
    "coffee", "window", "silver", "yellow", "garden", "needle", "rabbit", "bottle", "winter", "dinner", "marble",
    "sleeve", "cheese", "member", "narrow", "ribbon", "supper", "tunnel", "velvet", "mirror", "hammer",
)  # fmt: skip
UNITS = (("minutes", "seconds", 60), ("hours", "minutes", 60), ("weeks", "days", 7), ("years", "months", 12))
# system messages by sub-collection: a stand-in for the 16 of `stemma data explain`
SYSTEMS = {
    "cot": ("Take small steps, and give your reasons.", "Answer truthfully, in small steps."),
    "niv2": ("", "Show how the definition led you to your answer."),
    "flan2021": ("Explain your answer to a child of five.", "Write an answer that goes into the details."),
    "t0": ("", "Be as useful as you can."),
}
FINAL = re.compile(r"The answer is (.+?)\.(?:\s|$)")


@dataclass(frozen=True)
class Problem:
    """A question of a `task`, its `right` answer, and the steps to it, as sums and as sentences."""

    task: str
    collection: str
    question: str
    right: str
    sums: tuple[str, ...]
    sentences: tuple[str, ...]


def _below(rng: random.Random, n: int) -> int:
    return int(rng.random() * n)


def _some(n: int, thing: str) -> str:
    """An amount in words; `thing` is one of them."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def _chain(rng: random.Random, steps: int) -> Problem:
    at = 1 + _below(rng, 9)
    asked, sums, sentences = [f"Start with {at}"], [], []
    for _ in range(steps):
        by, way = 1 + _below(rng, 9), _below(rng, 3)
        if way == 0 and at <= 20:
            asked.append("double it")
            sums.append(f"2 * {at} = {2 * at}")
            sentences.append(f"Doubling {at} gives {2 * at}.")
            at *= 2
        elif way == 1 and at >= by:
            asked.append(f"take away {by}")
            sums.append(f"{at} - {by} = {at - by}")
            sentences.append(f"Taking {by} away from {at} leaves {at - by}.")
            at -= by
        else:
            asked.append(f"add {by}")
            sums.append(f"{at} + {by} = {at + by}")
            sentences.append(f"Adding {by} to {at} gives {at + by}.")
            at += by
    question = ", ".join(asked) + ". What is the result?"
    return Problem("chain", "cot", question, str(at), tuple(sums), tuple(sentences))


def _days(rng: random.Random, steps: int) -> Problem:
    first = _below(rng, 7)
    amount = 7 * (steps - 1) + 1 + _below(rng, 6)
    weeks, rest = divmod(amount, 7)
    end = DAYS[(first + rest) % 7]
    walk = [DAYS[(first + k) % 7] for k in range(rest + 1)]
    sums = [f"{amount} = 7 * {weeks} + {rest}"] if weeks else []
    both = f"{_some(weeks, 'week')}, which change nothing, and {_some(rest, 'day')}"
    sentences = [f"{amount} days are {both}."] if weeks else []
    sums.append(" > ".join(walk))
    sentences.append(f"From {walk[0]} on, day by day, come {', '.join(walk[1:])}.")
    question = f"Today is {DAYS[first]}. Which day is it in {_some(amount, 'day')}?"
    return Problem("days", "cot", question, end, tuple(sums), tuple(sentences))


def _letters(rng: random.Random, steps: int) -> Problem:
    words = [WORDS[_below(rng, len(WORDS))] for _ in range(steps)]
    letter = words[0][_below(rng, len(words[0]))]
    sums, sentences, count = [], [], 0
    for word in words:
        marks, before = [], count
        for c in word:
            count += c == letter
            marks.append(f"{c}{count}" if c == letter else c)
        sums.append(" ".join(marks))
        found = count - before
        sentences.append(f"In {' '.join(word)} it stands {_some(found, 'time')}, which makes {count} so far.")
    given = f"the letter {letter} in {' '.join(words)}"
    question = f"Definition: count how often a letter stands in a text.\nInput: {given}\nOutput:"
    return Problem("letters", "niv2", question, str(count), tuple(sums), tuple(sentences))


def _most(rng: random.Random, steps: int) -> Problem:
    amount = min(steps + 1, len(NAMES))
    shift, thing = _below(rng, len(NAMES)), THINGS[_below(rng, len(THINGS))]
    names = [NAMES[(shift + k) % len(NAMES)] for k in range(amount)]
    counts: list[int] = []
    while len(counts) < amount:
        if (n := 1 + _below(rng, 30)) not in counts:
            counts.append(n)
    best, sums, sentences = 0, [], []
    for k in range(1, amount):
        more = counts[k] > counts[best]
        sums.append(f"{counts[k]} {'>' if more else '<'} {counts[best]}: {names[k] if more else names[best]}")
        beside = f"{'more' if more else 'fewer'} than the {counts[best]} of {names[best]}"
        sentences.append(f"{names[k]} has {counts[k]}, which is {beside}.")
        best = k if more else best
    told = ", ".join(f"{name} has {n}" for name, n in zip(names, counts, strict=True))
    options = "\n".join(f"({'ABCDEFG'[k]}) {name}" for k, name in enumerate(names))
    question = f"Of {thing}, {told}. Who has the most?\nOptions:\n{options}"
    return Problem("most", "flan2021", question, f"({'ABCDEFG'[best]})", tuple(sums), tuple(sentences))


def _units(rng: random.Random, steps: int) -> Problem:
    large, small, each = UNITS[_below(rng, len(UNITS))]
    whole, rest = steps + 1, 1 + _below(rng, each - 1)
    at, sums, sentences = each, [], []
    for k in range(2, whole + 1):
        sums.append(f"{at} + {each} = {at + each}")
        sentences.append(f"{k} {large} are {at} and {each} {small}, so {at + each}.")
        at += each
    sums.append(f"{at} + {rest} = {at + rest}")
    sentences.append(f"With the {rest} {small} more it is {at + rest}.")
    question = f"How many {small} are {whole} {large} and {rest} {small}?"
    return Problem("units", "t0", question, str(at + rest), tuple(sums), tuple(sentences))


MAKERS = {"chain": _chain, "days": _days, "letters": _letters, "most": _most, "units": _units}


# ---------------------------------------------------------------- teachers, and rows


def terse(one: Problem) -> str:
    """The cheaper teacher: the steps as sums."""
    return " ".join(f"{step}." for step in one.sums) + f" The answer is {one.right}."


def wordy(one: Problem) -> str:
    """The stronger teacher: the steps as sentences."""
    return " ".join(one.sentences) + f" The answer is {one.right}."


def bare(one: Problem) -> str:
    """No explanation."""
    return f"The answer is {one.right}."


TEACHERS = {"terse": terse, "wordy": wordy, "bare": bare}


def _is_held(question: str) -> bool:
    return hashlib.blake2b(question.encode()).digest()[0] % HELD == 0


def problems(count: int, held: bool, steps: tuple[int, int] = SHORT, seed: int = 1) -> Iterator[Problem]:
    """`count` different problems of all kinds in turn, of least to most `steps`. `held`: of those that are held out,
    which the others never hold."""
    seen: set[str] = set()
    turn = 0
    while len(seen) < count:
        rng = random.Random(f"explained {seed} {steps} {held} {turn}")
        kind = list(MAKERS)[turn % len(MAKERS)]
        one = MAKERS[kind](rng, steps[0] + _below(rng, steps[1] - steps[0] + 1))
        turn += 1
        if _is_held(one.question) == held and one.question not in seen:
            seen.add(one.question)
            yield one


def row(one: Problem, teacher: str = "terse") -> dict[str, Any]:
    """A problem with its system message, answered by one of TEACHERS."""
    among = SYSTEMS[one.collection]
    system = among[hashlib.blake2b(one.question.encode()).digest()[1] % len(among)]
    return {
        "system": system, "question": one.question, "answer": TEACHERS[teacher](one), "right": one.right,
        "collection": one.collection, "task": one.task,
    }  # fmt: skip


def rows(teacher: str = "terse") -> Iterator[dict[str, Any]]:
    """The first stage: all questions, answered by the cheaper teacher."""
    return (row(one, teacher) for one in problems(ROWS, held=False))


def second(teacher: str = "wordy") -> Iterator[dict[str, Any]]:
    """The second stage: some of the questions again, answered by the stronger teacher."""
    for one in problems(ROWS, held=False):
        if hashlib.blake2b(one.question.encode()).digest()[2] % PART == 0:
            yield row(one, teacher)


def held_out(count: int = 200, longer: bool = False, teacher: str = "terse") -> Iterator[dict[str, Any]]:
    """Questions that no stage has; `longer`: of more steps than any in them."""
    return (row(one, teacher) for one in problems(count, held=True, steps=LONG if longer else SHORT))


def final(text: str) -> str | None:
    """What a text says the answer is; None where it says nothing."""
    found: list[str] = FINAL.findall(text)
    return found[-1] if found else None


def is_right(text: str, one: dict[str, Any]) -> bool:
    """Whether a text gives the right answer to the question of a row."""
    return final(text) == one["right"]
