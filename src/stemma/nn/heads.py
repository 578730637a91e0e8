"""Heads on the last hidden state: LM, pooler, detector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.functional import dropout, softcap
from stemma.nn.mixed import Linear, Matrix, cast, times
from stemma.nn.mlp import activation
from stemma.nn.norms import norm
from stemma.nn.stack import Block, State

Product = Callable[[Tensor, Tensor | Matrix, Tensor | None], Tensor]  # x, weight, bias -> x weight^T + bias


class LMHead(nn.Module):
    """Logits over the vocabulary. `tokens`: the embedding matrix, which is the weight where the spec ties it, or the
    module that keeps it in another form."""

    def __init__(self, spec: parts.LMHead, dims: parts.Dims) -> None:
        super().__init__()
        self.shape = dims.vocab, dims.d_model
        self.scale = dims.d_model**-0.5 if spec.scaled else 1.0
        self.factor, self.softcap = spec.factor, spec.softcap
        self.weight = None if spec.tied else nn.Parameter(torch.empty(dims.vocab, dims.d_model))
        self.bias = nn.Parameter(torch.zeros(dims.vocab)) if spec.bias else None

    def forward(self, x: Tensor, tokens: Tensor | Matrix, product: Product = times) -> Tensor:  # ... D -> ... V
        if self.scale != 1.0:
            x = x * self.scale
        y = product(x, tokens if self.weight is None else self.weight, self.bias)
        if self.factor != 1.0:
            y = y * self.factor
        return y if self.softcap is None else softcap(y, self.softcap)


class MLMHead(nn.Module):
    """`tokens @ norm(act(dense(x))) + bias` (BERT)."""

    def __init__(self, spec: parts.MLMHead, kind: parts.Norm, dims: parts.Dims) -> None:
        super().__init__()
        self.shape = dims.vocab, dims.embed_width
        self.act = activation(spec.act)
        self.dense = Linear(dims.d_model, dims.embed_width)
        self.norm = norm(kind, dims.embed_width)
        self.weight = None if spec.tied else nn.Parameter(torch.empty(dims.vocab, dims.embed_width))
        self.bias = nn.Parameter(torch.zeros(dims.vocab))

    def forward(self, x: Tensor, tokens: Tensor | Matrix, product: Product = times) -> Tensor:
        return product(self.norm(self.act(self.dense(x))), tokens if self.weight is None else self.weight, self.bias)


class EMDHead(MLMHead):
    """DeBERTa's enhanced mask decoder: the last block runs twice more with absolute positions in its queries, and
    BERT's head reads the result (see `parts.EMDHead`)."""

    def __init__(self, spec: parts.EMDHead, kind: parts.Norm, dims: parts.Dims) -> None:
        super().__init__(parts.MLMHead(spec.act), kind, dims)
        self.positions = nn.Embedding(dims.context, dims.d_model)

    def reread(self, block: Block, state: State) -> Tensor:
        """The hidden state that the head reads, B T D. `block`: the stack's last; `state`: what the stack left."""
        if state.is_arange and state.positions.shape[-1] > self.positions.num_embeddings:
            raise UsageError(
                f"a text of {state.positions.shape[-1]} tokens does not fit: the table of absolute positions of this "
                f"model's mask decoder has {self.positions.num_embeddings} rows"
            )
        x = state.last_input + cast(self.positions(state.positions), state.last_input)
        for _ in range(2):
            x = block.reread(x, state)
        return x


class Summary(nn.Module):
    """A vector of each text, as `parts.Summary` describes."""

    def __init__(self, spec: parts.Summary, dims: parts.Dims, dropout: float = 0.0) -> None:
        super().__init__()
        self.act, self.rate = spec.act, dropout if spec.dropout is None else spec.dropout
        self.dense = Linear(dims.d_model, dims.d_model) if spec.act is not None else None

    def forward(self, x: Tensor, place: Tensor | None = None) -> Tensor:  # B T D, B -> B D
        """`place`: the token of each text that is read; None: the first."""
        y = x[:, 0] if place is None else x[torch.arange(len(x), device=x.device), place]
        if self.dense is None:
            return y
        y = self.dense(dropout(y, self.rate, self.training))
        match self.act:
            case "tanh":
                return y.tanh()
            case "relu":
                return y.relu()
        return F.gelu(y)


