"""Sums with one right answer, in levels from easy to hard, for tuning and for rewards that can be checked.

Rows rise by level. `held_out` has other sums of the same levels.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

LICENCE = "Apache-2.0"
MANY = 3000  # of the rows for training
EVERY = 5  # one sum in so many is held out
FORMS = ("What is {}?", "Compute {}.", "{} = ?")
# of each level: what stands for a sum, and the ranges of its numbers
LEVELS: tuple[tuple[tuple[str, ...], tuple[tuple[int, int], ...]], ...] = (
    (("{} + {}",), ((0, 9), (0, 9))),
    (("{} + {}", "{} - {}"), ((0, 20), (0, 20))),
    (("{} + {}", "{} - {}"), ((10, 99), (10, 99))),
    (("{} * {}",), ((0, 9), (0, 9))),
    (("{} + {} + {}", "{} + {} - {}", "{} * {} + {}"), ((1, 9), (1, 9), (1, 9))),
    (("{} * {}", "{} * {} - {}"), ((10, 99), (2, 9), (1, 99))),
)


def answer(text: str) -> int:
    """The value of a sum of one of the `LEVELS`."""
    total = 0
    for sign, term in zip(["+", *text.split()[1::2]], text.split()[::2], strict=True):
        total = total * int(term) if sign == "*" else total + int(term) * (-1 if sign == "-" else 1)
    return total


def _sum(draw: random.Random, level: int) -> str:
    """A sum of a level; one whose form has fewer numbers than the level leaves the last ones out."""
    forms, ranges = LEVELS[level - 1]
    form = draw.choice(forms)
    numbers = [draw.randint(*some) for some in ranges]
    return form.format(*numbers[: form.count("{}")])


def _is_held_out(text: str) -> bool:
    return random.Random(f"arithmetic {text}").randrange(EVERY) == 0


def drawn(levels: Sequence[int], many: int, seed: int = 0, held_out: bool = False) -> Iterator[dict[str, Any]]:
    """`many` questions of the `levels` (1 to 6) in turn, drawn with repetition: `question`, `answer` and `level`. Those
    that are `held_out` are never among the others."""
    draw = random.Random(f"arithmetic {seed} {held_out}")
    for number in range(many):
        level = levels[number % len(levels)]
        while _is_held_out(text := _sum(draw, level)) != held_out:
            pass
        yield {"question": draw.choice(FORMS).format(text), "answer": str(answer(text)), "level": level}


def rows() -> Iterator[dict[str, Any]]:
    """Rows for training, as many of each level, the easiest first."""
    for level in range(1, len(LEVELS) + 1):
        yield from drawn((level,), MANY // len(LEVELS))


def held_out(many: int = 300) -> Iterator[dict[str, Any]]:
    """Questions of all levels in turn, of which no row for training has the sum."""
    yield from drawn(tuple(range(1, len(LEVELS) + 1)), many, held_out=True)
