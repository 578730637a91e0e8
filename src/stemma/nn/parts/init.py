"""How weights begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stemma.spec import Spec, positive


@dataclass(frozen=True)
class Normal(Spec):
    """Weights from N(0, std), biases 0, norms 1. `truncated`: at two deviations. `residual`: the matrices that write
    into the residual stream divided by sqrt(number of residual layers) (GPT-2). `positions`: of the position table,
    which may also begin as "sines" and cosines, side by side (XLM)."""

    std: float = positive(0.02)
    truncated: bool = False
    residual: bool = False
    positions: float | Literal["sines"] | None = None


@dataclass(frozen=True)
class FanIn(Spec):
    """T5's: embeddings N(0, 1), each matrix by its fan-in, q also by its width (Mesh TensorFlow), times `factor`."""

    factor: float = positive(1.0)


@dataclass(frozen=True)
class Glorot(Spec):
    """Matrices uniform with the variance 2 / (inputs + outputs) (Glorot & Bengio 2010), embeddings from
    N(0, 1/sqrt(width)) (Vaswani et al. 2017 as released, tensor2tensor)."""


@dataclass(frozen=True)
class LeCun(Spec):
    """Matrices from N(0, 1/sqrt(their inputs)), embeddings from N(0, 1) (LeCun et al. 1998; PaLM, section 5)."""
