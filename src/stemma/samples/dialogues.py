"""Conversations of several turns, in which later answers need what was said before: a name, a town, a number."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from stemma.samples.facts import CAPITALS, KINDS, NAMES, OPPOSITES, TOWNS

LICENCE = "Apache-2.0"
MANY = 500

Turn = tuple[str, str]  # what the user says, and the answer


def _names(draw: random.Random) -> list[Turn]:
    name, town = draw.choice(NAMES), draw.choice(TOWNS)
    begin = (f"Hello, I am {name} and I live in {town}.", f"Hello {name}! How can I help you?")
    asked = [("What is my name?", f"Your name is {name}."), ("Where do I live?", f"You live in {town}.")]
    draw.shuffle(asked)
    return [begin, *asked]


def _numbers(draw: random.Random) -> list[Turn]:
    a, b = draw.randint(2, 20), draw.randint(2, 9)
    return [
        (f"Remember the number {a}.", f"I will remember {a}."),
        (f"Add {b} to it.", f"{a} plus {b} is {a + b}."),
        ("Which number did I begin with?", f"You began with {a}."),
    ]


def _capitals(draw: random.Random) -> list[Turn]:
    one, two = draw.sample([*CAPITALS], 2)
    return [
        (f"What is the capital of {one}?", f"The capital of {one} is {CAPITALS[one]}."),
        (f"And of {two}?", f"The capital of {two} is {CAPITALS[two]}."),
        ("Which countries did I ask about?", f"You asked about {one} and {two}."),
    ]


def _words(draw: random.Random) -> list[Turn]:
    word = draw.choice([*OPPOSITES])
    kind = draw.choice([*KINDS])
    thing = draw.choice(KINDS[kind])
    return [
        (f"What is the opposite of {word}?", f"The opposite of {word} is {OPPOSITES[word]}."),
        (f"And what is a {thing}?", f"{thing.capitalize()} is a kind of {kind}."),
        ("What was my first word?", f"Your first word was {word}."),
    ]


def rows() -> Iterator[dict[str, Any]]:
    """Rows of messages, in the shape of ShareGPT's."""
    draw = random.Random("dialogues")
    makers = (_names, _numbers, _capitals, _words)
    for number in range(MANY):
        turns = makers[number % len(makers)](draw)
        said = [({"from": "human", "value": user}, {"from": "gpt", "value": answer}) for user, answer in turns]
        yield {"id": f"{number + 1}", "conversations": [message for pair in said for message in pair]}
