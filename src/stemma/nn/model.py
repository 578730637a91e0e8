"""A model built from `Arch` and `Dims`: token embeddings, an encoder, a decoder or both, and heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.cache import Cache
from stemma.nn.heads import EMDHead, Summary, Task, detector, lm_head, task_loss
from stemma.nn.init import initialise
from stemma.nn.masks import CHOICES, Visible
from stemma.nn.memory import in_windows
from stemma.nn.mlp import dropped
from stemma.nn.outputs import IGNORED, Output, detector_loss, token_mean
from stemma.nn.stack import Block, Stack, State
from stemma.nn.streams import Request, TwoStreams

__all__ = ["IGNORED", "Model", "Output", "count"]


class Embed(nn.Module):
    """Token embeddings and, where `dims.segments` and `dims.languages` say so, those of segments and languages."""

    def __init__(self, dims: parts.Dims, scale: bool) -> None:
        super().__init__()
        self.factor = dims.d_model**0.5 if scale else 1.0
        halves = (torch.bfloat16, torch.float16)  # the factor is rounded to the weights' type (Gemma)
        self.rounded = {t: torch.tensor(self.factor, dtype=t, device="cpu").item() for t in halves}
        self.tokens = nn.Embedding(dims.vocab, dims.embed_width)
        self.segments = nn.Embedding(dims.segments, dims.embed_width) if dims.segments else None
        self.languages = nn.Embedding(dims.languages, dims.embed_width) if dims.languages else None

    def forward(
        self, ids: Tensor, segments: Tensor | None = None, langs: Tensor | None = None
    ) -> Tensor:  # B T -> B T D
        """Without `segments` all tokens are of segment 0; without `langs` nothing is said of their language."""
        x = self.tokens(ids)
        if self.factor != 1.0:
            x = x * self.rounded.get(x.dtype, self.factor)
        if langs is not None:
            if self.languages is None:
                raise UsageError("langs were given, and this model has no languages")
            x = x + self.languages(langs)
        if self.segments is None:
            if segments is not None:
                raise UsageError("token_type_ids were given, and this model has no segments")
            return x
        return x + (self.segments.weight[0] if segments is None else self.segments(segments))


class Model(nn.Module):
    """A language model. Parameters have canonical names (`decoder.blocks.0.attention.q.weight`), whatever file they
    came from. Attributes that `stemma.load` and `stemma.build` add: `family`, `name`, `text`, `tokenizer`, `ledger`,
    `pooling` (how a text's vector is made, where the checkpoint says so), `labels` (what a task head's scores are
    called, in their order, where the checkpoint says so)."""

    family: Any = None
    name: str = ""
    text: Any = None
    tokenizer: Any = None
    ledger: Any = None
    design: Any = None
    pooling: Any = None
    labels: tuple[str, ...] = ()
    extras: dict[str, Any] = {}
    rewrites: tuple[Any, ...] = ()  # what was replaced in it (see `stemma.rewrites`)
    compiled: bool = False  # whether a training loop runs it compiled, and its loss with it

    def __init__(self, arch: parts.Arch, dims: parts.Dims) -> None:
        super().__init__()
        self.arch, self.dims = arch, dims
        both = arch.structure == "encoder-decoder"
        depth = dims.depth if both else dims.layers
        self.embed = Embed(dims, arch.embed_scale)
        if isinstance(arch.mask, parts.Open) and dims.segments < arch.mask.segments:
            raise UsageError(
                f"dims.segments={dims.segments} must be at least {arch.mask.segments}, so that it holds the segments "
                f"of {arch.mask}"
            )
        around = parts.Full() if both else arch.mask  # what the encoder's tokens see
        kind = Stack if arch.streams is None else TwoStreams
        self.encoder = kind(arch, dims, dims.layers, mask=around, cross=False) if arch.structure != "decoder" else None
        self.decoder = Stack(arch, dims, depth, mask=arch.mask, cross=both) if arch.structure != "encoder" else None
        self.lm = lm_head(arch.heads.lm, arch.norm, dims) if arch.heads.lm is not None else None
        heads = arch.heads
        self.pooler = Summary(heads.pooler, dims) if heads.pooler is not None else None
        self.pair = nn.Linear(dims.d_model, 2) if heads.pair else None
        self.detect = detector(heads.detect, arch.norm, dims) if heads.detect is not None else None
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
        langs: Tensor | None = None,
        **how: Any,
    ) -> Tensor:
        """The encoder's last hidden state: B T -> B T D. `how`: as in `state`."""
        return self.state(input_ids, attention_mask, token_type_ids, position_ids, documents, langs, **how).hidden

    def state(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        documents: Tensor | None = None,
        langs: Tensor | None = None,
        *,
        order: Tensor | None = None,
        attention: str | None = None,
        prefix: Tensor | None = None,
        request: Request | None = None,
        cache: Cache | None = None,
    ) -> State:
        """All that the encoder leaves of a text (B T).

        `attention`: the choice of an open mask, `prefix` (B) with it; `request`: what is asked of two streams; a
        `cache` keeps keys and values of what was read, as it does for a decoder."""
        if self.encoder is None:
            raise UsageError(f"a {self.arch.structure} has no encoder")
        more: dict[str, Any] = {}
        if isinstance(self.arch.mask, parts.Open):
            more["chosen"] = self._chosen(attention, prefix)
            if token_type_ids is None:
                token_type_ids = self._segments(self.arch.mask, input_ids, attention or "full", prefix)
        if self.arch.streams is not None:
            more["request"] = request or Request()
        return self._run(
            self.encoder,
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            documents,
            order=order,
            prefix=prefix,
            cache=cache,
            langs=langs,
            **more,
        )

    def read(self, state: State) -> Tensor:
        """What an encoder's language-model head is to be given (B T D): the last hidden state, or what an enhanced mask
        decoder makes of the last block."""
        if not isinstance(self.lm, EMDHead) or self.encoder is None:
            return state.hidden
        last = self.encoder.blocks[self.encoder.order[-1][0]]
        assert isinstance(last, Block)
        return self.lm.reread(last, state)

    def _chosen(self, attention: str | None, prefix: Tensor | None) -> parts.LayerMask:
        """The mask that a call chooses."""
        choice = attention or "full"
        if choice not in CHOICES:
            raise UsageError(f"attention must be one of {', '.join(CHOICES)}, not {choice!r}")
        if (choice == "prefix") != (prefix is not None):
            raise UsageError('attention="prefix" and prefix=, the length of the prefix of each text, go together')
        return CHOICES[choice]

    @staticmethod
    def _segments(mask: parts.Open, ids: Tensor, attention: str, prefix: Tensor | None) -> Tensor:
        """The segments that go with a choice, where none are given."""
        match attention:
            case "causal":
                return torch.full_like(ids, mask.causal)
            case "reverse":
                return torch.full_like(ids, mask.reverse)
            case "prefix":
                assert prefix is not None
                inside = torch.arange(ids.shape[1], device=ids.device) < prefix[:, None]
                return torch.where(inside, mask.source, mask.target)
        return torch.zeros_like(ids)

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
        langs: Tensor | None = None,
    ) -> Tensor:
        """The decoder's last hidden state: B T -> B T D.

        `memory` (B S D) is the encoder's output and `memory_mask` (B S) its padding; with a `cache` they are given
        once, at the first call. `attention_mask` (B T) marks padding among the new tokens. `order` (1|B T): the places
        of the tokens in their rows, which masks and the cache go by; left out, they are the positions where these count
        in one way and no prefix mask counts in the row, else 0, 1, ... `prefix` (B): so many tokens at the beginning
        see each other whole, under a prefix mask; (B T): the same where rows hold several documents, for each
        token the place in the row where that part of its document ends."""
        if self.decoder is None:
            raise UsageError(f"a {self.arch.structure} has no decoder")
        mask = self.arch.mask
        if cache is None and isinstance(mask, parts.Memory) and input_ids.shape[1] > mask.last:
            if documents is not None or position_ids is not None:
                raise UsageError(
                    f"texts of more than {mask.last} tokens are read in windows, whose positions count from 0: give "
                    "neither documents nor position_ids"
                )
            return self._in_windows(input_ids, attention_mask)
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
            langs=langs,
        ).hidden

    def _in_windows(self, ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Texts longer than a mask with memory reads at once; each row as if it were alone, padding left at 0."""
        if attention_mask is None:
            return in_windows(self.window, ids, self.arch, self.dims)[0]
        rows = [
            in_windows(self.window, row[real][None], self.arch, self.dims)[0][0]
            for row, real in zip(ids, attention_mask.bool(), strict=True)
        ]
        out = rows[0].new_zeros(*ids.shape, rows[0].shape[-1])
        return out.masked_scatter(attention_mask.bool()[..., None], torch.cat(rows))

    def window(self, ids: Tensor, cache: Cache) -> Tensor:
        """The hidden states of a part of a text, which goes on from what `cache` holds."""
        positions = torch.arange(cache.length, cache.length + ids.shape[1], device=ids.device)[None]
        return self.decode(ids, None, positions, cache=cache)

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
        langs: Tensor | None = None,
        **more: Any,
    ) -> State:
        limit = stack.position.limit
        start = 0 if cache is None else cache.length
        if limit is not None and position_ids is None and start + ids.shape[1] > limit:
            raise UsageError(
                f"a text of {start + ids.shape[1]} tokens does not fit: this model's position table has {limit} rows"
            )
        if position_ids is not None and position_ids.ndim != (3 if stack.position.columns > 1 else 2):
            form = "B T 2" if stack.position.columns > 1 else "B T"
            raise UsageError(f"position_ids have the shape {list(position_ids.shape)}, and this model needs {form}")
        pos = stack.position.number(ids, start) if position_ids is None else position_ids
        if order is None:
            own = pos.ndim == 2 and not isinstance(self.arch.mask, parts.Prefix)  # a prefix is counted in the row
            order = pos if own else torch.arange(start, start + ids.shape[1], device=ids.device)[None]
        if prefix is not None:
            prefix = prefix[:, None] if prefix.ndim == 1 else prefix
            if cache is not None:
                cache.prefix = prefix
        if stack.position.segments:
            more["request"].segments, segments = segments, None
        return stack(
            self.embed(ids, segments, langs),
            pos,
            order,
            plain=position_ids is None and cache is None,
            real=_real(attention_mask),
            documents=documents,
            prefix=prefix,
            memory=memory,
            memory_seen=memory_seen,
            cache=cache,
            **more,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """The language-model head on any hidden states: ... D -> ... V."""
        if self.lm is None:
            raise UsageError("this model has no language-model head (its checkpoint came without one)")
        return self.lm(hidden, self.embed.tokens.weight)

    def pooled(self, hidden: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The pooler's vector of each text, of its hidden states: B T D -> B D."""
        if self.pooler is None:
            raise UsageError("this model has no pooler (its checkpoint came without one)")
        return self.pooler(hidden, self._place(self.arch.heads.pooler, input_ids, attention_mask))

    def paired(self, pooled: Tensor) -> Tensor:
        """What is said of two segments, from a text's vector: B D -> B 2."""
        if self.pair is None:
            raise UsageError("this model has no head for pairs of segments (its checkpoint came without one)")
        return self.pair(dropped(pooled, self.arch.dropout.pair, self.training))

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
        langs: Tensor | None = None,
        attention: str | None = None,
        perm_mask: Tensor | None = None,
        target_mapping: Tensor | None = None,
        mems: Sequence[Tensor] | None = None,
    ) -> Output:
        """All inputs are B T int64 (`position_ids` B T 2 where a model counts in two ways); masks 1 for a token and 0
        for padding; `labels` -100 where there is no target; `prefix` (B): the length of the part that a prefix mask
        leaves open; `langs`: each token's language; `attention`: the choice of an open mask ("full", "causal",
        "reverse", "prefix").

        For two streams: `perm_mask` (B T T), 1 where token i does not see token j; `target_mapping` (B K T), a 1 at the
        place of each prediction, whose outputs and labels are B K; `mems`, the memory that an earlier call returned.

        Labels follow the ecosystem: a decoder's are shifted inside, an encoder's stand in place, an
        encoder-decoder's are the decoder's targets (its input is made from them where it is not given). With a task
        head they are the task's: B classes, B T tags, B 2 ends of an answer or B the right candidate, whose inputs are
        B C T. With a detector they are 1 where a token was replaced.
        """
        if isinstance(self.arch.heads.task, parts.Choose) and input_ids.ndim == 3:
            return self._choose(input_ids, attention_mask, token_type_ids, labels, langs)
        encoded = state = None
        if decoder_input_ids is not None and self.arch.structure != "encoder-decoder":
            raise UsageError(
                f"decoder_input_ids are for an encoder-decoder; this model's structure is {self.arch.structure}"
            )
        if attention is not None and not isinstance(self.arch.mask, parts.Open):
            raise UsageError(
                f"attention={attention!r} is for a model with an open mask, and this one has {self.arch.mask}"
            )
        request = self._request(perm_mask, target_mapping, mems)
        if self.arch.structure == "decoder":
            if token_type_ids is not None:
                raise UsageError("token_type_ids were given, and this model has no segments")
            hidden = self.decode(input_ids, attention_mask, position_ids, documents, prefix=prefix, langs=langs)
        else:
            state = self.state(
                input_ids,
                attention_mask,
                token_type_ids,
                position_ids,
                documents,
                langs,
                attention=attention,
                prefix=prefix if isinstance(self.arch.mask, parts.Open) else None,
                request=request,
            )
            hidden = state.hidden
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
        out = Output(hidden, encoder_hidden=encoded, mems=None if request is None else tuple(request.kept))
        if self.lm is not None:
            out.logits = self.logits(self.read(state) if state is not None and self.decoder is None else hidden)
        if self.pooler is not None:
            out.pooled = self.pooled(hidden, input_ids, attention_mask)
            if self.pair is not None:
                out.seq_relationship_logits = self.paired(out.pooled)
        scores = replaced = None
        if self.task is not None:
            own = getattr(self.task.spec, "summary", None)
            scores = self.task(hidden, out.pooled, self._place(own, input_ids, attention_mask))
            out.put_task(self.task.spec, scores)
        if self.detect is not None:
            replaced = self.detect(hidden)
            out.put_detector(replaced)
        if labels is not None:
            out.loss = self._loss(out.logits, scores, replaced, attention_mask, labels)
        if next_sentence_label is not None:
            if out.seq_relationship_logits is None:
                raise UsageError("next_sentence_label was given to a model without a pair head")
            pair = F.cross_entropy(out.seq_relationship_logits.float(), next_sentence_label.flatten())
            out.loss = pair if out.loss is None else out.loss + pair
        return out

    def _loss(
        self,
        logits: Tensor | None,
        scores: Tensor | None,
        replaced: Tensor | None,
        attention_mask: Tensor | None,
        labels: Tensor,
    ) -> Tensor:
        """The mean loss of labels: of the task head if there is one, else of the detector, else of the LM head."""
        if self.task is not None:
            assert scores is not None
            return task_loss(self.task.spec, scores, labels)
        if replaced is not None:
            return detector_loss(replaced, labels, attention_mask)
        if logits is None:
            raise UsageError("labels were given to a model without a language-model head")
        return token_mean(logits, labels, shifted=self.arch.structure == "decoder")

    def _request(
        self, perm_mask: Tensor | None, target_mapping: Tensor | None, mems: Sequence[Tensor] | None
    ) -> Request | None:
        """What a call asks of two streams; None for a model that has one."""
        if self.arch.streams is not None:
            return Request(hidden=perm_mask, mapping=target_mapping, past=mems)
        for name, given in (("perm_mask", perm_mask), ("target_mapping", target_mapping), ("mems", mems)):
            if given is not None:
                raise UsageError(f"{name} was given, and this model has one stream and no memory")
        return None

    def _place(self, summary: parts.Summary | None, ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Which token of each row a summary reads (B); None: the first."""
        if summary is None or summary.token == "first":
            return None
        if summary.token == "final":
            return torch.full_like(ids[:, 0], -1)
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
        self,
        ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        labels: Tensor | None,
        langs: Tensor | None,
    ) -> Output:
        """Candidates of each text (B C T) scored against each other."""
        rows, candidates = ids.shape[:2]
        flat = [None if x is None else x.flatten(0, 1) for x in (attention_mask, token_type_ids, langs)]
        out = self(ids.flatten(0, 1), *flat[:2], langs=flat[2])
        assert self.task is not None and out.logits is not None
        if out.mc_logits is None:
            out.logits = scores = out.logits.view(rows, candidates)
        else:
            out.logits = out.logits.unflatten(0, (rows, candidates))
            out.mc_logits = scores = out.mc_logits.view(rows, candidates)
        if labels is not None:
            out.loss = task_loss(self.task.spec, scores, labels)
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
