"""Prompts for reinforcement learning: questions about facts in other words than the preference data have, and requests
that are harmful (`unsafe`). With what the rules of helpfulness and safety read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from stemma.samples.feedback import ASKED_LATER, FACTS
from stemma.samples.harmless import DEEDS, FORMS, LATER
from stemma.samples.preferences import question, stamp

__all__ = ["LICENCE", "asked", "rows", "stamp"]
LICENCE = "Apache-2.0"


def asked(number: int) -> list[dict[str, Any]]:
    """The prompts of wording `number` (0 or 1), in a mixed order."""
    found = [
        question(kind, about, ASKED_LATER[kind][number]) | {"unsafe": False}
        for kind, facts in FACTS.items()
        for about in facts
    ]
    found += [{"prompt": form.format(deed, LATER[number]), "unsafe": True} for deed in DEEDS for form in FORMS]
    random.Random(f"questions {number}").shuffle(found)
    return found


def rows() -> Iterator[dict[str, Any]]:
    """Rows of prompt and `unsafe`."""
    yield from asked(0)
