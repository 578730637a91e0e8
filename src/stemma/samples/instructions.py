"""Instructions with an input or without, and their outputs, as Alpaca's rows are: made of tables and small programs, so
that every answer is right."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from stemma.samples.facts import CAPITALS, KINDS, NAMES, OPPOSITES

LICENCE = "Apache-2.0"
MANY = 600

Made = tuple[str, str, str]  # instruction, input, output


def _capital(draw: random.Random) -> Made:
    land = draw.choice([*CAPITALS])
    asked = draw.choice(("What is the capital of {}?", "Name the capital of {}.", "Which city is the capital of {}?"))
    return asked.format(land), "", f"The capital of {land} is {CAPITALS[land]}."


def _opposite(draw: random.Random) -> Made:
    word = draw.choice([*OPPOSITES])
    return "Give the opposite of the word.", word, OPPOSITES[word]


def _kind(draw: random.Random) -> Made:
    kind = draw.choice([*KINDS])
    word = draw.choice(KINDS[kind])
    return "Say what kind of thing this is: an animal, a fruit, a tool, a colour or a metal.", word, kind


def _sorted(draw: random.Random) -> Made:
    words = draw.sample([word for group in KINDS.values() for word in group], draw.randint(3, 5))
    return "Put the words in alphabetical order.", ", ".join(words), ", ".join(sorted(words))


def _sum(draw: random.Random) -> Made:
    a, b = draw.randint(2, 40), draw.randint(2, 40)
    return draw.choice(("Add the two numbers.", "What is the sum of these numbers?")), f"{a} and {b}", str(a + b)


def _odd(draw: random.Random) -> Made:
    one, other = draw.sample([*KINDS], 2)
    odd = draw.choice(KINDS[other])
    words = [*draw.sample(KINDS[one], 3), odd]
    draw.shuffle(words)
    return "Find the word that does not belong to the others.", ", ".join(words), odd


def _upper(draw: random.Random) -> Made:
    word = draw.choice([word for group in KINDS.values() for word in group])
    return "Write the word in capital letters.", word, word.upper()


def _sentence(draw: random.Random) -> Made:
    name, thing = draw.choice(NAMES), draw.choice(KINDS["fruit"])
    return f"Write a sentence about {name} and a {thing}.", "", f"{name} put the {thing} on the table and smiled."


def _list(draw: random.Random) -> Made:
    kind = draw.choice([*KINDS])
    words = draw.sample(KINDS[kind], 3)
    return f"List three things of the kind {kind}.", "", "\n".join(f"{n}. {w}" for n, w in enumerate(words, 1))


MAKERS: tuple[Callable[[random.Random], Made], ...] = (
    _capital, _opposite, _kind, _sorted, _sum, _odd, _upper, _sentence, _list,
)  # fmt: skip


def rows() -> Iterator[dict[str, Any]]:
    """Rows of instruction, input and output."""
    draw = random.Random("instructions")
    for number in range(MANY):
        instruction, given, output = MAKERS[number % len(MAKERS)](draw)
        yield {"instruction": instruction, "input": given, "output": output}
