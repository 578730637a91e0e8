"""A model built from `Arch` and `Dims`: token embeddings, an encoder, a decoder or both, and heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.cache import Cache
from stemma.nn.heads import Detector, Summary, Task, lm_head, task_loss
from stemma.nn.init import initialise
from stemma.nn.masks import Visible
from stemma.nn.stack import Stack

IGNORED = -100  # a label that is no target


@dataclass
class Output:
    """`hidden`: last hidden state, B T D; `logits`: B T V; `loss`: mean over targets, if labels were given;
    `pooled`: B D; `seq_relationship_logits`: B 2; `replaced`: B T, a logit that a token was replaced; `scores`: of the
    task head, B L, B T L, B T 2 or B C (see `parts.Task`); `encoder_hidden`: B S D, of an encoder-decoder."""

    hidden: Tensor
    logits: Tensor | None = None
    loss: Tensor | None = None
    pooled: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    replaced: Tensor | None = None
    scores: Tensor | None = None
    encoder_hidden: Tensor | None = None


class Embed(nn.Module):
    """Token embeddings and, where `dims.segments` says so, segment embeddings added to them."""

    def __init__(self, dims: parts.Dims, scale: bool) -> None:
        super().__init__()
        self.factor = dims.d_model**0.5 if scale else 1.0
        self.tokens = nn.Embedding(dims.vocab, dims.embed_width)
        self.segments = nn.Embedding(dims.segments, dims.embed_width) if dims.segments else None

    def forward(self, ids: Tensor, segments: Tensor | None = None) -> Tensor:  # B T -> B T D
        x = self.tokens(ids)
        if self.factor != 1.0:
            x = x * self.factor
        if self.segments is None:
            if segments is not None:
                raise UsageError("token_type_ids were given, and this model has no segments")
            return x
        return x + (self.segments.weight[0] if segments is None else self.segments(segments))


class Model(nn.Module):
    """A language model. Parameters have canonical names (`decoder.blocks.0.attention.q.weight`), whatever file they
    came from. Attributes that `stemma.load` and `stemma.build` add: `family`, `name`, `text`, `tokenizer`, `ledger`."""

    family: Any = None
    name: str = ""
    text: Any = None
    tokenizer: Any = None
    ledger: Any = None
    design: Any = None
    extras: dict[str, Any] = {}

    def __init__(self, arch: parts.Arch, dims: parts.Dims) -> None:
        super().__init__()
        self.arch, self.dims = arch, dims
        both = arch.structure == "encoder-decoder"
        depth = dims.depth if both else dims.layers
        self.embed = Embed(dims, arch.embed_scale)
        self.encoder = (
            Stack(arch, dims, dims.layers, mask=parts.Full(), cross=False) if arch.structure != "decoder" else None
        )
        self.decoder = Stack(arch, dims, depth, mask=arch.mask, cross=both) if arch.structure != "encoder" else None
        self.lm = lm_head(arch.heads.lm, arch.norm, dims) if arch.heads.lm is not None else None
        heads = arch.heads
        self.pooler = Summary(heads.pooler, dims) if heads.pooler is not None else None
        self.pair = nn.Linear(dims.d_model, 2) if heads.pair else None
        self.detect = Detector(heads.detect, dims) if heads.detect is not None else None
        self.task = Task(heads.task, dims) if heads.task is not None else None

    def initialise(self, seed: int = 0) -> Model:
        """Draw every weight as the arch's `init` says. Returns the model itself."""
        initialise(self, self.arch, self.dims, seed)
        return self

    # ------------------------------------------------------------ the parts of a forward pass

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """The encoder's last hidden state: B T -> B T D."""
        if self.encoder is None:
            raise UsageError(f"a {self.arch.structure} has no encoder")
        return self._run(self.encoder, input_ids, attention_mask, token_type_ids, position_ids, documents)

    def decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        documents: Tensor | None = None,
        order: Tensor | None = None,
        prefix: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        memory_documents: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """The decoder's last hidden state: B T -> B T D.

        `memory` (B S D) is the encoder's output and `memory_mask` (B S) its padding; with a `cache` they are given
        once, at the first call. `attention_mask` (B T) marks padding among the new tokens. `order` (1|B T): the places
        of the tokens in their rows, which masks and the cache go by; left out, they are the positions where these count
        in one way, else 0, 1, ... `prefix` (B): so many tokens at the beginning see each other whole, under a prefix
        mask."""
        if self.decoder is None:
            raise UsageError(f"a {self.arch.structure} has no decoder")
        if cache is not None and memory is not None:
            cache.memory_real = memory_mask
        real = _real(memory_mask if cache is None else cache.memory_real)
        seen = None if real is None else real[:, None, None, :]
        if documents is not None and memory_documents is not None:
            own = (documents[:, :, None] == memory_documents[:, None, :])[:, None]
            seen = own if seen is None else seen & own
        return self._run(
            self.decoder,
            input_ids,
            attention_mask,
            None,
            position_ids,
            documents,
            order=order,
            prefix=prefix,
            memory=memory,
            memory_seen=Visible(mask=seen),
            cache=cache,
        )

    def _run(
        self,
        stack: Stack,
        ids: Tensor,
        attention_mask: Tensor | None,
        segments: Tensor | None,
        position_ids: Tensor | None,
        documents: Tensor | None,
        *,
        order: Tensor | None = None,
        prefix: Tensor | None = None,
        memory: Tensor | None = None,
        memory_seen: Visible = Visible(),
        cache: Cache | None = None,
    ) -> Tensor:
        limit = stack.position.limit
        start = 0 if cache is None else cache.length
        if limit is not None and position_ids is None and start + ids.shape[1] > limit:
            raise UsageError(
                f"a text of {start + ids.shape[1]} tokens does not fit: this model's position table has {limit} rows"
            )
        pos = stack.position.number(ids, start) if position_ids is None else position_ids
        if order is None:
            order = pos if pos.ndim == 2 else torch.arange(start, start + ids.shape[1], device=ids.device)[None]
        if prefix is not None:
            prefix = prefix[:, None]
            if cache is not None:
                cache.prefix = prefix
        return stack(
            self.embed(ids, segments),
            pos,
            order,
            plain=position_ids is None and cache is None,
            real=_real(attention_mask),
            documents=documents,
            prefix=prefix,
            memory=memory,
            memory_seen=memory_seen,
            cache=cache,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """The language-model head on any hidden states: ... D -> ... V."""
        if self.lm is None:
            raise UsageError("this model has no language-model head (its checkpoint came without one)")
        return self.lm(hidden, self.embed.tokens.weight)

    # ------------------------------------------------------------ the public call

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        position_ids: Tensor | None = None,
        documents: Tensor | None = None,
        decoder_documents: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> Output:
        """All inputs are B T int64; masks 1 for a token and 0 for padding; `labels` -100 where there is no target;
        `prefix` (B): the length of the part that a prefix mask leaves open.

        Labels follow the ecosystem: a decoder's are shifted inside, an encoder's stand in place, an
        encoder-decoder's are the decoder's targets (its input is made from them where it is not given). With a task
        head they are the task's: B classes, B T tags, B 2 ends of an answer or B the right candidate, whose inputs are
        B C T. With a detector they are 1 where a token was replaced.
        """
        if isinstance(self.arch.heads.task, parts.Choose) and input_ids.ndim == 3:
            return self._choose(input_ids, attention_mask, token_type_ids, labels)
        encoded = None
        if decoder_input_ids is not None and self.arch.structure != "encoder-decoder":
            raise UsageError(
                f"decoder_input_ids are for an encoder-decoder; this model's structure is {self.arch.structure}"
            )
        if self.arch.structure == "decoder":
            if token_type_ids is not None:
                raise UsageError("token_type_ids were given, and this model has no segments")
            hidden = self.decode(input_ids, attention_mask, position_ids, documents, prefix=prefix)
        else:
            hidden = self.encode(input_ids, attention_mask, token_type_ids, position_ids, documents)
        if self.arch.structure == "encoder-decoder":
            if decoder_input_ids is None:
                if self.task is not None:  # a text is both halves' input, moved on by a place in the decoder
                    decoder_input_ids = self.shift_right(input_ids)
                elif labels is None:
                    raise UsageError("an encoder-decoder needs decoder_input_ids or labels")
                else:
                    decoder_input_ids = self.shift_right(labels)
            encoded = hidden
            hidden = self.decode(
                decoder_input_ids,
                decoder_attention_mask,
                decoder_position_ids,
                decoder_documents,
                memory=encoded,
                memory_mask=attention_mask,
                memory_documents=documents,
            )
        out = Output(hidden, encoder_hidden=encoded)
        if self.lm is not None:
            out.logits = self.logits(hidden)
        if self.pooler is not None:
            out.pooled = self.pooler(hidden, self._place(self.arch.heads.pooler, input_ids, attention_mask))
            if self.pair is not None:
                out.seq_relationship_logits = self.pair(out.pooled)
        if self.detect is not None:
            out.replaced = self.detect(hidden)
        if self.task is not None:
            own = getattr(self.task.spec, "summary", None)
            out.scores = self.task(hidden, out.pooled, self._place(own, input_ids, attention_mask))
            if labels is not None:
                out.loss = task_loss(self.task.spec, out.scores, labels)
        elif out.replaced is not None and labels is not None:
            real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            each = F.binary_cross_entropy_with_logits(out.replaced.float(), labels.float(), reduction="none")
            out.loss = each[real.bool()].mean()
        elif labels is not None:
            if out.logits is None:
                raise UsageError("labels were given to a model without a language-model head")
            shifted = self.arch.structure == "decoder"
            logits, targets = (out.logits[:, :-1], labels[:, 1:]) if shifted else (out.logits, labels)
            out.loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
        if next_sentence_label is not None:
            if out.seq_relationship_logits is None:
                raise UsageError("next_sentence_label was given to a model without a pair head")
            pair = F.cross_entropy(out.seq_relationship_logits.float(), next_sentence_label.flatten())
            out.loss = pair if out.loss is None else out.loss + pair
        return out

    def _place(self, summary: parts.Summary | None, ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Which token of each row a summary reads (B); None: the first."""
        if summary is None or summary.token == "first":
            return None
        ends = self.text.eos_ids if self.text is not None else ()
        if summary.token == "end":
            if not ends:
                raise UsageError(
                    "this head reads the last end token of a text, and this model's end token is not known"
                )
            wanted = torch.isin(ids, ids.new_tensor(ends))
            if not bool(wanted.any(1).all()):
                raise UsageError(f"every text must hold an end token ({ends[0]}): this head reads the last one")
        elif attention_mask is not None:
            wanted = attention_mask.bool()
        elif self.text is not None and self.text.pad_id is not None:
            wanted = ids != self.text.pad_id
        else:
            wanted = torch.ones_like(ids, dtype=torch.bool)
        return (torch.arange(ids.shape[1], device=ids.device) * wanted).argmax(1)

    def _choose(
        self, ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None, labels: Tensor | None
    ) -> Output:
        """Candidates of each text (B C T) scored against each other."""
        rows, candidates = ids.shape[:2]
        flat = [None if x is None else x.flatten(0, 1) for x in (attention_mask, token_type_ids)]
        out = self(ids.flatten(0, 1), *flat)
        out.scores = out.scores.view(rows, candidates)
        if labels is not None:
            out.loss = task_loss(self.arch.heads.task, out.scores, labels)  # type: ignore[arg-type]
        return out

    def shift_right(self, labels: Tensor) -> Tensor:
        """Decoder input for `labels` (B T): the start token (or the target's last token, see `Text.shift`), then each
        target one place later; -100 becomes padding."""
        if self.text is None:
            raise UsageError("decoder_input_ids must be given: this model does not know its start token")
        start, pad = self.text.start_id, self.text.pad_id
        labels = labels.masked_fill(labels == IGNORED, pad)
        if self.text.shift == "last":
            first = labels.gather(1, (labels != pad).sum(1, keepdim=True) - 1)
        elif start is None:
            raise UsageError("decoder_input_ids must be given: this model does not know its start token")
        else:
            first = labels.new_full((labels.shape[0], 1), start)
        return torch.cat([first, labels[:, :-1]], 1)

    @property
    def device(self) -> torch.device:
        return self.embed.tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.tokens.weight.dtype

    def save(self, directory: str, **options: Any) -> None:
        """Write the checkpoint in the publisher's layout (see `stemma.formats.save`)."""
        from stemma.formats import save

        save(self, directory, **options)


def _real(mask: Tensor | None) -> Tensor | None:
    """Which tokens are no padding (B T); None where that is known of all: no mask is faster than one that hides
    nothing. A mask is looked into where that costs no wait and breaks no graph."""
    if mask is None:
        return None
    real = mask.bool()
    looked = real.device.type == "cpu" and not torch.compiler.is_compiling()
    return None if looked and bool(real.all()) else real


def count(arch: parts.Arch, dims: parts.Dims) -> int:
    """Exact number of parameters, tied ones once, without making any weights."""
    with torch.device("meta"):
        return sum(p.numel() for p in Model(arch, dims).parameters())
