"""How hidden states are normalised."""

from __future__ import annotations

from dataclasses import dataclass

from stemma.nn.parts.custom import CustomNorm
from stemma.spec import Spec, positive


@dataclass(frozen=True)
class LayerNorm(Spec):
    """Layer normalisation (Ba et al. 2016, arXiv:1607.06450); without `bias` a gain alone is left (PaLM)."""

    eps: float = positive(1e-5)
    bias: bool = True


@dataclass(frozen=True)
class RMSNorm(Spec):
    """Root-mean-square normalisation: a gain and neither mean nor bias (Zhang & Sennrich 2019, arXiv:1910.07467).

    `offset`: the gain is stored as its difference from 1, and all of it computed in fp32 (Gemma).
    """

    eps: float = positive(1e-6)
    offset: bool = False


@dataclass(frozen=True)
class HeadNorm(Spec):
    """Layer normalisation of queries or keys, with gains of its own for every head and no bias (Command R+)."""

    eps: float = positive(1e-5)


Norm = LayerNorm | RMSNorm | CustomNorm
