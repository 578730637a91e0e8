"""ChatGLM-6B and ChatGLM2/3-6B as their released code computes them: the first with every norm at the beginning of a
branch, scaled residuals and rotation by two positions, the second a LLaMA with shared keys and half-turned heads."""

from __future__ import annotations

import torch
from torch import Tensor

from reference.glm2021 import dense, gelu, norm, places, seen

Weights = dict[str, Tensor]
__all__ = ["logits", "places", "second_logits", "second_shapes", "shapes"]


def shapes(layers: int, width: int, inner: int, vocab: int, head: bool = True) -> dict[str, tuple[int, ...]]:
    """Every tensor of a file of the first; `head`: with a head of its own."""
    out: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (vocab, width)}
    linear = {"attention.query_key_value": (3 * width, width), "attention.dense": (width, width),
              "mlp.dense_h_to_4h": (inner, width), "mlp.dense_4h_to_h": (width, inner)}  # fmt: skip
    norms = [f"layers.{i}.{n}_layernorm" for i in range(layers) for n in ("input", "post_attention")]
    for i in range(layers):
        out |= {f"transformer.layers.{i}.{n}.weight": shape for n, shape in linear.items()}
        out |= {f"transformer.layers.{i}.{n}.bias": shape[:1] for n, shape in linear.items()}
    out |= {f"transformer.{n}.{leaf}": (width,) for n in [*norms, "final_layernorm"] for leaf in ("weight", "bias")}
    return out | ({"lm_head.weight": (vocab, width)} if head else {})


def circle(place: Tensor, n: int) -> Tensor:
    """Where n/2 hands stand that turn by place / 10000 ** (2 i / n), in fp32 as released. T -> T n/2."""
    angle = place[:, None].float() * (1 / 10000.0 ** (torch.arange(0, n, 2).float() / n))
    return torch.complex(angle.cos(), angle.sin())


def turned(x: Tensor, place: Tensor) -> Tensor:
    """Element i and element i + n/2 are one complex number. T A n -> T A n."""
    n = x.shape[-1]
    number = torch.complex(x[..., : n // 2], x[..., n // 2 :])
    number = number * circle(place, n).to(number.dtype)[:, None]
    return torch.cat([number.real, number.imag], -1)


def attention(q: Tensor, k: Tensor, v: Tensor, look: Tensor, layer: int) -> Tensor:
    """T A d, three times -> T (A d); scores are made small by the layer's number and large again before the softmax."""
    scores = torch.einsum("tad,sad->ats", q / (q.shape[-1] ** 0.5 * (layer + 1)), k)
    share = (scores.masked_fill(look == 0, -10000.0) * (layer + 1)).softmax(-1)
    return torch.einsum("ats,sad->tad", share, v).flatten(1)


def logits(w: Weights, heads: int, ids: Tensor, first: Tensor, second: Tensor, context: int) -> Tensor:
    """Of one row: T, T, T -> T V."""
    layers = len([name for name in w if name.endswith("attention.dense.weight")])
    x = w["transformer.word_embeddings.weight"][ids]
    look, alpha = seen(len(ids), context, x), (2 * layers) ** 0.5
    for i in range(layers):
        at = f"transformer.layers.{i}"
        x = norm(x, w, f"{at}.input_layernorm")
        q, k, v = dense(x, w, f"{at}.attention.query_key_value").view(len(ids), heads, -1).chunk(3, -1)
        q, k = (
            torch.cat([turned(half, place) for half, place in zip(y.chunk(2, -1), (first, second), strict=True)], -1)
            for y in (q, k)
        )
        x = alpha * x + dense(attention(q, k, v, look, i), w, f"{at}.attention.dense")
        x = norm(x, w, f"{at}.post_attention_layernorm")
        x = alpha * x + dense(gelu(dense(x, w, f"{at}.mlp.dense_h_to_4h")), w, f"{at}.mlp.dense_4h_to_h")
    x = norm(x, w, "transformer.final_layernorm")
    return x @ w.get("lm_head.weight", w["transformer.word_embeddings.weight"]).T


# ---------------------------------------------------------------- the second


def second_shapes(layers: int, width: int, inner: int, vocab: int, heads: int, groups: int, d: int) -> dict[str, tuple]:
    """Every tensor of a file of the second."""
    packed = (heads + 2 * groups) * d
    out: dict[str, tuple] = {
        "transformer.embedding.word_embeddings.weight": (vocab, width),
        "transformer.encoder.final_layernorm.weight": (width,),
        "transformer.output_layer.weight": (vocab, width),
    }
    for i in range(layers):
        at = f"transformer.encoder.layers.{i}"
        out |= {
            f"{at}.input_layernorm.weight": (width,),
            f"{at}.post_attention_layernorm.weight": (width,),
            f"{at}.self_attention.query_key_value.weight": (packed, width),
            f"{at}.self_attention.query_key_value.bias": (packed,),
            f"{at}.self_attention.dense.weight": (width, heads * d),
            f"{at}.mlp.dense_h_to_4h.weight": (2 * inner, width),
            f"{at}.mlp.dense_4h_to_h.weight": (width, inner),
        }
    return out


def second_turned(x: Tensor) -> Tensor:
    """The first half of each head: neighbours are one complex number. T A d -> T A d."""
    half = x.shape[-1] // 2
    number = torch.view_as_complex(x[..., :half].reshape(*x.shape[:2], -1, 2).contiguous())
    number = number * circle(torch.arange(len(x)), half).to(number.dtype)[:, None]
    return torch.cat([torch.view_as_real(number).flatten(-2), x[..., half:]], -1)


def second_logits(w: Weights, heads: int, groups: int, ids: Tensor) -> Tensor:
    """Of one row: T -> T V."""

    def rms(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]

    x = w["transformer.embedding.word_embeddings.weight"][ids]
    layers = len([name for name in w if name.endswith("self_attention.dense.weight")])
    for i in range(layers):
        at = f"transformer.encoder.layers.{i}"
        packed = dense(rms(x, f"{at}.input_layernorm"), w, f"{at}.self_attention.query_key_value")
        packed = packed.view(len(ids), heads + 2 * groups, -1)
        q, k = second_turned(packed[:, :heads]), second_turned(packed[:, heads : heads + groups])
        k, v = (y.repeat_interleave(heads // groups, 1) for y in (k, packed[:, heads + groups :]))
        x = x + attention(q, k, v, seen(len(ids), 0, x), i) @ w[f"{at}.self_attention.dense.weight"].T
        gate, up = (rms(x, f"{at}.post_attention_layernorm") @ w[f"{at}.mlp.dense_h_to_4h.weight"].T).chunk(2, 1)
        x = x + (gate * gate.sigmoid() * up) @ w[f"{at}.mlp.dense_4h_to_h.weight"].T
    return rms(x, "transformer.encoder.final_layernorm") @ w["transformer.output_layer.weight"].T
