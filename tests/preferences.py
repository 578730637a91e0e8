"""Small runs of preference objectives without files: a policy, a reference, and rows of ids."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np

from stemma.declare.family import Text
from stemma.objectives import base, objective
from stemma.objectives.continuations import Answer

Texts = list[list[Answer]]


class Rows:
    """Rows of answers as a store gives them. `said`: the row as JSON."""

    groups = np.zeros(0)

    def __init__(self, rows: Texts, said: list[dict[str, Any]]) -> None:
        self.rows, self.said = rows, said
        self.tokens_total = sum(len(self[i]) for i in range(len(rows)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return np.concatenate([part for text in self.rows[i] for part in text])

    def sentences(self, i: int) -> Any:
        ends = np.cumsum([len(part) for text in self.rows[i] for part in text])
        return np.concatenate([[0], ends[:-1]])

    def text(self, i: int) -> str:
        return json.dumps(self.said[i])


def pairs(n: int = 6, seed: int = 0, vocab: int = 80, answers: int = 2) -> Rows:
    """Rows of compared answers."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> Any:
        return rng.integers(5, vocab, int(rng.integers(low, high))).astype(np.int64)

    rows = []
    for _ in range(n):
        prompt = ids(2, 9)
        rows.append([Answer(prompt, ids(1, 8)) for _ in range(answers)])
    words = [f"answer {k}" for k in range(answers)]
    said = {"prompt": "a question", "responses": words, "ranks": list(range(answers))}
    return Rows(rows, [said for _ in rows])


def thumbs(n: int = 8, seed: int = 0, vocab: int = 80) -> Rows:
    """Rows of answers that were liked or not."""
    found = pairs(n, seed, vocab, answers=1)
    return Rows(found.rows, [{"prompt": "q", "completion": "a", "label": bool(i % 3)} for i in range(n)])


def runs(spec: Any, structure: str = "decoder", seed: int = 1) -> base.Objective:
    """What runs an objective on rows of at most 40 tokens."""
    tokenizer: Any = SimpleNamespace(special_ids=(), vocab_size=83, pad_id=0)
    return objective(spec, base.Setting(tokenizer, Text("bpe", start_id=0), 40, seed, structure=structure))
