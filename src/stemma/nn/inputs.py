"""What a call gives a model (`Inputs`), and what a stack of blocks reads once ids are embedded (`StackInputs`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.cache import Cache
from stemma.nn.functional import readable
from stemma.nn.masks import AttnMask, Contexts


@dataclass
class Inputs:
    """What one half of a model, encoder or decoder, reads. Fields that `transformers` has are named as there.

    `input_ids`: B T
    `inputs_embeds`: B T E in place of ids; or N E, for the N tokens that `embeds_at` marks (see `embeds_at`). Vectors
    stand for token embeddings as they enter the network: after the factor of `arch.embed_scale`, before segments,
    languages and positions are added. E is `dims.embed`, or `dims.d_model` without it
    `embeds_at`: B T bool; tokens where it is True get the rows of `inputs_embeds` in order, whatever their ids
    `attention_mask`: B T, 1 for a token, 0 for padding
    `token_type_ids`: B T, segments
    `position_ids`: B T, or B T 2 where a model counts in two ways; left out, tokens are counted
    `order`: 1|B T, the index of each token in its row, which masks and caches go by. Left out: the positions, or
    0, 1, ... where positions have two columns or the mask is a prefix mask
    `documents`: B T, a token sees tokens of its own number only
    `roots`: B T, beside `documents`: a token also sees earlier tokens of this document. Several texts with one
    beginning are documents whose root is the beginning's; `position_ids` count on from it
    `prefix`: B, tokens at the beginning that see each other both ways, under a prefix mask; B T for rows of several
    documents: for each token the index in the row where its document's prefix ends
    `langs`: B T, languages
    `attention`: the choice of an open mask: "full", "causal", "reverse" or "prefix"
    `encoder_hidden`: B S D, `encoder_mask`: B S, 0 at padding, `encoder_documents`: B S: of cross-attention. With a
    cache they are given once, at the first call
    `cache`: keys and values of what was read before
    `streams`: of two-stream attention
    `contexts`: under a mask with memory, of each row the earlier rows of the batch whose tokens its memory layers see
    beside its own, as if they were memory. Given, even if empty, rows are read at once and not in windows"""

    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    token_type_ids: Tensor | None = None
    position_ids: Tensor | None = None
    documents: Tensor | None = None
    langs: Tensor | None = None
    inputs_embeds: Tensor | None = None
    embeds_at: Tensor | None = None
    order: Tensor | None = None
    prefix: Tensor | None = None
    attention: str | None = None
    encoder_hidden: Tensor | None = None
    encoder_mask: Tensor | None = None
    encoder_documents: Tensor | None = None
    cache: Cache | None = None
    streams: StreamInputs | None = None
    contexts: Contexts | None = None
    roots: Tensor | None = None

    @classmethod
    def of(cls, inputs: Inputs | Tensor) -> Inputs:
        """Inputs as they are, or of ids alone."""
        return cls(inputs) if isinstance(inputs, Tensor) else inputs

    @property
    def shape(self) -> torch.Size:
        """B T; B C T of candidates."""
        if self.input_ids is not None:
            return self.input_ids.shape
        if self.inputs_embeds is None:
            raise UsageError("input_ids or inputs_embeds must be given")
        return self.inputs_embeds.shape[:-1]

    @property
    def size(self) -> tuple[int, int]:
        """Rows, and tokens a row."""
        rows, length = self.shape
        return rows, length

    @property
    def device(self) -> torch.device:
        given = self.input_ids if self.input_ids is not None else self.inputs_embeds
        assert given is not None
        return given.device

    def countable(self) -> Tensor:
        """Ids for counting positions, B T; -1 for a vector, which is no padding."""
        if self.input_ids is None:
            return torch.full(self.size, -1, device=self.device)
        return self.input_ids if self.embeds_at is None else self.input_ids.masked_fill(self.embeds_at, -1)

    def check_embeds(self, width: int) -> None:
        """Raise UsageError where ids and vectors do not fit together; `width`: of the model's embeddings."""
        ids, embeds, at = self.input_ids, self.inputs_embeds, self.embeds_at
        if embeds is None:
            if at is not None:
                raise UsageError("embeds_at marks the tokens that inputs_embeds replaces: give inputs_embeds too")
            return
        if at is None:
            if ids is not None:
                raise UsageError(
                    "give input_ids or inputs_embeds; to replace some tokens of input_ids, mark them by embeds_at"
                )
            if embeds.ndim != 3 or embeds.shape[2] != width:
                raise UsageError(f"inputs_embeds must be B T {width}, not {' '.join(map(str, embeds.shape))}")
            return
        if ids is None or at.shape != ids.shape or at.dtype != torch.bool:
            shape = "B T" if ids is None else " ".join(map(str, ids.shape))
            raise UsageError(f"embeds_at must be a boolean mask ({shape}) over input_ids")
        if embeds.ndim != 2 or embeds.shape[1] != width:
            raise UsageError(f"with embeds_at, inputs_embeds must be N {width}, not {' '.join(map(str, embeds.shape))}")
        if readable(at) and int(at.sum()) != len(embeds):
            raise UsageError(f"embeds_at marks {int(at.sum())} tokens, and inputs_embeds has {len(embeds)} vectors")


