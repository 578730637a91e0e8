"""What stands on the last hidden state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.mlp import activation, capped
from stemma.nn.norms import norm


class LMHead(nn.Module):
    """Logits over the vocabulary; `tokens` is the embedding matrix, used where the spec ties it."""

    def __init__(self, spec: parts.LMHead, dims: parts.Dims) -> None:
        super().__init__()
        self.scale = dims.d_model**-0.5 if spec.scaled else 1.0
        self.factor, self.softcap = spec.factor, spec.softcap
        self.weight = None if spec.tied else nn.Parameter(torch.empty(dims.vocab, dims.d_model))
        self.bias = nn.Parameter(torch.zeros(dims.vocab)) if spec.bias else None

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:  # ... D -> ... V
        if self.scale != 1.0:
            x = x * self.scale
        y = F.linear(x, tokens if self.weight is None else self.weight, self.bias)
        if self.factor != 1.0:
            y = y * self.factor
        return y if self.softcap is None else capped(y, self.softcap)


class MLMHead(nn.Module):
    """`tokens @ norm(act(dense(x))) + bias` (BERT)."""

    def __init__(self, spec: parts.MLMHead, kind: parts.Norm, dims: parts.Dims) -> None:
        super().__init__()
        self.act = activation(spec.act)
        self.dense = nn.Linear(dims.d_model, dims.embed_width)
        self.norm = norm(kind, dims.embed_width)
        self.weight = None if spec.tied else nn.Parameter(torch.empty(dims.vocab, dims.embed_width))
        self.bias = nn.Parameter(torch.zeros(dims.vocab))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return F.linear(self.norm(self.act(self.dense(x))), tokens if self.weight is None else self.weight, self.bias)


class Summary(nn.Module):
    """The vector of a text that `parts.Summary` describes."""

    def __init__(self, spec: parts.Summary, dims: parts.Dims) -> None:
        super().__init__()
        self.act = spec.act
        self.dense = nn.Linear(dims.d_model, dims.d_model) if spec.act is not None else None

    def forward(self, x: Tensor, place: Tensor | None = None) -> Tensor:  # B T D, B -> B D
        """`place`: which token of each text, where it is not the first."""
        y = x[:, 0] if place is None else x[torch.arange(len(x), device=x.device), place]
        if self.dense is None:
            return y
        y = self.dense(y)
        match self.act:
            case "tanh":
                return y.tanh()
            case "relu":
                return y.relu()
        return F.gelu(y)


class Detector(nn.Module):
    """A logit a token: was it replaced?"""

    def __init__(self, spec: parts.Detector, dims: parts.Dims) -> None:
        super().__init__()
        self.act = activation(spec.act)
        self.dense = nn.Linear(dims.d_model, dims.d_model)
        self.out = nn.Linear(dims.d_model, 1)

    def forward(self, x: Tensor) -> Tensor:  # B T D -> B T
        return self.out(self.act(self.dense(x))).squeeze(-1)


class Task(nn.Module):
    """A head that a body is tuned for; what its scores are follows from the spec (see `parts.Task`)."""

    def __init__(self, spec: parts.Task, dims: parts.Dims) -> None:
        super().__init__()
        self.spec = spec
        self.rate = 0.0 if isinstance(spec, parts.Answer) else spec.dropout
        own = spec.summary if isinstance(spec, parts.Classify | parts.Choose) else None
        self.summary = Summary(own, dims) if own is not None else None
        match spec:
            case parts.Classify(labels=labels, bias=bias) | parts.Tag(labels=labels, bias=bias):
                self.out = nn.Linear(dims.d_model, labels, bias)
            case parts.Answer():
                self.out = nn.Linear(dims.d_model, 2)
            case parts.Choose():
                self.out = nn.Linear(dims.d_model, 1)

    def forward(self, x: Tensor, pooled: Tensor | None, place: Tensor | None) -> Tensor:
        """`x`: B T D; `pooled`: B D, of the body; `place`: B. Returns B L (Classify), B T L (Tag), B T 2 (Answer)
        or B 1 (Choose)."""
        if isinstance(self.spec, parts.Tag | parts.Answer):
            y = x
        elif self.summary is not None:
            dense = self.training and self.rate > 0 and self.summary.dense is not None
            y = self.summary(F.dropout(x, self.rate, dense), place)
        else:
            assert pooled is not None
            y = pooled
        return self.out(F.dropout(y, self.rate, self.training and self.rate > 0))


def task_loss(spec: parts.Task, scores: Tensor, labels: Tensor) -> Tensor:
    """The loss of a task's scores: cross-entropy over classes (-100 is no target), over where an answer starts and ends
    (`labels` B 2), or over candidates; with `problem` "multi" a binary one a label, with "regression" a squared
    error."""
    scores = scores.float()
    match spec:
        case parts.Classify(problem="regression"):
            return F.mse_loss(scores.view_as(labels), labels.to(scores.dtype))
        case parts.Classify(problem="multi"):
            return F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype))
        case parts.Answer():
            # a place outside of the text (an answer that was cut off) is no target
            ends = labels.clamp(0, scores.shape[1])
            each = [F.cross_entropy(scores[..., k], ends[:, k], ignore_index=scores.shape[1]) for k in (0, 1)]
            return (each[0] + each[1]) / 2
        case parts.Tag():
            return F.cross_entropy(scores.flatten(0, 1), labels.flatten())
    return F.cross_entropy(scores, labels.flatten())


def lm_head(spec: parts.LMHead | parts.MLMHead, kind: parts.Norm, dims: parts.Dims) -> LMHead | MLMHead:
    """The module of a language-model head."""
    if isinstance(spec, parts.MLMHead):
        return MLMHead(spec, kind, dims)
    if spec.tied and dims.embed_width != dims.d_model:
        raise UsageError(
            f"a tied LMHead multiplies with the embeddings, and their width dims.embed={dims.embed} is not "
            f"dims.d_model={dims.d_model}; set heads.lm.tied=false"
        )
    return LMHead(spec, dims)
