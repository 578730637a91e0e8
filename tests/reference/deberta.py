"""DeBERTa as its papers and its authors' files have it, pair by pair: disentangled attention (arXiv:2006.03654, equation
4, with the one index for both terms that the released models use), the enhanced mask decoder (section 3.2) and the
detector of version 3 (arXiv:2111.09543). It works in double precision on the tensors of a file, by their names there."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def layer_norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def dense(x: Tensor, w: Weights, name: str) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def row(distance: int, config: dict[str, Any]) -> int:
    """The row of the table for the distance from a query to a key."""
    furthest, buckets = config["max_relative_positions"], config.get("position_buckets", -1)
    if buckets < 1:
        return min(max(distance + furthest, 0), 2 * furthest - 1)
    middle = buckets // 2
    bucket = distance
    if abs(distance) > middle:
        share = math.log(abs(distance) / middle) / math.log((furthest - 1) / middle)
        # the released code rounds up in single precision, where the last distance is a whole number
        bucket = int(math.copysign(math.ceil(round(share * (middle - 1), 5)) + middle, distance))
    return min(max(bucket + buckets, 0), 2 * buckets - 1)


def maps(w: Weights, name: str, heads: int) -> dict[str, Any]:
    """The linear maps of a layer's attention: of contents and of distances."""
    if f"{name}.in_proj.weight" not in w:  # versions 2 and 3: one set for both
        both = {part: lambda x, p=part: dense(x, w, f"{name}.{p}_proj") for part in ("query", "key", "value")}
        return both | {"far_query": both["query"], "far_key": both["key"]}
    packed = w[f"{name}.in_proj.weight"].view(heads, 3, -1, w[f"{name}.in_proj.weight"].shape[1])
    q, k, v = (packed[:, i].flatten(0, 1) for i in range(3))
    return {
        "query": lambda x: x @ q.T + w[f"{name}.q_bias"],
        "key": lambda x: x @ k.T,
        "value": lambda x: x @ v.T + w[f"{name}.v_bias"],
        "far_query": lambda x: dense(x, w, f"{name}.pos_q_proj"),
        "far_key": lambda x: dense(x, w, f"{name}.pos_proj"),
    }


def layer(w: Weights, config: dict[str, Any], number: int, queries: Tensor, source: Tensor) -> Tensor:
    """One block over one text without padding: T D, T D -> T D."""
    name, heads, eps = f"deberta.encoder.layer.{number}", config["num_attention_heads"], config["layer_norm_eps"]
    table = w["deberta.encoder.rel_embeddings.weight"]
    if "deberta.encoder.LayerNorm.weight" in w:
        table = layer_norm(table, w, "deberta.encoder.LayerNorm", eps)
    m = maps(w, f"{name}.attention.self", heads)

    def split(x: Tensor) -> Tensor:  # T D -> H T D/H
        return x.view(len(x), heads, -1).transpose(0, 1)

    q, k, v = split(m["query"](queries)), split(m["key"](source)), split(m["value"](source))
    far_q, far_k = split(m["far_query"](table)), split(m["far_key"](table))
    length, width = q.shape[1], q.shape[2]
    scores = torch.zeros(heads, length, length, dtype=q.dtype)
    for i in range(length):
        for j in range(length):
            d = row(i - j, config)
            products = (q[:, i] * k[:, j]).sum(-1) + (q[:, i] * far_k[:, d]).sum(-1) + (k[:, j] * far_q[:, d]).sum(-1)
            scores[:, i, j] = products / math.sqrt(3 * width)
    y = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
    x = layer_norm(
        queries + dense(y, w, f"{name}.attention.output.dense"), w, f"{name}.attention.output.LayerNorm", eps
    )
    inner = gelu(dense(x, w, f"{name}.intermediate.dense"))
    return layer_norm(x + dense(inner, w, f"{name}.output.dense"), w, f"{name}.output.LayerNorm", eps)


def convolution(w: Weights, config: dict[str, Any], x: Tensor, beside: Tensor) -> Tensor:
    kernel = w["deberta.encoder.conv.conv.weight"]  # D D K
    reach, out = kernel.shape[2] // 2, torch.zeros_like(x)
    for t in range(len(x)):
        for k in range(kernel.shape[2]):
            if 0 <= t + k - reach < len(x):
                out[t] += kernel[:, :, k] @ x[t + k - reach]
    out = gelu(out + w["deberta.encoder.conv.conv.bias"])
    return layer_norm(beside + out, w, "deberta.encoder.conv.LayerNorm", config["layer_norm_eps"])


def states(w: Weights, config: dict[str, Any], ids: list[int]) -> list[Tensor]:
    """What each block of the encoder reads, and what the last one leaves: T D each."""
    x = w["deberta.embeddings.word_embeddings.weight"][ids]
    x = layer_norm(x, w, "deberta.embeddings.LayerNorm", config["layer_norm_eps"])
    out = [x]
    for number in range(config["num_hidden_layers"]):
        x = layer(w, config, number, x, x)
        if number == 0 and "deberta.encoder.conv.conv.weight" in w:
            x = convolution(w, config, out[0], x)
        out.append(x)
    return out


def masked(w: Weights, config: dict[str, Any], ids: list[int]) -> Tensor:
    """Logits of the enhanced mask decoder: T V."""
    before = states(w, config, ids)[-2]
    x = before + w["deberta.embeddings.position_embeddings.weight"][: len(ids)]
    for _ in range(2):
        x = layer(w, config, config["num_hidden_layers"] - 1, x, before)
    head = "lm_predictions.lm_head"
    x = layer_norm(gelu(dense(x, w, f"{head}.dense")), w, f"{head}.LayerNorm", config["layer_norm_eps"])
    return x @ w["deberta.embeddings.word_embeddings.weight"].T + w[f"{head}.bias"]


def replaced(w: Weights, config: dict[str, Any], ids: list[int]) -> Tensor:
    """Logits of the detector: T."""
    x = states(w, config, ids)[-1]
    x = layer_norm(x + x[0], w, "mask_predictions.LayerNorm", config["layer_norm_eps"])
    return dense(gelu(dense(x, w, "mask_predictions.dense")), w, "mask_predictions.classifier")[:, 0]