def not_padding(mask: Tensor | None) -> Tensor | None:
    """An attention mask as booleans, B T; None where nothing is padding (no mask is faster), if that can be seen."""
    if mask is None:
        return None
    real = mask.bool()
    return None if readable(real) and bool(real.all()) else real


@dataclass
class StreamInputs:
    """What two streams read beside tokens (Yang et al. 2019), and the memory that they leave.

    `segments`: B T
    `perm_mask`: B T T, 1 where token i does not see token j
    `target_mapping`: B K T, one-hot rows: the index of each predicted token; a row of zeros predicts nothing
    `mems`: B M D a layer, the hidden states of earlier segments
    `absent`: B M, 1 where `mems` holds nothing
    `backward`: B, 1 for texts written from their end; their distances change sign
    `places`: B K, the positions of queries in decoding with a cache; they may lie past the last token
    `new_mems`: filled by the call, what the next segment reads as `mems`"""

    segments: Tensor | None = None
    perm_mask: Tensor | None = None
    target_mapping: Tensor | None = None
    mems: Sequence[Tensor] | None = None
    absent: Tensor | None = None
    backward: Tensor | None = None
    places: Tensor | None = None
    new_mems: list[Tensor] = field(default_factory=list)

    def check(self, rows: int, length: int, layers: int, width: int) -> None:
        """Raise UsageError for shapes that do not fit a batch of `rows` texts of `length` tokens."""
        if self.perm_mask is not None and tuple(self.perm_mask.shape) != (rows, length, length):
            raise UsageError(
                f"perm_mask must be {rows} {length} {length}, not {' '.join(map(str, self.perm_mask.shape))}"
            )
        if self.target_mapping is not None:
            self._check_mapping(self.target_mapping, rows, length)
        if self.mems is not None:
            if len(self.mems) != layers:
                raise UsageError(f"mems must hold one tensor a layer: {layers}, not {len(self.mems)}")
            if wrong := [m for m in self.mems if m.ndim != 3 or m.shape[0] != rows or m.shape[2] != width]:
                raise UsageError(f"mems must be {rows} M {width}, not {' '.join(map(str, wrong[0].shape))}")

    @staticmethod
    def _check_mapping(mapping: Tensor, rows: int, length: int) -> None:
        if mapping.ndim != 3 or mapping.shape[0] != rows or mapping.shape[2] != length:
            raise UsageError(f"target_mapping must be {rows} K {length}, not {' '.join(map(str, mapping.shape))}")
        if torch.compiler.is_compiling() or mapping.device.type == "meta":
            return
        one_hot = bool(((mapping == 1) | (mapping == 0)).all())
        if not one_hot or bool((mapping.sum(-1) > 1).any() | (mapping.sum(1) > 1).any()):
            raise UsageError("target_mapping must hold at most one 1 in a row and in a column, and zeros else")


class StackInputs(NamedTuple):
    """What a stack reads.

    `x`: B T E, embedded tokens
    `positions`: 1|B T, or 1|B T C where a scheme counts in C ways
    `order`: 1|B T, the index of each token in its row; masks and caches go by it
    `is_arange`: positions and order are known to be 0..T-1, and there is no cache
    `not_padding`: B T, False at padding; None: no padding
    `documents`: B T, a token sees tokens of its own number only, and of its document in `roots`
    `prefix`: B 1 or B T, keys before this index are seen by all queries, under a prefix mask
    `encoder_hidden`: B S D, with a cache at the first call only; `encoder_mask`: what cross-attention sees
    `mask`: the mask that replaces an open one
    `streams`: of two-stream attention
    `prompted`: the row begins with a soft prompt, which documents share
    `past`: keys and values of each layer (H N D) in front of those of the tokens
    `contexts`: of each row the rows whose tokens memory layers see too"""

    x: Tensor
    positions: Tensor
    order: Tensor
    is_arange: bool
    not_padding: Tensor | None = None
    documents: Tensor | None = None
    roots: Tensor | None = None
    prefix: Tensor | None = None
    encoder_hidden: Tensor | None = None
    encoder_mask: AttnMask = AttnMask()
    cache: Cache | None = None
    mask: parts.LayerMask | None = None
    streams: StreamInputs | None = None
    prompted: bool = False
    past: Sequence[tuple[Tensor, Tensor]] | None = None
    contexts: Contexts | None = None
