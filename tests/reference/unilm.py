"""UniLM (arXiv:1905.03197, sections 2.1 to 2.3) from a state dict with BERT's names: one text at a time, no padding."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

SEGMENTS = {"full": (0, 0), "causal": (2, 2), "reverse": (3, 3), "prefix": (4, 5)}


def mask(attention: str, length: int, source: int) -> Tensor:
    """T T: 0 where the row's token may attend to the column's, minus infinity elsewhere."""
    out = torch.full((length, length), -math.inf)
    for i in range(length):
        for j in range(length):
            match attention:
                case "full":
                    sees = True
                case "causal":
                    sees = j <= i
                case "reverse":
                    sees = j >= i
                case "prefix":
                    sees = j < source or (i >= source and j <= i)
            if sees:
                out[i, j] = 0.0
    return out


def forward(
    state: Mapping[str, Tensor], ids: list[int], heads: int, attention: str, source: int = 0, eps: float = 1e-12
) -> dict[str, Tensor]:
    """`hidden` T D, `logits` T V and `pair` 2 of a text whose first `source` tokens are the source."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    first, last = SEGMENTS[attention]
    segments = [first if i < source else last for i in range(len(ids))]
    words, places, kinds = (state[f"bert.embeddings.{n}_embeddings.weight"] for n in ("word", "position", "token_type"))
    x = norm(words[ids] + places[: len(ids)] + kinds[segments], "bert.embeddings.LayerNorm")
    seen = mask(attention, len(ids), source).to(x)
    layer = 0
    while f"bert.encoder.layer.{layer}.output.dense.weight" in state:
        at = f"bert.encoder.layer.{layer}"
        q, k, v = (linear(x, f"{at}.attention.self.{n}") for n in ("query", "key", "value"))
        width, parts = x.shape[-1] // heads, []
        for h in range(heads):
            cut = slice(h * width, (h + 1) * width)
            weights = (q[:, cut] @ k[:, cut].T / math.sqrt(width) + seen).softmax(-1)
            parts.append(weights @ v[:, cut])
        y = linear(torch.cat(parts, -1), f"{at}.attention.output.dense")
        x = norm(x + y, f"{at}.attention.output.LayerNorm")
        y = linear(gelu(linear(x, f"{at}.intermediate.dense")), f"{at}.output.dense")
        x = norm(x + y, f"{at}.output.LayerNorm")
        layer += 1
    top = norm(gelu(linear(x, "cls.predictions.transform.dense")), "cls.predictions.transform.LayerNorm")
    pooled = linear(x[0], "bert.pooler.dense").tanh()
    return {
        "hidden": x,
        "logits": top @ words.T + state["cls.predictions.bias"],
        "pair": linear(pooled, "cls.seq_relationship"),
    }
