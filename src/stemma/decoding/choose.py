"""From logits to the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stemma.spec import require


@dataclass(frozen=True)
class Choice:
    """How the next token is drawn. `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0 and
    `repetition_penalty` 1 change nothing.

    Order: penalty, temperature, top-k, top-p (the smallest set with at least that mass, Holtzman et al. 2019),
    min-p (what has at least that share of the likeliest token's probability).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        require(self.temperature >= 0, f"temperature must not be negative, not {self.temperature}")
        require(self.top_k >= 0, f"top_k must not be negative, not {self.top_k}")
        require(0 < self.top_p <= 1, f"top_p must lie in (0, 1], not {self.top_p}")
        require(0 <= self.min_p <= 1, f"min_p must lie in [0, 1], not {self.min_p}")
        require(self.repetition_penalty > 0, f"repetition_penalty must be positive, not {self.repetition_penalty}")

    def penalised(self, logits: Tensor, seen: list[list[int]]) -> Tensor:
        """`logits` (B V) after the penalty; `seen`: the ids that each row holds."""
        return logits if self.repetition_penalty == 1.0 else penalise(logits, seen, self.repetition_penalty)

    def scores(self, logits: Tensor) -> Tensor:
        """Penalised `logits` (B V) after the rest of the above, -inf where a token is out."""
        if self.temperature == 0:
            return logits
        logits = logits / self.temperature
        out = float("-inf")
        if self.top_k and self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[:, -1:], out)
        if self.top_p < 1:
            ordered, order = logits.sort(descending=True)
            mass = ordered.softmax(-1).cumsum(-1)
            beyond = mass - ordered.softmax(-1) >= self.top_p  # the mass before a token is enough already
            logits = logits.masked_fill(beyond.scatter(-1, order, beyond), out)
        if self.min_p:
            share = logits.softmax(-1)
            logits = logits.masked_fill(share < self.min_p * share.amax(-1, keepdim=True), out)
        return logits

    def draw(self, scores: Tensor, generators: list[torch.Generator]) -> Tensor:
        """One token a row (B), each row from its own generator, so that a row does not depend on its neighbours."""
        if self.temperature == 0:
            return scores.argmax(-1)
        share = scores.softmax(-1).cpu()
        drawn = [torch.multinomial(p, 1, generator=g) for p, g in zip(share, generators, strict=True)]
        return torch.cat(drawn).to(scores.device)


def penalise(logits: Tensor, seen: list[list[int]], penalty: float) -> Tensor:
    """Positive logits of the ids that a row holds divided by `penalty`, negative ones times it (Keskar et al. 2019)."""
    logits = logits.clone()
    for row, ids in zip(logits, seen, strict=True):
        at = torch.tensor(sorted(set(ids)), dtype=torch.int64, device=logits.device)
        row[at] = torch.where(row[at] > 0, row[at] / penalty, row[at] * penalty)
    return logits
