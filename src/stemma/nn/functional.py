"""Functions without parameters that several modules share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu_tanh(x: Tensor) -> Tensor:
    """`x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2`, operation by operation as in GPT-2's code. Torch's fused
    kernel rounds differently, which large logits of a deep model show in the fifth decimal. In place where no gradient
    is needed."""
    if not torch.is_grad_enabled():
        y = torch.pow(x, 3.0).mul_(0.044715).add_(x).mul_(math.sqrt(2.0 / math.pi))
        return y.tanh_().add_(1.0).mul_(0.5 * x)
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def quick_gelu(x: Tensor) -> Tensor:
    """`x sigmoid(1.702 x)`."""
    return x * torch.sigmoid(1.702 * x)


def relu2(x: Tensor) -> Tensor:
    """The square of ReLU."""
    return F.relu(x).square()


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Dropout in training; draws nothing where the rate is 0."""
    return F.dropout(x, rate) if training and rate > 0 else x


def softcap(x: Tensor, cap: float) -> Tensor:
    """`cap tanh(x / cap)`. Overwrites `x` where no gradient is needed."""
    if torch.is_grad_enabled():
        return cap * torch.tanh(x / cap)
    return x.div_(cap).tanh_().mul_(cap)
