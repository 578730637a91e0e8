"""Functions without parameters that several modules share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import UsageError


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


def readable(x: Tensor) -> bool:
    """Whether values of `x` may be looked at: that would block on an accelerator and break a compiled graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def rows_of(table: nn.Module, ids: Tensor, name: str, offset: int = 0) -> Tensor:
    """The rows `ids + offset` of an embedding. Raises UsageError for ids that it does not have, where that can be
    told."""
    rows = ids + offset if offset else ids
    if not readable(ids):
        return table(rows)
    try:
        return table(rows)
    except IndexError:
        size: int = table.weight.shape[0]  # type: ignore[index,assignment]
        raise out_of_range(name, ids, size - offset) from None


def out_of_range(name: str, ids: Tensor, size: int) -> UsageError:
    """The error for ids of which some are not 0 to `size` - 1."""
    low, high = int(ids.min()), int(ids.max())
    return UsageError(f"{name} hold {low if low < 0 else high}, and this model's go from 0 to {size - 1}")
