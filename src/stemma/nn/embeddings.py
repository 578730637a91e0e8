"""Embeddings of tokens, segments and languages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.functional import rows_of
from stemma.nn.inputs import Inputs
from stemma.nn.mixed import cast


class Embed(nn.Module):
    """Token embeddings, and those of segments and languages where `dims.segments` and `dims.languages` have any."""

    def __init__(self, dims: parts.Dims, scale: bool) -> None:
        super().__init__()
        self.factor = dims.d_model**0.5 if scale else 1.0
        halves = (torch.bfloat16, torch.float16)  # the factor is rounded to the weights' type (Gemma)
        self.rounded = {t: torch.tensor(self.factor, dtype=t, device="cpu").item() for t in halves}
        self.noise = 0.0  # NEFTune's alpha, of a recipe
        self.tokens = nn.Embedding(dims.vocab, dims.embed_width)
        self.segments = nn.Embedding(dims.segments, dims.embed_width) if dims.segments else None
        self.languages = nn.Embedding(dims.languages, dims.embed_width) if dims.languages else None

    def forward(self, inputs: Inputs, segments: Tensor | None) -> Tensor:
        """B T -> B T E. Without `segments` all tokens are of segment 0; without `langs` no language is added."""
        x = self.vectors(inputs)
        if inputs.langs is not None:
            if self.languages is None:
                raise UsageError("langs were given, and this model has no languages")
            x = x + cast(rows_of(self.languages, inputs.langs, "langs"), x)
        if self.segments is None:
            if segments is not None:
                raise UsageError("token_type_ids were given, and this model has no segments")
            return x
        rows = self.segments.weight[0] if segments is None else rows_of(self.segments, segments, "token_type_ids")
        return x + cast(rows, x)

    def vectors(self, inputs: Inputs) -> Tensor:
        """Embeddings of ids, the given vectors, or both: B T E."""
        ids, embeds = inputs.input_ids, inputs.inputs_embeds
        if ids is None:
            assert embeds is not None
            return embeds
        x = rows_of(self.tokens, ids, "input_ids")
        if self.factor != 1.0:
            x = x * self.rounded.get(x.dtype, self.factor)
        if self.training and self.noise:
            most = self.noise / (x.shape[1] * x.shape[2]) ** 0.5
            x = x + torch.empty_like(x).uniform_(-most, most)
        if embeds is None or inputs.embeds_at is None:
            return x
        return x.masked_scatter(inputs.embeds_at[..., None], embeds.to(x.dtype))
