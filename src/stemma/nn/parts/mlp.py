"""Feed-forward layers, and the convolution beside the first block of DeBERTa v2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stemma.spec import Spec, require

# gelu_tanh_fused: the tanh form by a kernel that rounds otherwise (Gemma)
Activation = Literal["gelu", "gelu_tanh", "gelu_tanh_fused", "relu", "silu"]


@dataclass(frozen=True)
class MLP(Spec):
    """`down(act(up(x)))`."""

    act: Activation = "gelu"
    bias: bool = True


@dataclass(frozen=True)
class GatedMLP(Spec):
    """`down(act(gate(x)) * up(x))` (Shazeer 2020, arXiv:2002.05202)."""

    act: Activation = "silu"
    bias: bool = False


@dataclass(frozen=True)
class Convolution(Spec):
    """Beside the first block, on its input: `norm(block(x) + act(conv(x)))`, over `kernel` neighbouring tokens (DeBERTa
    v2)."""

    kernel: int = 3
    act: Activation = "gelu"

    def check(self) -> None:
        odd = self.kernel >= 1 and self.kernel % 2 == 1
        require(odd, f"convolution.kernel must be odd, so that it has a middle, not {self.kernel}")


@dataclass(frozen=True)
class Experts(Spec):
    """`dims.experts` gated MLPs without biases. Each token uses the `dims.active` that a linear router scores highest,
    weighted by the softmax of their scores (Jiang et al. 2024, arXiv:2401.04088, section 2.1)."""

    act: Activation = "silu"
