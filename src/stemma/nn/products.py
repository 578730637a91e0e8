"""Products with matrices by oneDNN, which torch brings along, in place of MKL, which it takes for fp32 on a CPU.

MKL leaves AVX-512 unused on processors that are not Intel's: there oneDNN is about twice as fast, forward and backward.
Sums round otherwise, so it is a choice of a run's plan (`train.products`), not a default of the whole library.
"""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST = 2**21  # multiplications: smaller products are not worth the way to oneDNN

_on: ContextVar[bool] = ContextVar("onednn", default=False)


@functools.cache
def available() -> bool:
    """Whether torch multiplies by oneDNN here."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and platform.machine().lower() in ("x86_64", "amd64")


@contextlib.contextmanager
def onednn(wanted: bool = True) -> Iterator[None]:
    """Products by oneDNN for the time of a block, where they are `wanted`; a backward pass that computes activations
    again belongs into the block too."""
    token = _on.set(wanted)
    try:
        yield
    finally:
        _on.reset(token)


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether a product is oneDNN's: in its block, of plain fp32 tensors in the memory of the CPU, outside of compiled
    graphs and autocast, and large enough."""
    return (
        not torch.compiler.is_compiling()
        and _on.get()
        and type(weight) in (Tensor, torch.nn.Parameter)
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() * len(weight) >= SMALLEST
        and not torch.is_autocast_enabled("cpu")
        and available()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x weight^T + bias`: ... D, E D, E -> ... E, differentiable once."""
    y: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return y.view(*x.shape[:-1], len(weight))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


class _Linear(torch.autograd.Function):
    """N D, E D, E -> N E."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> Any:
        (x, weight), grad = ctx.saved_tensors, outer[0].contiguous()
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if to_x else None,
            _product(grad.t(), x.t()) if to_weight else None,
            grad.sum(0) if to_bias else None,
        )
