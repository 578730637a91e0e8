"""Feed-forward layers, and the convolution beside the first block of DeBERTa v2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stemma.spec import Spec, quiet, require

# gelu_tanh_fused: the tanh form by a kernel that rounds otherwise (Gemma); quick_gelu: x sigmoid(1.702 x) (Hendrycks &
# Gimpel 2016, arXiv:1606.08415, section 2); relu2: relu(x)**2 (So et al. 2021, arXiv:2109.08668)
Activation = Literal["gelu", "gelu_tanh", "gelu_tanh_fused", "relu", "silu", "tanh", "quick_gelu", "relu2"]


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
    weighted by the softmax of their scores (Jiang et al. 2024, arXiv:2401.04088, section 2.1). Not `normalised`, the
    softmax is over the scores of all experts, and the weights of those that are used do not sum to 1."""

    act: Activation = "silu"
    normalised: bool = quiet(True)
