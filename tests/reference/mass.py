"""MASS (Song et al. 2019) as plain functions over tensors by fairseq's names: what the library is held to, written from
the paper and the description of the released model, with nothing of the library in it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
PAD = 0


def random_state(vocab: int, width: int, inner: int, layers: tuple[int, int], places: int, seed: int = 0) -> State:
    """Weights of a model under fairseq's names, all away from their initial values."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, around: float = 0.0) -> Tensor:
        return around + torch.randn(shape, generator=generator) * 0.15

    state = {"encoder.embed_tokens.weight": draw(vocab, width)}
    state["decoder.embed_tokens.weight"] = state["encoder.embed_tokens.weight"]
    for stack, depth in zip(("encoder", "decoder"), layers, strict=True):
        state[f"{stack}.embed_positions.weight"] = draw(places + PAD + 1, width)
        norms = [f"{stack}.emb_layer_norm"]
        for i in range(depth):
            layer = f"{stack}.layers.{i}"
            kinds = ["self_attn"] + ["encoder_attn"] * (stack == "decoder")
            norms += [f"{layer}.{k}_layer_norm" for k in kinds] + [f"{layer}.final_layer_norm"]
            for kind in kinds:
                for x in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    state |= {f"{layer}.{kind}.{x}.weight": draw(width, width), f"{layer}.{kind}.{x}.bias": draw(width)}
            state |= {f"{layer}.fc1.weight": draw(inner, width), f"{layer}.fc1.bias": draw(inner)}
            state |= {f"{layer}.fc2.weight": draw(width, inner), f"{layer}.fc2.bias": draw(width)}
        for norm in norms:
            state |= {f"{norm}.weight": draw(width, around=1.0), f"{norm}.bias": draw(width)}
    return state


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"]
        + state[f"{name}.bias"]
    )


def attend(state: State, name: str, heads: int, x: Tensor, source: Tensor, closed: Tensor) -> Tensor:
    """`closed` (B T S): what may not be seen."""
    q, k, v = (
        linear(state, f"{name}.{a}_proj", b).unflatten(-1, (heads, -1)).transpose(1, 2)
        for a, b in (("q", x), ("k", source), ("v", source))
    )
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    share = scores.masked_fill(closed[:, None], -torch.inf).softmax(-1)
    return linear(state, f"{name}.out_proj", (share @ v).transpose(1, 2).flatten(2))


def places(ids: Tensor) -> Tensor:
    """Tokens are counted from PAD + 1 on; padding stands outside the count."""
    real = (ids != PAD).long()
    return real.cumsum(1) * real + PAD


def embed(state: State, stack: str, ids: Tensor, at: Tensor | None) -> Tensor:
    tokens = state[f"{stack}.embed_tokens.weight"]
    x = math.sqrt(tokens.shape[1]) * tokens[ids]
    x = x + state[f"{stack}.embed_positions.weight"][places(ids) if at is None else at]
    return norm(state, f"{stack}.emb_layer_norm", x)


def layers(state: State, stack: str) -> list[str]:
    return sorted({n.rsplit(".fc1", 1)[0] for n in state if n.startswith(f"{stack}.") and ".fc1." in n})


def mlp(state: State, layer: str, x: Tensor) -> Tensor:
    return linear(state, f"{layer}.fc2", F.gelu(linear(state, f"{layer}.fc1", x)))


def mass(state: State, heads: int, source: Tensor, target: Tensor, at: Tensor | None = None) -> Tensor:
    """Logits (B T V) of what follows each token of `target` (B T), in sight of `source` (B S). `at`: the places of
    target tokens in the table, where they are a run of a text and not all of it."""
    hidden = source == PAD
    x = embed(state, "encoder", source, None)
    for layer in layers(state, "encoder"):
        closed = hidden[:, None].expand(-1, x.shape[1], -1)
        x = norm(state, f"{layer}.self_attn_layer_norm", x + attend(state, f"{layer}.self_attn", heads, x, x, closed))
        x = norm(state, f"{layer}.final_layer_norm", x + mlp(state, layer, x))
    y = embed(state, "decoder", target, at)
    later = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool).triu(1).expand(len(y), -1, -1)
    for layer in layers(state, "decoder"):
        y = norm(state, f"{layer}.self_attn_layer_norm", y + attend(state, f"{layer}.self_attn", heads, y, y, later))
        closed = hidden[:, None].expand(-1, y.shape[1], -1)
        y = norm(
            state, f"{layer}.encoder_attn_layer_norm", y + attend(state, f"{layer}.encoder_attn", heads, y, x, closed)
        )
        y = norm(state, f"{layer}.final_layer_norm", y + mlp(state, layer, y))
    return y @ state["encoder.embed_tokens.weight"].T
