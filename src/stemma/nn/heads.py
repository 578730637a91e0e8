"""What stands on the last hidden state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.nn import parts
from stemma.nn.mlp import activation
from stemma.nn.norms import norm


class LMHead(nn.Module):
    """Logits over the vocabulary; `tokens` is the embedding matrix, used where the spec ties it."""

    def __init__(self, spec: parts.LMHead, dims: parts.Dims) -> None:
        super().__init__()
        self.factor = dims.d_model**-0.5 if spec.scaled else 1.0
        self.weight = None if spec.tied else nn.Parameter(torch.empty(dims.vocab, dims.d_model))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:  # ... D -> ... V
        if self.factor != 1.0:
            x = x * self.factor
        return F.linear(x, tokens if self.weight is None else self.weight)


class MLMHead(nn.Module):
    """`tokens @ norm(act(dense(x))) + bias` (BERT)."""

    def __init__(self, spec: parts.MLMHead, kind: parts.Norm, dims: parts.Dims) -> None:
        super().__init__()
        self.act = activation(spec.act)
        self.dense = nn.Linear(dims.d_model, dims.d_model)
        self.norm = norm(kind, dims.d_model)
        self.weight = None if spec.tied else nn.Parameter(torch.empty(dims.vocab, dims.d_model))
        self.bias = nn.Parameter(torch.zeros(dims.vocab))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return F.linear(self.norm(self.act(self.dense(x))), tokens if self.weight is None else self.weight, self.bias)


class Pooler(nn.Module):
    """`tanh(dense(first token))` (BERT)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:  # B T D -> B D
        return self.dense(x[:, 0]).tanh()


def lm_head(spec: parts.LMHead | parts.MLMHead, kind: parts.Norm, dims: parts.Dims) -> LMHead | MLMHead:
    """The module of a language-model head."""
    return LMHead(spec, dims) if isinstance(spec, parts.LMHead) else MLMHead(spec, kind, dims)
