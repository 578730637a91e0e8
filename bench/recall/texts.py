"""Texts of tokens: keys with their values, each said twice at random places, among a filler with rules of its own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

KEYS, VALUES, FILLER = 128, 32, 32
VOCAB = KEYS + VALUES + FILLER
MOST = 100  # different keys of a text


class Texts:
    """`count` texts of `length` tokens and one more. `ids`: N T+1; `asked`: where a value stands that was said before;
    `said`: for these the place where it was said, else -1; `filler`: where a token of the filler stands. `topics`: all
    filler of a text is of four tokens that say which text it is."""

    def __init__(self, seed: int, length: int, count: int, plain: float = 0.3, topics: bool = False) -> None:
        self.ids = torch.zeros(count, length + 1, dtype=torch.int64)
        self.said = torch.full((count, length + 1), -1)
        draw = np.random.default_rng((seed, length))
        for row in range(count):
            ids, said = text(draw, length + 1, plain, row % (FILLER // 4) if topics else None)
            self.ids[row], self.said[row] = torch.from_numpy(ids), torch.from_numpy(said)
        self.asked, self.filler = self.said >= 0, self.ids >= KEYS + VALUES

    def batch(self, rows: int, draw: torch.Generator) -> Tensor:
        """Some of the texts, at random."""
        return self.ids[torch.randint(len(self.ids), (rows,), generator=draw)]


def text(
    draw: np.random.Generator, length: int, plain: float, topic: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, of each value that was said before the place of that, else -1). About the share `plain` is filler, in
    which a token has four successors, the same four of a `topic`."""
    units = -(-length // 2)
    many = max(2, min(MOST, int(units * (1 - plain)) // 2))
    keys = draw.choice(KEYS, many, replace=False)
    values = draw.integers(KEYS, KEYS + VALUES, many)
    order = draw.permutation(np.repeat(np.arange(many), 2))
    places = np.sort(draw.choice(units, 2 * many, replace=False))
    ids, said = np.zeros((units, 2), dtype=np.int64), np.full((units, 2), -1)
    first: dict[int, int] = {}
    for unit, key in zip(places.tolist(), order.tolist(), strict=True):
        ids[unit] = keys[key], values[key]
        if key in first:
            said[unit, 1] = first[key]
        first.setdefault(key, 2 * unit + 1)
    at, steps = int(draw.integers(FILLER)), draw.integers(0, 4, 2 * units)
    pairs = set(places.tolist())
    for unit in range(units):
        for place in (0, 1) if unit not in pairs else ():
            step = int(steps[2 * unit + place])
            at = (5 * at + 7 + 3 * step) % FILLER if topic is None else 4 * topic + step
            ids[unit, place] = KEYS + VALUES + at
    return ids.flatten()[:length], said.flatten()[:length]
