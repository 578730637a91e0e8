"""What an objective knows of its run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stemma.declare.family import Text
from stemma.declare.recipes import Sampling


@dataclass(frozen=True)
class Setting:
    """What an objective is told of a run: the `tokenizer`, which names the special ids; `text`, the start token of
    decoders; `context`, the tokens of a row; `seed`; whether rows hold several documents that see each other (`mixed`);
    the weight of the z-loss; how languages are drawn (`sampling`), the `rows` of a step, and the
    `structure` of the network that the rows are for, where it can be one of several."""

    tokenizer: Any
    text: Text
    context: int
    seed: int
    mixed: bool = False
    z_loss: float = 0.0
    sampling: Sampling = field(default_factory=Sampling)
    rows: int = 1
    structure: str = "encoder-decoder"
