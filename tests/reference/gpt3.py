"""GPT-3's forward pass in plain tensor code, after the papers: GPT-2's network with learned positions, layers in turn
dense and locally banded (Brown et al. 2020, section 2.1; Child et al. 2019). No kernel and no code of the library."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * gain + bias


def forward(
    p: dict[str, Tensor], ids: list[int], layers: int, heads: int, bands: list[int | None], eps: float
) -> Tensor:
    """Logits (T V) of one text. `bands`: per layer, how many tokens a query sees, itself included; None: all before."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    tokens = p["embed.tokens.weight"]
    x = torch.stack([tokens[t] + p["decoder.position.table.weight"][i] for i, t in enumerate(ids)])
    width = x.shape[1] // heads
    for n in range(layers):
        at = f"decoder.blocks.{n}"
        y = layer_norm(x, p[f"{at}.attention_norm.weight"], p[f"{at}.attention_norm.bias"], eps)
        q, k, v = (linear(y, f"{at}.attention.{m}") for m in "qkv")
        joined = torch.zeros_like(x)
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            for i in range(len(ids)):
                first = 0 if bands[n] is None else max(0, i - bands[n] + 1)
                scores = torch.stack([q[i, part] @ k[j, part] / math.sqrt(width) for j in range(first, i + 1)])
                weights = (scores - scores.max()).exp()
                joined[i, part] = (weights / weights.sum()) @ v[first : i + 1, part]
        x = x + linear(joined, f"{at}.attention.o")
        y = linear(layer_norm(x, p[f"{at}.mlp_norm.weight"], p[f"{at}.mlp_norm.bias"], eps), f"{at}.mlp.up")
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y * y * y)))
        x = x + linear(y, f"{at}.mlp.down")
    return layer_norm(x, p["decoder.norm.weight"], p["decoder.norm.bias"], eps) @ tokens.T
