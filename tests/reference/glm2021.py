"""GLM (Du et al. 2021, arXiv:2103.10360; github.com/THUDM/GLM): pre-norm blocks of GPT-2, two position tables, and a
context that sees itself whole."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def shapes(layers: int, width: int, vocab: int, longest: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of a file."""
    out: dict[str, tuple[int, ...]] = {"word_embeddings.weight": (vocab, width)}
    for table in ("position", "block_position"):
        out[f"transformer.{table}_embeddings.weight"] = (longest + 1, width)
    linear = {"attention.query_key_value": (3, 1), "attention.dense": (1, 1), "mlp.dense_h_to_4h": (4, 1),
              "mlp.dense_4h_to_h": (1, 4)}  # fmt: skip
    for i in range(layers):
        for name, (rows, columns) in linear.items():
            out[f"transformer.layers.{i}.{name}.weight"] = (rows * width, columns * width)
            out[f"transformer.layers.{i}.{name}.bias"] = (rows * width,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            out |= {f"transformer.layers.{i}.{name}.{leaf}": (width,) for leaf in ("weight", "bias")}
    return out | {f"transformer.final_layernorm.{leaf}": (width,) for leaf in ("weight", "bias")}


def places(ids: list[int], blanks: set[int], start: int) -> tuple[list[int], list[int], int]:
    """Both numbers of every token, and the length of the context: part A runs to the first `start`; each part B takes
    the place of its mask and counts from 1 (section 2.2.1)."""
    context = ids.index(start) if start in ids else len(ids)
    holes = [i for i in range(context) if ids[i] in blanks] or [context - 1]
    first, second = list(range(context)), [0] * context
    part = -1
    for token in ids[context:]:
        if token == start:
            part, count = part + 1, 0
        count += 1
        first.append(holes[min(part, len(holes) - 1)])
        second.append(count)
    return first, second, context


def norm(x: Tensor, w: Weights, name: str) -> Tensor:
    mean = x.mean(1, keepdim=True)
    spread = ((x - mean) ** 2).mean(1, keepdim=True)
    return (x - mean) / (spread + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def dense(x: Tensor, w: Weights, name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x)))


def seen(length: int, context: int, like: Tensor) -> Tensor:
    """1 where row i may look at column j."""
    return torch.tensor([[float(j <= i or j < context) for j in range(length)] for i in range(length)]).to(like)


def logits(w: Weights, heads: int, ids: Tensor, first: Tensor, second: Tensor, context: int) -> Tensor:
    """Of one row: T, T, T -> T V."""
    x = w["word_embeddings.weight"][ids]
    x = (
        x
        + w["transformer.position_embeddings.weight"][first]
        + w["transformer.block_position_embeddings.weight"][second]
    )
    look = seen(len(ids), context, x)
    layer = 0
    while f"transformer.layers.{layer}.attention.dense.weight" in w:
        at = f"transformer.layers.{layer}"
        q, k, v = dense(norm(x, w, f"{at}.input_layernorm"), w, f"{at}.attention.query_key_value").chunk(3, 1)
        mixed = []
        for h in range(heads):
            part = slice(h * q.shape[1] // heads, (h + 1) * q.shape[1] // heads)
            scores = q[:, part] @ k[:, part].T / math.sqrt(q.shape[1] // heads)
            mixed.append(torch.softmax(scores * look - 65504.0 * (1 - look), 1) @ v[:, part])
        x = x + dense(torch.cat(mixed, 1), w, f"{at}.attention.dense")
        y = gelu(dense(norm(x, w, f"{at}.post_attention_layernorm"), w, f"{at}.mlp.dense_h_to_4h"))
        x = x + dense(y, w, f"{at}.mlp.dense_4h_to_h")
        layer += 1
    return norm(x, w, "transformer.final_layernorm") @ w["word_embeddings.weight"].T
