"""Floating-point operations of a training step, and the machine's peak."""

from __future__ import annotations

import functools
import time

import torch

from stemma.nn.mlp import Experts
from stemma.nn.model import Model
from stemma.nn.parts import Dims
from stemma.rewrites.paths import PlainTensors


def flops(model: Model, context: int, targets: float = 1.0, decoder: float = 0.0) -> float:
    """Operations of one training step per token of the row, forward and backward.

    6 for each weight that multiplies a token (2 forward, 4 backward; of experts, the active ones) plus
    12 * layers * width * context for attention (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), halved for causal
    attention. The vocabulary matrix counts for `targets`, the share of positions that reach it. `decoder`: decoder
    tokens for each encoder token; for an encoder-decoder the result is per encoder token.
    """
    dims, structure = model.dims, model.arch.structure
    head = 6.0 * dims.vocab * dims.d_model if model.lm is not None else 0.0
    if structure == "encoder-decoder":
        encoder = _weights(model.encoder) + _attention(dims, dims.layers, context)
        own = context * decoder
        read = _weights(model.decoder, ".cross.k.", ".cross.v.")  # these two multiply what the encoder read
        inner = _weights(model.decoder) - read + _attention(dims.decoder, dims.depth, own) / 2
        inner += _attention(dims.decoder, dims.depth, context)
        return encoder + read + decoder * inner + targets * head
    stack = model.encoder if structure == "encoder" else model.decoder
    attention = _attention(dims, dims.layers, context) / (1 if structure == "encoder" else 2)
    return _weights(stack) + attention + targets * head


def _weights(stack: torch.nn.Module | None, *parts: str) -> float:
    """Operations of a token in the matrices of a stack, or in those whose name contains one of `parts`."""
    assert stack is not None
    tables = ("table.weight", "blanks.weight", "absolute.weight")  # rows of these are looked up
    shapes = PlainTensors(stack).shapes.items()  # quantised matrices too
    named = [(n, shape) for n, shape in shapes if len(shape) == 2 and not n.endswith(tables)]
    flat = sum(shape.numel() for n, shape in named if not parts or any(part in n for part in parts))
    if parts:
        return 6.0 * flat
    experts = sum(
        sum(p.numel() for p in (m.gate, m.up, m.down)) * m.active / m.count
        for m in stack.modules()
        if isinstance(m, Experts)
    )
    return 6.0 * (flat + experts)


def _attention(dims: Dims, layers: int, context: float) -> float:
    return 12.0 * layers * dims.heads * dims.width * context


@functools.cache
def peak(device: str, bf16: bool) -> float:
    """Operations a second of a square matrix product on this machine, measured once (about 0.2 s)."""
    kind = torch.device(device)
    n = 8192 if kind.type == "cuda" else 1024
    a = torch.randn(n, n, device=kind, dtype=torch.bfloat16 if bf16 else torch.float32)
    best, spent = float("inf"), 0.0
    for i in range(30):
        begin = time.perf_counter()
        torch.mm(a, a)
        if kind.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - begin
        spent += took
        if i:
            best = min(best, took)
        if i >= 3 and spent > 0.2:
            break
    return 2.0 * n**3 / best