def summary_index(
    spec: parts.Summary | None, x: Tensor, ids: Tensor | None, attention_mask: Tensor | None, text: Any
) -> Tensor | None:
    """The index (B) of the token of each row that a summary of `x` (B T D) reads; None: the first. `text`: the model's
    `declare.Text`, which names end and padding. Raises UsageError where ids are needed and none are given."""
    if spec is None or spec.token == "first":
        return None
    rows, length = x.shape[:2]
    if spec.token == "final":
        return torch.full((rows,), -1, device=x.device)
    if spec.token == "end":
        ends = text.eos_ids if text is not None else ()
        if not ends:
            raise UsageError("this head reads the last end token of a text, and this model's end token is not known")
        if ids is None:
            raise UsageError("this head reads the last end token of a text: give input_ids, not inputs_embeds")
        wanted = torch.isin(ids, ids.new_tensor(ends))
        if not bool(wanted.any(1).all()):
            raise UsageError(f"every text must hold an end token ({ends[0]}): this head reads the last one")
    elif attention_mask is not None:
        wanted = attention_mask.bool()
    elif ids is not None and text is not None and text.pad_id is not None:
        wanted = ids != text.pad_id
    else:
        wanted = torch.ones(rows, length, dtype=torch.bool, device=x.device)
    return (torch.arange(length, device=x.device) * wanted).argmax(1)


class Detector(nn.Module):
    """ELECTRA's discriminator: one logit a token, positive where it was replaced."""

    def __init__(self, spec: parts.Detector, dims: parts.Dims) -> None:
        super().__init__()
        self.act = activation(spec.act)
        self.dense = Linear(dims.d_model, dims.d_model)
        self.out = Linear(dims.d_model, 1)

    def forward(self, x: Tensor, first: Tensor | None = None) -> Tensor:  # B T D -> B T
        """`first`: B T, the index of the first token of each token's text in a packed row; None: 0."""
        return self.out(self.act(self.dense(x))).squeeze(-1)


class ContextDetector(Detector):
    """DeBERTa v3's discriminator: the first token's state is added to each token's."""

    def __init__(self, spec: parts.ContextDetector, kind: parts.Norm, dims: parts.Dims) -> None:
        super().__init__(parts.Detector(spec.act), dims)
        self.norm = norm(kind, dims.d_model)

    def forward(self, x: Tensor, first: Tensor | None = None) -> Tensor:  # B T D -> B T
        head = x[:, :1] if first is None else x.gather(1, first[..., None].expand_as(x))
        return super().forward(self.norm(head + x))


def detector(spec: parts.Detector | parts.ContextDetector, kind: parts.Norm, dims: parts.Dims) -> Detector:
    """The module of a detector of replaced tokens."""
    return ContextDetector(spec, kind, dims) if isinstance(spec, parts.ContextDetector) else Detector(spec, dims)


def lm_head(
    spec: parts.LMHead | parts.MLMHead | parts.EMDHead, kind: parts.Norm, dims: parts.Dims
) -> LMHead | MLMHead | EMDHead:
    """The module of a language-model head."""
    if isinstance(spec, parts.EMDHead):
        return EMDHead(spec, kind, dims)
    if isinstance(spec, parts.MLMHead):
        return MLMHead(spec, kind, dims)
    if spec.tied and dims.embed_width != dims.d_model:
        raise UsageError(
            f"a tied LMHead multiplies with the embeddings, and their width dims.embed={dims.embed} is not "
            f"dims.d_model={dims.d_model}; set heads.lm.tied=false"
        )
    return LMHead(spec, dims)
