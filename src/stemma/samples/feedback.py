"""Questions with a helpful and an unhelpful answer, which `helpful` tells apart, and some with a helpful one alone
(Koala).

The unhelpful answers are wrong, or say nothing. `held_out` asks for the same facts in other words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

from stemma.samples.facts import CAPITALS, KINDS, OPPOSITES

LICENCE = "Apache-2.0"
EVASIVE = (
    "I would rather not say.", "That is hard to tell.", "You could ask somebody else.", "Why do you want to know?",
    "There are many opinions about that.", "I have no time for this.",
)  # fmt: skip
# of a kind of fact: how it is asked for, how later, and how it is told
CAPITAL, OPPOSITE, KIND = "capital", "opposite", "kind"
ASKED = {
    CAPITAL: (
        "What is the capital of {0}?", "Which town is the capital of {0}?", "Name the capital of {0}.",
        "Tell me the capital of {0}, please.", "From which town is {0} governed?", "{0}: which town is its capital?",
    ),
    OPPOSITE: (
        "What is the opposite of {0}?", "Which word means the opposite of {0}?", "Name the opposite of {0}.",
        "Tell me the opposite of {0}, please.", "What is not {0} at all?", "{0}: which word is its opposite?",
    ),
    KIND: (
        "What kind of thing does the word {0} name?", "Does {0} name an animal, a fruit, a tool, a colour or a metal?",
        "Say what {0} names.", "Tell me what the word {0} names, please.", "Which kind of thing is called {0}?",
        "{0}: which kind of thing is that?",
    ),
}  # fmt: skip
ASKED_LATER = {
    CAPITAL: ("Do you know the capital of {0}?", "I need the capital of {0}."),
    OPPOSITE: ("Do you know the opposite of {0}?", "I need the opposite of {0}."),
    KIND: ("Do you know what the word {0} names?", "I need to know what {0} names."),
}
TOLD = {
    CAPITAL: "The capital of {0} is {1}.", OPPOSITE: "The opposite of {0} is {1}.",
    KIND: "The word {0} names a kind of {1}.",
}  # fmt: skip
THINGS = {thing: kind for kind, things in KINDS.items() for thing in things}
FACTS = {CAPITAL: CAPITALS, OPPOSITE: OPPOSITES, KIND: THINGS}


def _unhelpful(draw: random.Random, kind: str, about: str) -> str:
    if draw.random() < 0.5:
        return draw.choice(EVASIVE)
    wrong = sorted({*FACTS[kind].values()} - {FACTS[kind][about]})
    return TOLD[kind].format(about, draw.choice(wrong))


def rows(alone: float = 0.3) -> Iterator[dict[str, Any]]:
    """Rows for training in a mixed order: of prompt, chosen and rejected, and about the share `alone` of prompt and
    completion, which nobody compared."""
    draw = random.Random("feedback")
    all_facts = [(kind, about, form) for kind, facts in FACTS.items() for about in facts for form in ASKED[kind]]
    draw.shuffle(all_facts)
    for kind, about, form in all_facts:
        asked, told = form.format(about), TOLD[kind].format(about, FACTS[kind][about])
        if draw.random() < alone:
            yield {"prompt": asked, "completion": told}
        else:
            yield {"prompt": asked, "chosen": told, "rejected": _unhelpful(draw, kind, about)}


def held_out() -> Iterator[dict[str, Any]]:
    """Questions in words that no row for training has, each with the word that a helpful answer holds."""
    for kind, facts in FACTS.items():
        for about, right in facts.items():
            for form in ASKED_LATER[kind]:
                told = TOLD[kind].format(about, right)
                yield {"prompt": form.format(about), "completion": told, "about": about, "right": right}


def helpful(said: str, row: Mapping[str, Any]) -> bool:
    """Whether an answer names what was asked for, and what is right."""
    about, right = (re.search(rf"\b{re.escape(row[name])}\b", said) for name in ("about", "right"))
    return about is not None and right is not None
