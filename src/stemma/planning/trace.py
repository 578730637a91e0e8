"""One training step on the meta device: every tensor that a step makes, none of its numbers. What is alive at once is
counted, so activations, logits and gradients come out as the network really keeps them, for any objective."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.fx.experimental._config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from stemma.declare.family import Text
from stemma.nn.attention import Attention
from stemma.nn.cpu import SHORT
from stemma.nn.masks import AttnMask
from stemma.nn.mlp import Experts
from stemma.nn.model import Model
from stemma.nn.parts import Arch, Dims
from stemma.nn.stack import Block
from stemma.objectives import Batch, Objective
from stemma.train.config import Net

ROLES = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")


class Words:
    """A tokenizer that has the special tokens of a family, and ids for words instead of words."""

    def __init__(self, text: Text, vocab: int) -> None:
        self.kind, self.vocab_size, self.sentinels = text.tokenizer, vocab, text.sentinels
        names = list(dict.fromkeys(n for role in ROLES if (n := getattr(text, role)) is not None))
        names += [name for name in (*text.blanks, *text.extras, *text.infill) if name not in names]
        self.ids = {name: i for i, name in enumerate(names)}
        for role in ROLES:
            setattr(self, f"{role}_id", self.ids.get(getattr(text, role)))
        self.special_ids = [*range(len(names)), *range(vocab - text.sentinels, vocab)]

    def id(self, name: str) -> int | None:
        return self.ids.get(name)

    def tokens(self, ids: Any) -> list[str]:
        """What ids stand for: names of special tokens, and words that are whole."""
        names = {i: name for name, i in self.ids.items()}
        return [names.get(int(i), f"▁w{int(i)}") for i in ids]

    def sentinel(self, k: int) -> int:
        return self.vocab_size - 1 - k


class Texts:
    """Documents without meaning, three quarters of a row long: rows hold parts of several, as they mostly do."""

    def __init__(self, tokenizer: Words, context: int, documents: int = 64) -> None:
        self.size, self.count = max(8, 3 * context // 4), documents
        low = len(tokenizer.ids)
        self.low, self.high = low, tokenizer.vocab_size - tokenizer.sentinels

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return np.random.default_rng(i).integers(self.low, self.high, self.size)

    def text(self, i: int) -> str:
        return ""

    def sentences(self, i: int) -> Any:
        return np.arange(0, self.size, max(1, self.size // 6))


class Live(TorchDispatchMode):
    """Bytes of the tensors that are made within this: now (`live`), and the most at once (`peak`)."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0  # a number that an objective reports; here it has none
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)

    def spare(self, tensors: Any) -> None:
        """Count nothing for tensors that were there before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[id(storage)] = storage


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
    """`Attention.attend` as the device will take it: it chooses by where tensors lie, and these lie nowhere."""
    mask, causal = attn_mask
    if bias is not None:
        if causal:
            mask, causal = q.new_ones(q.shape[2], k.shape[2]).tril().bool(), False
        mask = bias if mask is None else bias.masked_fill(~mask, -1.0)
    if attention.softcap is not None or (cpu and q.shape[2] * k.shape[2] <= SHORT**2):
        return attention.attend_plainly(q, k, v, mask, causal, attention.dropout)
    if half:
        q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    floats = mask if mask is not None and mask.dtype != torch.bool else None
    out: Tensor = Fused.apply(q, k, v, floats)
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


def step(
    arch: Arch,
    dims: Dims,
    objective: Objective,
    batch: Batch,
    *,
    cpu: bool,
    half: bool,
    recompute: bool,
    micros: int,
    nets: Sequence[Net] = (),
) -> tuple[int, int]:
    """(bytes at once beyond the weights and the optimiser's state, parameters that learn) of a step of `micros`
    micro-batches like `batch`, with `nets` beside the model: activations, logits, gradients."""
    with torch.device("meta"):
        model = Model(arch, dims).train()
    prepare(model, cpu, half, recompute)
    beside = {}
    for net in nets:
        with torch.device("meta"):
            beside[net.role] = Model(net.arch, replace(net.dims, vocab=dims.vocab)).train(net.learns)
        beside[net.role].requires_grad_(net.learns)
    objective.tie(model, beside)
    for other in beside.values():
        prepare(other, cpu, half, False)
    held = {name: tensor.to("meta") for name, tensor in batch.items()}
    live = Live()
    live.spare(p for net in (model, *beside.values()) for p in net.parameters())
    settings: Any = torch.fx.experimental._config
    whole = settings.patch(meta_nonzero_assume_all_nonzero=True)  # no token of a row is padding
    with live, whole, Halves() if half else contextlib.nullcontext():
        for _ in range(micros):
            objective.loss(model, held, beside).total().backward()
    learned = {id(p): p.numel() for net in (model, *beside.values()) for p in net.parameters() if p.requires_grad}
    return live.peak, sum(learned.values())
