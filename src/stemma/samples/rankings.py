"""Questions about facts, each with four to six answers and their ranks by helpfulness, with ties (InstructGPT)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from stemma.samples.preferences import candidates, helpfulness, question, questions, stamp

__all__ = ["LICENCE", "rows", "stamp"]
LICENCE = "Apache-2.0"


def rows() -> Iterator[dict[str, Any]]:
    """Rows of prompt, responses and ranks (1 is the best), with what the rule reads."""
    draw = random.Random("rankings")
    for kind, about, form in questions():
        row = question(kind, about, form)
        answers = draw.sample(candidates(draw, kind, row), draw.randint(4, 6))
        value = [helpfulness(text, row) for text in answers]
        order = sorted({*value}, reverse=True)
        yield row | {"responses": answers, "ranks": [order.index(v) + 1 for v in value]}
