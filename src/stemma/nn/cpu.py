"""The same functions in the forms that are fastest in training on a CPU, mostly where torch's inductor compiles them.

Each says what it replaces; tests/test_compiled.py holds it to that function.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.nn.functional import softcap

SHORT = 1024  # up to this many tokens a row, training is faster with matrix products than with torch's fused kernel
BLOCK = 128  # queries of a causal row taken together: few of their products are with keys they do not see


def compiling(x: Tensor) -> bool:
    """Whether `x` is on a CPU in a graph that torch compiles."""
    return torch.compiler.is_compiling() and x.device.type == "cpu"


# ---------------------------------------------------------------- activations


class _ReLU(torch.autograd.Function):
    """ReLU whose gradient is read off its output, which the next matrix product keeps anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clamp_min(0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        return outer[0] * ctx.saved_tensors[0].sign()


def relu(x: Tensor) -> Tensor:
    """ReLU in training. A compiled graph would keep `x > 0` as booleans, which inductor reads and writes one by one;
    that takes longer than the matrix product before it."""
    if compiling(x):
        y: Tensor = _ReLU.apply(x)
        return y
    return F.relu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's tanh form in training: torch's kernel, or compiled `x sigmoid(2u)`, which equals `x (1 + tanh(u)) / 2`. A
    vector of exponentials is several times faster than one of hyperbolic tangents."""
    if compiling(x):
        return x * torch.sigmoid(x * (math.sqrt(8.0 / math.pi) * (1.0 + 0.044715 * x * x)))
    return F.gelu(x, approximate="tanh")


# ---------------------------------------------------------------- attention


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    rate: float,
    cap: float | None = None,
) -> Tensor:
    """`softmax(q k + mask) v` by matrix products; B H T D, B H S D -> B H T D. `q` is scaled already, k and v have all
    heads, `mask` is boolean (True: seen) or added, `rate` is of dropout, `cap` of a soft cap on the scores.

    Memory grows with T S, but on a CPU the backward pass is faster than the fused kernel's. Causal rows go in blocks of
    queries, each against the keys up to its end."""
    if not causal:
        return _weighted(q, k, v, mask, rate, cap)
    length = q.shape[2]
    # -inf is added, not filled in: the numbers are the same where a row sees itself, and inductor reads floats as
    # vectors but booleans one by one
    before = q.new_full((length, length), float("-inf")).triu(1)
    blocks = [
        _weighted(q[:, :, i:end], k[:, :, :end], v[:, :, :end], before[i:end, :end], rate, cap)
        for i in range(0, length, BLOCK)
        for end in (min(i + BLOCK, length),)
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)


def _weighted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float, cap: float | None) -> Tensor:
    scores = q @ k.transpose(-1, -2)
    if cap is not None:
        scores = softcap(scores, cap)
    if mask is not None:
        scores = scores + (_added(mask, scores) if mask.dtype == torch.bool else mask)
    weights = scores.softmax(-1)
    return F.dropout(weights, rate).to(v.dtype) @ v if rate else weights.to(v.dtype) @ v


def _added(mask: Tensor, scores: Tensor) -> Tensor:
    """A boolean mask as what is added to the scores: the numbers are those of filling in -inf, and it takes less time
    than to read a boolean for every head."""
    return torch.where(mask, 0.0, float("-inf")).to(scores.dtype)


# ---------------------------------------------------------------- cross-entropy


class CompiledCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of logits (N V) at targets (N), with z-loss and label smoothing, in two compiled passes over
    the logits. Neither their fp32 copy nor the log-softmax is written to memory. The target's own gradient is put in
    place afterwards: comparing every entry with the target would take longer than all else."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, z: float, smoothing: float) -> Tensor:
        total, own, mean = _compiled(_read)(logits, targets, smoothing > 0)
        ctx.save_for_backward(logits, targets, total)
        ctx.how = z, smoothing
        loss: Tensor = (total - (1.0 - smoothing) * own).sum()
        if mean is not None:
            loss = loss - smoothing * mean.sum()
        return loss + z * total.square().sum() if z else loss

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        return _compiled(_gradient)(*ctx.saved_tensors, outer[0], *ctx.how), None, None, None


def _read(logits: Tensor, targets: Tensor, mean: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of each row, in fp32: logsumexp, the target's logit, and the mean of all logits where it is asked for."""
    wide = logits.float()
    return wide.logsumexp(-1), wide.gather(1, targets[:, None]).squeeze(1), wide.mean(-1) if mean else None


def _gradient(logits: Tensor, targets: Tensor, total: Tensor, outer: Tensor, z: float, smoothing: float) -> Tensor:
    """`outer` times the gradient at the logits (N V); `total`: the logsumexp of each row."""
    slope = (logits.float() - total[:, None]).exp() * (outer * (1.0 + 2.0 * z * total))[:, None]
    slope = slope - outer * (smoothing / logits.shape[1])
    own = slope.gather(1, targets[:, None]) - outer * (1.0 - smoothing)
    return slope.to(logits.dtype).scatter(1, targets[:, None], own.to(logits.dtype))


@functools.cache
def _compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(f)
