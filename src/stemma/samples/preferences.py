"""Questions about facts, each with two answers of which the more helpful one is chosen, and how clearly (LLaMA-2-Chat's
helpfulness comparisons, UltraFeedback's pairs).

`helpfulness` is the rule: half of it is naming what is right, the rest naming what was asked about, in a sentence that
is not long. What prefers an answer can so be held to what was preferred.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stemma.samples.feedback import ASKED, EVASIVE, FACTS, TOLD

LICENCE = "Apache-2.0"
GRADES = ("significantly better", "better", "slightly better", "negligibly better")
BELOW = (0.9, 0.45, 0.2, 0.0)  # the least by which a grade's answers differ
LONG = 16  # words, beyond which each costs a little
BRIEF = {"capital": "It is {1}.", "opposite": "It is {1}.", "kind": "A kind of {1}."}
PADDING = "That is a good question, and many people ask it, so let me think about it for a while."


def helpfulness(said: str, row: Mapping[str, Any]) -> float:
    """How helpful an answer is, at most 1: 0.6 for what is right, 0.3 for what it is about, 0.1 for a sentence; each
    word beyond 16 costs 0.02. Another answer of the same kind (`others`) beside what is right, or a wrong one, counts
    as not right."""
    found = [bool(re.search(rf"\b{re.escape(str(row[name]))}\b", said)) for name in ("about", "right")]
    wrong = any(re.search(rf"\b{re.escape(other)}\b", said) for other in row.get("others", ()))
    right = found[1] and not wrong
    sentence = said.strip().endswith(".") and len(said.split()) >= 3
    value = 0.6 * right + 0.3 * (found[0] and right) + 0.1 * (sentence and right)
    return round(value - 0.02 * max(0, len(said.split()) - LONG), 4)


def question(kind: str, about: str, form: str) -> dict[str, Any]:
    """What a row says of its question: the words, what they are about, what is right, and what would be wrong."""
    right = FACTS[kind][about]
    others = sorted({*FACTS[kind].values()} - {right, about})
    return {"prompt": form.format(about), "about": about, "right": right, "others": others}


def candidates(draw: random.Random, kind: str, row: Mapping[str, Any]) -> list[str]:
    """Answers to a question, from helpful ones to what says nothing, in a mixed order."""
    about, right, wrong = row["about"], row["right"], draw.choice(row["others"])
    full = TOLD[kind].format(about, right)
    found = [
        full, BRIEF[kind].format(about, right), right, f"{PADDING} {full}", TOLD[kind].format(about, wrong),
        BRIEF[kind].format(about, wrong), f"{PADDING} {TOLD[kind].format(about, wrong)}", draw.choice(EVASIVE),
    ]  # fmt: skip
    draw.shuffle(found)
    return found


def questions() -> list[tuple[str, str, str]]:
    """(kind, about, form) of every question for training, in a mixed order."""
    found = [(kind, about, form) for kind, facts in FACTS.items() for about in facts for form in ASKED[kind]]
    random.Random("preferences").shuffle(found)
    return found


def grade(better: float, worse: float) -> str:
    """The grade of two answers' difference."""
    return next(name for name, least in zip(GRADES, BELOW, strict=True) if better - worse >= least)


def rows() -> Iterator[dict[str, Any]]:
    """Rows of prompt, chosen, rejected and grade, with what the rule reads."""
    draw = random.Random("pairs")
    for kind, about, form in questions():
        row = question(kind, about, form)
        one, two = draw.sample(candidates(draw, kind, row), 2)
        value = {text: helpfulness(text, row) for text in (one, two)}
        if value[one] == value[two]:
            continue
        chosen, rejected = sorted((one, two), key=lambda text: -value[text])
        yield row | {"chosen": chosen, "rejected": rejected, "grade": grade(value[chosen], value[rejected])}


def stamp() -> str:
    """A text that changes with what makes these rows and those of the sets beside them."""
    names = ("preferences", "rankings", "harmless", "questions", "questions_held", "feedback", "facts", "borderline")
    found = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in names]
    return hashlib.sha256(b"".join(found)).hexdigest()
