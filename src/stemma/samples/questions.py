"""Prompts for reinforcement learning: questions about facts in other words than the preference data have, and requests
that are harmful (`unsafe`). With what the rules of helpfulness and safety read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from stemma.samples.feedback import ASKED_LATER, FACTS
from stemma.samples.harmless import ASKED
from stemma.samples.preferences import question, stamp

__all__ = ["LICENCE", "rows", "stamp"]
LICENCE = "Apache-2.0"


def rows() -> Iterator[dict[str, Any]]:
    """Rows of prompt and `unsafe`, in a mixed order."""
    draw = random.Random("questions")
    found = [
        question(kind, about, form) | {"unsafe": False}
        for kind, facts in FACTS.items()
        for about in facts
        for form in ASKED_LATER[kind]
    ]
    found += [{"prompt": text, "unsafe": True} for text in ASKED]
    draw.shuffle(found)
    yield from found
