"""What an objective knows of its run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stemma.declare.family import Text
from stemma.declare.recipes import Sampling


@dataclass(frozen=True)
class Setting:
    """What an objective needs from its run. `context`: tokens of a row; `mixed`: rows may hold several documents that
    see each other; `z_loss`: weight of the z-loss; `sampling`: how languages are drawn; `rows`: of a step; `structure`:
    of the network, for objectives that train several kinds."""

    tokenizer: Any
    text: Text
    context: int
    seed: int
    mixed: bool = False
    z_loss: float = 0.0
    sampling: Sampling = field(default_factory=Sampling)
    rows: int = 1
    structure: str = "encoder-decoder"
