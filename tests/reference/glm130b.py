"""GLM-130B (Zeng et al. 2022, arXiv:2210.02414) in the paper's form: `norm(a x + f(x))`, GEGLU, one rotary position."""

from __future__ import annotations

import torch
from torch import Tensor

from reference.chatglm import turned
from reference.glm2021 import dense, norm, seen

Weights = dict[str, Tensor]


def shapes(layers: int, width: int, inner: int, vocab: int) -> dict[str, tuple[int, ...]]:
    """Every tensor, by names of the released code: q, k and v packed by head, the gate after what it gates."""
    out: dict[str, tuple[int, ...]] = {"word_embeddings.weight": (vocab, width)}
    linear = {"query_key_value": (3 * width, width), "dense": (width, width),
              "dense_h_to_4h": (2 * inner, width), "dense_4h_to_h": (width, inner)}  # fmt: skip
    for i in range(layers):
        for name, shape in linear.items():
            out |= {f"{i}.{name}.weight": shape, f"{i}.{name}.bias": shape[:1]}
        out |= {f"{i}.{n}.{leaf}": (width,) for n in ("attention_norm", "mlp_norm") for leaf in ("weight", "bias")}
    return out | {f"embedding_norm.{leaf}": (width,) for leaf in ("weight", "bias")}


def places(ids: list[int], mask: int, end: int, start: int) -> tuple[list[int], int]:
    """Positions and the length of the context: what fills [MASK] stands at its place, what follows [gMASK] runs on."""
    context = ids.index(start) if start in ids else len(ids)
    hole = next((i for i in range(context) if ids[i] in (mask, end)), None)
    stays = hole is not None and ids[hole] == mask
    return [hole if stays and i >= context else i for i in range(len(ids))], context  # type: ignore[misc]


def logits(w: Weights, heads: int, ids: Tensor, place: Tensor, context: int) -> Tensor:
    """Of one row: T, T -> T V."""
    layers = len([name for name in w if name.endswith(".dense.weight")])
    alpha = (2 * layers) ** 0.5
    x = norm(w["word_embeddings.weight"][ids], w, "embedding_norm")
    look = seen(len(ids), context, x) > 0
    for i in range(layers):
        q, k, v = dense(x, w, f"{i}.query_key_value").view(len(ids), heads, -1).chunk(3, -1)
        scores = torch.einsum("tad,sad->tsa", turned(q, place), turned(k, place)) / q.shape[-1] ** 0.5
        share = scores.masked_fill(~look[:, :, None], float("-inf")).softmax(1)
        y = torch.einsum("tsa,sad->tad", share, v).reshape(len(ids), -1)
        x = norm(alpha * x + dense(y, w, f"{i}.dense"), w, f"{i}.attention_norm")
        kept, gate = dense(x, w, f"{i}.dense_h_to_4h").chunk(2, 1)
        y = kept * (gate * 0.5 * (1 + torch.erf(gate / 2**0.5)))
        x = norm(alpha * x + dense(y, w, f"{i}.dense_4h_to_h"), w, f"{i}.mlp_norm")
    return x @ w["word_embeddings.weight"].T
