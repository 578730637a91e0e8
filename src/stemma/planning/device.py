"""A model on the meta device that runs as it would on a CPU or a GPU, and in bf16 as autocast would run it."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.fx.experimental.symbolic_shapes  # which the kernels import; not while a stand-in is there
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from stemma.nn import blocks
from stemma.nn.attention import Attention
from stemma.nn.cpu import SHORT
from stemma.nn.init import Undrawn
from stemma.nn.masks import AttnMask
from stemma.nn.mlp import Experts
from stemma.nn.model import Model
from stemma.nn.parts import Arch, Causal, Dims, Full, Sliding
from stemma.nn.stack import Block


def build(arch: Arch, dims: Dims) -> Model:
    """A model on the meta device."""
    with Undrawn(), torch.device("meta"):
        return Model(arch, dims)


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Keep torch from importing its compiler, which takes a second. Its Python kernels for the meta device import it at
    their first call, to be marked as not to be compiled; here a stand-in takes the marks, and they are removed again.
    Does nothing where the compiler is loaded."""
    name, marked = "torch._dynamo", []
    if name in sys.modules:
        yield
        return

    def disable(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        marked.append(function)
        return function

    stand_in: Any = types.ModuleType(name)
    stand_in.disable = disable
    stand_in.config = types.SimpleNamespace(error_on_nested_fx_trace=True, patch=contextlib.nullcontext)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        for function in marked:
            vars(function).pop("__dynamo_disable", None)


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Let `torch.autocast("meta", ...)` do nothing: torch knows no such autocast, and `Halves` stands for it."""
    real = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return contextlib.nullcontext() if device_type == "meta" else real(device_type, *args, **kwargs)

    torch.autocast = autocast  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.autocast = real  # type: ignore[misc]


class Halves(TorchFunctionMode):
    """Products of matrices in bf16, as autocast takes them."""

    products = (F.linear, torch._grouped_mm, torch.matmul, Tensor.matmul, Tensor.__matmul__)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.products:
            args = tuple(a.bfloat16() if isinstance(a, Tensor) and a.dtype == torch.float32 else a for a in args)
        return func(*args, **(kwargs or {}))


class Fused(torch.autograd.Function):
    """The memory of a fused attention kernel: its output and a number a query, and of what it reads, nothing twice."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, bias, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        q, k, v, bias, _, _ = ctx.saved_tensors
        own = None if bias is None else torch.empty_like(bias)
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), own


class InBlocks(torch.autograd.Function):
    """The memory of attention a block at a time (`nn.blocks`): beside that of a fused kernel, of one block a mask of
    `shape` (queries, keys), the scores and what stands beside them, and gradients at keys and values, which those of
    the block before outlive. `scores`: tensors of that size a head, in the forward and in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, shape: tuple[int, int], scores: tuple[int, int], masked: bool
    ) -> Tensor:
        ctx.shape, ctx.scores, ctx.masked = shape, scores[1], masked
        batch, heads, length, _ = q.shape
        out = q.new_empty(batch, length, heads, v.shape[3]).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        InBlocks.made(q, shape, scores[0], masked)
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        q, k, v, _, _ = ctx.saved_tensors
        own = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        slopes = [k.new_empty(k.shape[1], ctx.shape[1], k.shape[3]) for _ in range(4)]
        InBlocks.made(q, ctx.shape, ctx.scores, ctx.masked)
        del slopes
        return *own, None, None, None

    @staticmethod
    def made(q: Tensor, shape: tuple[int, int], scores: int, masked: bool) -> None:
        """Make so many tensors of a block's scores at once, and the mask that is added to them."""
        block = [q.new_empty(q.shape[1], *shape, dtype=torch.float32) for _ in range(scores)]
        block += [q.new_empty(*shape, dtype=torch.float32)] if masked else []


