"""LongLLaMA's inference in plain tensor code, after the paper (Tworkowski et al. 2023) and what the published inference
code does: windows, a memory of keys as if at position 0, one softmax over both. One text, no cache of any kind of the
library's, no kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * gain


def turned(x: Tensor, place: int, base: float) -> Tensor:
    """A head's vector (D) at a place of its window."""
    half = len(x) // 2
    out = torch.empty_like(x)
    for i in range(half):
        angle = place * base ** (-2 * i / len(x))
        c, s = math.cos(angle), math.sin(angle)
        out[i] = x[i] * c - x[i + half] * s
        out[i + half] = x[i + half] * c + x[i] * s
    return out


@dataclass
class LongLlama:
    """`p`: parameters by the library's names; `window`: tokens of a window; `last`: tokens that are not put into memory
    when a prompt is read; `dtype`: of what is stored there."""

    p: dict[str, Tensor]
    layers: int
    heads: int
    base: float
    eps: float
    window: int
    last: int
    memory_layers: tuple[int, ...]
    dtype: torch.dtype
    local: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)  # a layer: (key, value) a token, H D
    memory: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def prompt(self, ids: list[int]) -> Tensor:
        """Logits (T V) of a text read from the beginning."""
        self.local = [[] for _ in range(self.layers)]
        self.memory = {n: [] for n in self.memory_layers}
        early = max(len(ids) - self.last, 0)
        out = []
        for start in range(0, early, self.window):
            out += [self.token(t) for t in ids[start : min(start + self.window, early)]]
            self.end_window()
        return torch.stack(out + [self.token(t) for t in ids[early:]])

    def step(self, token: int) -> Tensor:
        """Logits (V) after one more token."""
        if len(self.local[0]) + 1 > self.window:
            self.end_window()
        return self.token(token)

    def end_window(self) -> None:
        for n in self.memory_layers:
            self.memory[n] += [(k.to(self.dtype), v.to(self.dtype)) for k, v in self.local[n]]
        self.local = [[] for _ in range(self.layers)]

    def token(self, token: int) -> Tensor:
        p = self.p
        x = p["embed.tokens.weight"][token]
        width = len(x) // self.heads
        for n in range(self.layers):
            at = f"decoder.blocks.{n}"
            y = rms_norm(x, p[f"{at}.attention_norm.weight"], self.eps)
            q, k, v = ((p[f"{at}.attention.{m}.weight"] @ y).view(self.heads, width) for m in "qkv")
            self.local[n].append((k, v))
            place = len(self.local[n]) - 1
            heads = []
            for h in range(self.heads):
                asked = turned(q[h], place, self.base)
                seen = [(turned(a[h], i, self.base), b[h]) for i, (a, b) in enumerate(self.local[n])]
                seen += [(a[h].to(x.dtype), b[h].to(x.dtype)) for a, b in self.memory.get(n, [])]
                weights = torch.stack([asked @ a for a, _ in seen]).div(math.sqrt(width)).softmax(0)
                heads.append(weights @ torch.stack([b for _, b in seen]))
            x = x + p[f"{at}.attention.o.weight"] @ torch.cat(heads)
            y = rms_norm(x, p[f"{at}.mlp_norm.weight"], self.eps)
            gate = p[f"{at}.mlp.gate.weight"] @ y
            x = x + p[f"{at}.mlp.down.weight"] @ (gate * gate.sigmoid() * (p[f"{at}.mlp.up.weight"] @ y))
        return p["lm.weight"] @ rms_norm(x, p["decoder.norm.weight"], self.eps)
