"""Heads for tasks: what reads a body that is tuned, its loss, and the names of what it answers."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.functional import dropout
from stemma.nn.heads import Summary
from stemma.nn.mixed import Linear

_heads: dict[type[parts.Task], type[TaskHead]] = {}


class TaskHead(nn.Module):
    """A head that a body is tuned for. A subclass names the declaration it runs (`of=parts.Tag`) and makes `out`, the
    layer that scores."""

    out: nn.Module

    def __init_subclass__(cls, *, of: type[parts.Task], **more: Any) -> None:
        super().__init_subclass__(**more)
        _heads[of] = cls

    def __init__(self, spec: Any, dims: parts.Dims) -> None:
        super().__init__()
        self.spec = spec
        self.rate: float = getattr(spec, "dropout", 0.0)
        own = getattr(spec, "summary", None)
        self.summary = Summary(own, dims, self.rate) if own is not None else None

    def forward(self, x: Tensor, pooled: Tensor | None, place: Tensor | None) -> Tensor:
        """Scores. `x`: B T D; `pooled`: B D, of the body; `place`: B, the token that a summary reads."""
        return self.out(dropout(self.read(x, pooled, place), self.rate, self.training))

    def read(self, x: Tensor, pooled: Tensor | None, place: Tensor | None) -> Tensor:
        """What is scored: each token's state (B T D), the head's own summary or the body's pooler (B D)."""
        if self.spec.by_token:
            return x
        if self.summary is not None:
            return self.summary(x, place)
        assert pooled is not None
        return pooled

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of `scores`: cross-entropy, where a label of -100 is no target."""
        return F.cross_entropy(scores.float().flatten(0, -2), labels.flatten())

    def named(self, scores: Tensor) -> dict[str, Tensor]:
        """The scores under the names of `Output`."""
        return {"logits": scores}


class ClassifyHead(TaskHead, of=parts.Classify):
    """B L. With `problem` "multi" the loss is a binary one a label, with "regression" a squared error."""

    def __init__(self, spec: parts.Classify, dims: parts.Dims) -> None:
        super().__init__(spec, dims)
        self.out = Linear(dims.d_model, spec.labels, spec.bias)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        scores = scores.float()
        match self.spec.problem:
            case "regression":
                return F.mse_loss(scores.view_as(labels), labels.to(scores.dtype))
            case "multi":
                return F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype))
        return super().loss(scores, labels)


class TagHead(TaskHead, of=parts.Tag):
    """B T L."""

    def __init__(self, spec: parts.Tag, dims: parts.Dims) -> None:
        super().__init__(spec, dims)
        self.out = Linear(dims.d_model, spec.labels, spec.bias)


class AnswerHead(TaskHead, of=parts.Answer):
    """B T 2: where an answer starts and where it ends. `labels` are B 2; a place outside of the text (an answer that
    was cut off) is no target."""

    def __init__(self, spec: parts.Answer, dims: parts.Dims) -> None:
        super().__init__(spec, dims)
        self.out = Linear(dims.d_model, 2)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        scores = scores.float()
        ends = labels.clamp(0, scores.shape[1])
        each = [F.cross_entropy(scores[..., k], ends[:, k], ignore_index=scores.shape[1]) for k in (0, 1)]
        return (each[0] + each[1]) / 2

    def named(self, scores: Tensor) -> dict[str, Tensor]:
        start, end = scores.unbind(-1)
        return {"start_logits": start, "end_logits": end}


class ChooseHead(TaskHead, of=parts.Choose):
    """B 1, of each candidate; the loss is over the candidates of a text (B C)."""

    def __init__(self, spec: parts.Choose, dims: parts.Dims) -> None:
        super().__init__(spec, dims)
        self.through = None if spec.through is None else Linear(dims.d_model, spec.through)
        self.out = Linear(dims.d_model if spec.through is None else spec.through, 1)

    def forward(self, x: Tensor, pooled: Tensor | None, place: Tensor | None) -> Tensor:
        y = dropout(self.read(x, pooled, place), self.rate, self.training)
        return self.out(y if self.through is None else self.through(y))


def task_head(spec: parts.Task, dims: parts.Dims) -> TaskHead:
    """The module of a task head. Raises UsageError for a declaration that no class runs."""
    name = type(spec).__name__
    if type(spec) not in _heads:
        raise UsageError(
            f"no class runs the task head {name}; the file that declares it should hold one: "
            f"class {name}Head(stemma.nn.tasks.TaskHead, of={name})"
        )
    return _heads[type(spec)](spec, dims)