def _attend(
    attention: Attention,
    cpu: bool,
    half: bool,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: AttnMask,
    bias: Tensor | None,
) -> Tensor:
    """`Attention.attend` as a CPU or a GPU runs it. It chooses its kernel by the device of its tensors, here "meta"."""
    mask, causal = attn_mask.mask, attn_mask.causal
    if attn_mask.rule is not None and (bias is not None or not cpu):  # only a CPU takes rows in blocks
        mask = attn_mask.dense()
    if bias is not None:
        if causal:
            mask, causal = q.new_ones(q.shape[2], k.shape[2]).tril().bool(), False
        mask = bias if mask is None else bias.masked_fill(~mask, -1.0)
    # a reference takes the kernel of training in bf16 alone (`objectives.reference.still`)
    trains = attention.training and (half or torch.is_grad_enabled())
    short = trains and q.shape[2] * k.shape[2] <= SHORT**2
    rate = attention.dropout if attention.training else 0.0
    # what has no other rule than that of documents is dearest in rows of one, which a kernel takes whole
    plain = attn_mask.rule is None or isinstance(attn_mask.rule.spec, Full | Causal)
    in_blocks = rate or attention.softcap is not None or not plain
    if cpu and not short and attention.training and bias is None and in_blocks:
        return _in_blocks(attention, half, q, k, v, attn_mask)
    if (cpu and short) or attention.softcap is not None:
        return attention.attend_plainly(q, k, v, mask, causal, rate)
    if half:
        q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    floats = mask if mask is not None and mask.dtype != torch.bool else None
    out: Tensor = Fused.apply(q, k, v, floats)
    return out


def _in_blocks(attention: Attention, half: bool, q: Tensor, k: Tensor, v: Tensor, attn_mask: AttnMask) -> Tensor:
    """`blocks.attend` with rows of one document each, which are the dearest."""
    rule, width = attn_mask.rule, k.shape[2]
    if attention.shared > 1:
        k, v = (y.repeat_interleave(attention.shared, 1) for y in (k, v))
    if half:
        q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    capped, dropped = attention.softcap is not None, attention.dropout > 0
    fused = not capped and not dropped
    queries = min(q.shape[2], blocks.QUERIES if fused else blocks.queries_of(q.shape[1], width))
    if rule is not None and isinstance(rule.spec, Sliding):
        width = min(width, rule.spec.window + queries - 1)
    masked = attn_mask.causal or attn_mask.mask is not None or (rule is not None and not isinstance(rule.spec, Full))
    scores = (0, 0) if fused else (2, 2 + capped + 2 * dropped)
    out: Tensor = InBlocks.apply(q, k, v, (queries, width), scores, masked)
    return out


def _halved(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass in bf16, also where it runs again in the backward pass."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with Halves():
            return forward(*args, **kwargs)

    return run


def _times(experts: Experts, half: bool, rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """`Experts.times` by torch's kernel for groups of rows."""
    weight = weight.transpose(1, 2)
    if half:
        rows, weight = rows.bfloat16(), weight.bfloat16()
    out: Tensor = Grouped.apply(rows, weight)
    return out


class Grouped(torch.autograd.Function):
    """The memory of a product of groups of rows, each with its own matrix."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return rows.new_empty(rows.shape[0], weight.shape[2])

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors)


def forgetful(model: nn.Module) -> None:
    """Let the blocks of a model keep no activations."""
    for module in model.modules():
        if isinstance(module, Block):
            again = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)
            module.forward = again  # type: ignore[method-assign]


def prepare(model: Model, cpu: bool, half: bool, recompute: bool) -> None:
    """Let a network take a step as it would on a device."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = partial(_attend, module, cpu, half)  # type: ignore[method-assign]
        elif isinstance(module, Experts):
            module.times = partial(_times, module, half)  # type: ignore[method-assign]
    for module in model.modules():
        if half and (isinstance(module, Block) or module is model.lm):
            module.forward = _halved(module.forward)  # type: ignore[method-assign]
    if recompute:
        forgetful(model)
