"""LongLLaMA's training pass in plain loops, after the paper (Tworkowski et al. 2023, section 3.2) and the released code:
every query by itself, over a list of the keys that it sees. No mask, no kernel, no batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reference.longllama import rms_norm, turned


def steps(rows: int, consecutive: int, extra: int) -> list[int]:
    """How many earlier rows each row sees, by the released step schedule."""
    step = math.ceil((extra + 1) / max(consecutive - 1, 1))
    return [min((i % consecutive) * step + 1, extra + 1, i + 1) - 1 for i in range(rows)]


def forward(
    p: dict[str, Tensor],
    ids: list[list[int]],
    contexts: list[list[int]],
    layers: int,
    heads: int,
    memory_layers: tuple[int, ...],
    base: float = 10_000.0,
    eps: float = 1e-6,
) -> tuple[Tensor, list[Tensor]]:
    """(logits B T V, of each memory layer the attention weights as rows of B H T lists over own keys, then those of the
    rows of `contexts` in their order: B H T S, zero where a row sees fewer). `p`: parameters by the library's names."""
    xs = [[p["embed.tokens.weight"][t] for t in row] for row in ids]
    length, found = len(ids[0]), []
    most = length * (1 + max(map(len, contexts)))
    for n in range(layers):
        at = f"decoder.blocks.{n}"
        q: list[list[Tensor]] = []
        k: list[list[Tensor]] = []
        v: list[list[Tensor]] = []
        for row in xs:
            normed = [rms_norm(x, p[f"{at}.attention_norm.weight"], eps) for x in row]
            for out, m in ((q, "q"), (k, "k"), (v, "v")):
                out.append([(p[f"{at}.attention.{m}.weight"] @ y).view(heads, -1) for y in normed])
        weighed = torch.zeros(len(ids), heads, length, most)
        for b in range(len(xs)):
            others = contexts[b] if n in memory_layers else []
            for t in range(length):
                mixed = []
                for h in range(heads):
                    asked = turned(q[b][t][h], t, base)
                    seen = [(turned(k[b][i][h], i, base), v[b][i][h]) for i in range(t + 1)]
                    seen += [(k[o][i][h], v[o][i][h]) for o in others for i in range(length)]
                    scores = torch.stack([asked @ key for key, _ in seen]) / math.sqrt(len(asked))
                    weights = scores.softmax(0)
                    weighed[b, h, t, : t + 1] = weights[: t + 1].detach()
                    weighed[b, h, t, length : length + len(others) * length] = weights[t + 1 :].detach()
                    mixed.append(weights @ torch.stack([value for _, value in seen]))
                x = xs[b][t] + p[f"{at}.attention.o.weight"] @ torch.cat(mixed)
                y = rms_norm(x, p[f"{at}.mlp_norm.weight"], eps)
                gate = p[f"{at}.mlp.gate.weight"] @ y
                xs[b][t] = x + p[f"{at}.mlp.down.weight"] @ (gate * gate.sigmoid() * (p[f"{at}.mlp.up.weight"] @ y))
        if n in memory_layers:
            found.append(weighed)
    logits = [[p["lm.weight"] @ rms_norm(x, p["decoder.norm.weight"], eps) for x in row] for row in xs]
    return torch.stack([torch.stack(row) for row in logits]), found
