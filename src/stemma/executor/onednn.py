"""Products of fp32 matrices with the vectors of a prompt, where PyTorch's own use half of the processor's width: MKL
leaves AVX-512 alone on AMD's. oneDNN, which comes with PyTorch, does not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stemma.executor import native

LEAST = 16  # vectors from which the other product is taken


@functools.cache
def better() -> bool:
    """Whether oneDNN's fp32 products are the faster ones here."""
    wide = "avx512f" in native.instructions() and native.vendor() == "AuthenticAMD"
    return wide and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class WideProducts(TorchFunctionMode):
    """Within this, `F.linear` of fp32 matrices and at least LEAST vectors is oneDNN's, outside of autograd."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and suits(*args):
            x, weight, bias = (*args, None)[:3]
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def suits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether a product is one of those that oneDNN takes over."""
    plain = all(
        t is None or (type(t) in (Tensor, nn.Parameter) and t.dtype == torch.float32) for t in (x, weight, bias)
    )
    if not plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" and weight.is_contiguous() and x.numel() >= LEAST * max(1, x.shape[-1])
