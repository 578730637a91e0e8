"""A model built from `Arch` and `Dims`: token embeddings, an encoder, a decoder or both, and heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import calls, front, parts
from stemma.nn.cache import Cache
from stemma.nn.embeddings import Embed
from stemma.nn.functional import dropout
from stemma.nn.heads import EMDHead, Summary, detector, lm_head, summary_index
from stemma.nn.init import Undrawn, initialise
from stemma.nn.inputs import Inputs, StackInputs, StreamInputs, not_padding
from stemma.nn.masks import AttnMask
from stemma.nn.memory import in_windows
from stemma.nn.mixed import Linear
from stemma.nn.outputs import IGNORED, Output, detector_loss, token_mean
from stemma.nn.stack import Block, Stack, State
from stemma.nn.tasks import task_head
from stemma.nn.two_stream import TwoStreams

__all__ = ["IGNORED", "Inputs", "Model", "Output", "count"]


class Hidden(NamedTuple):
    """Hidden states of one call. `last`: B T D, of the decoder where there is one; `lm`: B T D, what the LM head
    reads; `encoder`: B S D, of an encoder-decoder's encoder; `mems`: B M D a layer, for the next segment; `front`:
    B N D, of a soft prompt in front of the text that heads read."""

    last: Tensor
    lm: Tensor
    encoder: Tensor | None = None
    mems: tuple[Tensor, ...] | None = None
    front: Tensor | None = None


class Model(nn.Module):
    """A language model. Parameters have canonical names (`decoder.blocks.0.attention.q.weight`), whatever file they
    came from. `stemma.load` and `stemma.build` add attributes: `family`, `name`, `text`, `tokenizer`, `ledger`,
    `pooling` (how a text becomes a vector, where the checkpoint says so) and `labels` (names of the task head's
    classes, in order, where the checkpoint says so)."""

    family: Any = None
    name: str = ""
    text: Any = None
    tokenizer: Any = None
    ledger: Any = None
    design: Any = None
    pooling: Any = None
    labels: tuple[str, ...] = ()
    origin: str = ""  # where its weights came from: an absolute path or a hub id
    extras: dict[str, Any] = {}
    rewrites: tuple[Any, ...] = ()  # what was replaced in it (see `stemma.rewrites`)
    stream: Callable[[str], Tensor] | None = None  # reads a tensor of a model on the device "meta" from its file
    steps: Any = None  # what computes its steps of decoding, compiled (`decoding.compiled`)
    compiled: bool = False  # whether a training loop compiles its stacks, and its loss with them

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
        encoder_mask = parts.Full() if both else arch.mask
        kind = Stack if arch.streams is None else TwoStreams
        self.encoder = (
            kind(arch, dims, dims.layers, mask=encoder_mask, cross=False) if arch.structure != "decoder" else None
        )
        if not both and dims.decoder != dims:
            raise UsageError(
                f"dims.decoder_heads and dims.decoder_d_ff are for an encoder-decoder, not for a {arch.structure}"
            )
        self.decoder = (
            Stack(arch, dims.decoder, depth, mask=arch.mask, cross=both) if arch.structure != "encoder" else None
        )
        stack = self.decoder if self.decoder is not None else self.encoder
        own = dims.decoder if both else dims
        self.prompt = front.Prompt(dims.embed_width)
        self.prefix = front.Past(len(stack.order), own.kv, own.width, both)  # type: ignore[union-attr]
        self.lm = lm_head(arch.heads.lm, arch.norm, dims) if arch.heads.lm is not None else None
        heads = arch.heads
        self.pooler = Summary(heads.pooler, dims) if heads.pooler is not None else None
        self.pair = Linear(dims.d_model, 2) if heads.pair else None
        self.detect = detector(heads.detect, arch.norm, dims) if heads.detect is not None else None
        self.task = task_head(heads.task, dims) if heads.task is not None else None

    def initialise(self, seed: int = 0) -> Model:
        """Draw every weight as the arch's `init` says. Returns the model itself."""
        initialise(self, self.arch, self.dims, seed)
        return self

    # ------------------------------------------------------------ the parts of a forward pass

    def encode(self, inputs: Inputs | Tensor) -> Tensor:
        """The encoder's last hidden state: B T -> B T D; in an encoder-decoder with that of a soft prompt before it."""
        state = self.state(inputs)
        return state.hidden if self.decoder is None else state.whole

    def state(self, inputs: Inputs | Tensor) -> State:
        """All that the encoder leaves of its input (B T). Raises UsageError for a decoder."""
        if self.encoder is None:
            raise UsageError(f"a {self.arch.structure} has no encoder")
        (inputs, n), mask = self._behind_prompt(self.encoder, Inputs.of(inputs)), None
        segments = inputs.token_type_ids
        if isinstance(self.arch.mask, parts.Open):
            mask = calls.chosen_mask(inputs)
            if segments is None:
                segments = calls.chosen_segments(self.arch.mask, inputs)
        streams = None if self.arch.streams is None else inputs.streams or StreamInputs()
        return self._run(self.encoder, inputs, n, segments, mask=mask, streams=streams)

    def read(self, state: State) -> Tensor:
        """What an encoder's LM head reads (B T D): the last hidden state, or that of an enhanced mask decoder."""
        if not isinstance(self.lm, EMDHead) or self.encoder is None:
            return state.hidden
        last = self.encoder.blocks[self.encoder.order[-1][0]]
        assert isinstance(last, Block)
        return state.of_text(self.lm.reread(last, state))

    def decode(self, inputs: Inputs | Tensor) -> Tensor:
        """The decoder's last hidden state: B T -> B T D. Raises UsageError for an encoder."""
        inputs, mask = Inputs.of(inputs), self.arch.mask
        if inputs.contexts is not None:
            calls.check_contexts(mask, inputs, behind=self.ahead > 0)
        elif inputs.cache is None and isinstance(mask, parts.Memory) and inputs.size[1] > mask.last:
            return self._in_windows(calls.ids_of_windows(inputs, mask.last), inputs.attention_mask)
        return self._decoded(inputs).hidden

    def _decoded(self, inputs: Inputs) -> State:
        """All that the decoder leaves of its input (B T)."""
        if self.decoder is None:
            raise UsageError(f"a {self.arch.structure} has no decoder")
        encoder_mask = calls.encoder_mask(inputs)
        inputs, n = self._behind_prompt(self.decoder, inputs)
        return self._run(self.decoder, inputs, n, None, encoder_mask=encoder_mask)

    def _behind_prompt(self, stack: Stack, inputs: Inputs) -> tuple[Inputs, int]:
        """The inputs of a stack with the soft prompt in front, if it has one, and how many vectors that is here: none
        where a cache holds them."""
        if not self.prompt.length or (self.encoder is not None and stack is not self.encoder):
            return inputs, 0
        inputs.check_embeds(self.dims.embed_width)
        if inputs.cache is not None and inputs.cache.length:
            return front.shifted(inputs, self.prompt.length), 0
        if inputs.documents is not None:
            front.check_documents(stack.masks)
        inputs = front.counted(inputs, stack.position)
        tokens = self.embed.vectors(inputs)
        return front.behind(inputs, self.prompt.vectors(), tokens, stack.position), self.prompt.length

    def _in_windows(self, ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Texts longer than a mask with memory reads at once: each row by itself, 0 at padding. B T -> B T D."""
        if attention_mask is None:
            return in_windows(self.window, ids, self.arch, self.dims)[0]
        rows = [
            in_windows(self.window, row[real][None], self.arch, self.dims)[0][0]
            for row, real in zip(ids, attention_mask.bool(), strict=True)
        ]
        out = rows[0].new_zeros(*ids.shape, rows[0].shape[-1])
        return out.masked_scatter(attention_mask.bool()[..., None], torch.cat(rows))

    def window(self, ids: Tensor, cache: Cache) -> Tensor:
        """Hidden states of the next tokens of a text after those in `cache`: B T -> B T D."""
        positions = torch.arange(cache.length, cache.length + ids.shape[1], device=ids.device)[None]
        return self.decode(Inputs(ids, position_ids=positions, cache=cache))

    def _run(
        self,
        stack: Stack,
        inputs: Inputs,
        n: int,
        segments: Tensor | None,
        encoder_mask: AttnMask = AttnMask(),
        mask: parts.LayerMask | None = None,
        streams: StreamInputs | None = None,
    ) -> State:
        """One pass through a stack: positions and embeddings, then its blocks. `n`: vectors of a soft prompt among the
        inputs."""
        inputs.check_embeds(self.dims.embed_width)
        behind = self.prefix.length if stack is not self.encoder or self.decoder is None else 0
        if behind:
            inputs = front.shifted(front.counted(inputs, stack.position), behind)
        cache, given = inputs.cache, inputs.position_ids
        begun = cache is not None and cache.length > 0
        past = [(k.to(self.dtype), v.to(self.dtype)) for k, v in self.prefix.pairs()] if behind and not begun else None
        start = cache.length if cache is not None and begun else behind
        calls.check_positions(stack.position, inputs, start)
        pos = stack.position.number(inputs.countable(), start) if given is None else given
        order, prefix = inputs.order, inputs.prefix
        if order is None:
            own = pos.ndim == 2 and not isinstance(self.arch.mask, parts.Prefix)  # a prefix is counted in the row
            order = pos if own else torch.arange(start, start + inputs.size[1], device=inputs.device)[None]
        if prefix is not None:
            prefix = prefix[:, None] if prefix.ndim == 1 else prefix
            if cache is not None:
                cache.prefix = prefix
        if cache is not None and not begun:
            cache.front = behind + n
            if past is not None:
                cache.put(past)
        if stack.position.segments:
            assert streams is not None
            streams.segments, segments = segments, None
        state: State = stack(
            StackInputs(
                self.embed(inputs, segments),
                pos,
                order,
                is_arange=given is None and cache is None and not behind,
                not_padding=not_padding(inputs.attention_mask),
                documents=inputs.documents,
                roots=inputs.roots,
                prefix=prefix,
                encoder_hidden=inputs.encoder_hidden,
                encoder_mask=encoder_mask,
                cache=cache,
                mask=mask,
                streams=streams,
                prompted=n > 0,
                past=past,
                contexts=inputs.contexts,
            )
        )
        return state._replace(front=n) if n else state

    def hidden(self, source: Inputs, target: Inputs) -> Hidden:
        """The hidden states that heads read. `target`: the decoder's inputs in an encoder-decoder, which get the
        encoder's output; else unused."""
        if self.arch.structure == "decoder":
            if not self.prompt.length:
                last = self.decode(source)
                return Hidden(last, last)
            state = self._decoded(source)
            return Hidden(state.hidden, state.hidden, front=state.whole[:, : state.front])
        state = self.state(source)
        if self.arch.structure == "encoder":
            lm, ahead = self.read(state) if self.lm is not None else state.hidden, state.front
            mems = None if source.streams is None else tuple(source.streams.new_mems)
            return Hidden(state.hidden, lm, mems=mems, front=state.whole[:, :ahead] if ahead else None)
        target.encoder_hidden, target.encoder_mask = state.whole, source.attention_mask
        target.encoder_documents = source.documents
        last = self.decode(target)
        return Hidden(last, last, state.whole)

    def logits(self, hidden: Tensor) -> Tensor:
        """The language-model head on any hidden states: ... D -> ... V."""
        if self.lm is None:
            raise UsageError("this model has no language-model head (its checkpoint came without one)")
        tokens = self.embed.tokens
        return self.lm(hidden, tokens if hasattr(tokens, "times") else tokens.weight)

    def pooled(
        self,
        hidden: Tensor,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        front: Tensor | None = None,
    ) -> Tensor:
        """The pooler's vector of each text: B T D -> B D. `front`: B N D, of a soft prompt, which a pooler of the first
        token reads."""
        if self.pooler is None:
            raise UsageError("this model has no pooler (its checkpoint came without one)")
        index = summary_index(self.arch.heads.pooler, hidden, input_ids, attention_mask, self.text)
        return self.pooler(hidden if front is None or index is not None else front, index)

    def paired(self, pooled: Tensor) -> Tensor:
        """Logits of the pair head, of each text's vector: B D -> B 2."""
        if self.pair is None:
            raise UsageError("this model has no head for pairs of segments (its checkpoint came without one)")
        return self.pair(dropout(pooled, self.arch.dropout.pair, self.training))

    # ------------------------------------------------------------ the public call

    def forward(
        self,
        input_ids: Tensor | None = None,
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
        inputs_embeds: Tensor | None = None,
        embeds_at: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
    ) -> Output:
        """Hidden states, logits of all heads, and the loss where labels are given. See `Inputs` for the inputs.

        `labels`: -100 is no target. A decoder shifts them inside, an encoder does not; an encoder-decoder makes its
        `decoder_input_ids` from them. With a task head they are the task's: B classes, B T tags, B 2 ends of an answer,
        or B right candidates of inputs B C T. With a detector (and no task head): 1 where a token was replaced.
        Two streams: `perm_mask` B T T, 1 where token i does not see token j; `target_mapping` B K T, one-hot places of
        predictions, whose labels are B K; `mems`, the memory that the last call returned."""
        source = Inputs(input_ids, attention_mask, token_type_ids, position_ids, documents, langs, inputs_embeds)
        source.embeds_at, source.prefix, source.attention = embeds_at, prefix, attention
        if self.task is not None and self.task.spec.candidates and len(source.shape) == 3:
            return calls.choose(self, self.task.loss, source, labels)
        target = Inputs(decoder_input_ids, decoder_attention_mask, None, decoder_position_ids, decoder_documents)
        target.inputs_embeds = decoder_inputs_embeds
        source.streams = calls.stream_inputs(self.arch, perm_mask, target_mapping, mems)
        calls.check(self.arch, source, target)
        if self.arch.structure == "encoder-decoder":
            calls.fill_target(source, target, self.shift_right, labels, of_text=self.task is not None)
        return self._outputs(source, self.hidden(source, target), labels, next_sentence_label)

    def _outputs(
        self, source: Inputs, hidden: Hidden, labels: Tensor | None, next_sentence_label: Tensor | None
    ) -> Output:
        """The logits of all heads, and the loss of the labels."""
        out = Output(hidden.last, encoder_hidden=hidden.encoder, mems=hidden.mems)
        ids, mask = source.input_ids, source.attention_mask
        if self.lm is not None:
            out.logits = self.logits(hidden.lm)
        if self.pooler is not None:
            out.pooled = self.pooled(hidden.last, ids, mask, hidden.front)
            if self.pair is not None:
                out.seq_relationship_logits = self.paired(out.pooled)
        loss: Callable[[Tensor], Tensor] | None = None  # of the task head, else of the detector, else of the LM head
        if out.logits is not None:
            loss = partial(token_mean, out.logits, shifted=self.arch.structure == "decoder")
            if self.arch.structure == "decoder" and hidden.front is not None:  # its last vector predicts token 0
                ahead = torch.cat([self.logits(hidden.front[:, -1:]), out.logits[:, :-1]], 1)
                loss = partial(token_mean, ahead, shifted=False)
        if self.task is not None:
            spec = self.task.spec
            index = summary_index(getattr(spec, "summary", None), hidden.last, ids, mask, self.text)
            first = hidden.front is not None and index is None and not spec.by_token
            scores = self.task(hidden.front if first else hidden.last, out.pooled, index)
            loss = partial(self.task.loss, scores)
            out.put_task(spec, self.task.named(scores))
        if self.detect is not None:
            replaced = self.detect(hidden.last)
            out.put_detector(replaced)
            if self.task is None:
                loss = partial(detector_loss, replaced, attention_mask=mask)
        if labels is not None:
            if loss is None:
                raise UsageError("labels were given to a model without a language-model head")
            out.loss = loss(labels)
        if next_sentence_label is not None:
            if out.seq_relationship_logits is None:
                raise UsageError("next_sentence_label was given to a model without a pair head")
            pair = F.cross_entropy(out.seq_relationship_logits.float(), next_sentence_label.flatten())
            out.loss = pair if out.loss is None else out.loss + pair
        return out

    def shift_right(self, labels: Tensor) -> Tensor:
        """Decoder input for `labels` (B T): the start token (or the target's last token, see `Text.shift`), then the
        targets without their last column; -100 becomes padding."""
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
    def ahead(self) -> int:
        """Positions in front of each text that the model goes on with, which a soft prompt and a prefix take."""
        return self.prefix.length + (0 if self.arch.structure == "encoder-decoder" else self.prompt.length)

    @property
    def device(self) -> torch.device:
        return self._tokens("device")

    @property
    def dtype(self) -> torch.dtype:
        return self._tokens("dtype")

    def _tokens(self, name: str) -> Any:
        """A property of the embeddings' weight; a replaced module has it without making the weight of its codes."""
        tokens = self.embed.tokens
        return getattr(tokens, name, None) or getattr(tokens.weight, name)

    def save(self, directory: str, **options: Any) -> None:
        """Write the checkpoint in the publisher's layout (see `stemma.formats.save`)."""
        from stemma.formats import save

        save(self, directory, **options)


def count(arch: parts.Arch, dims: parts.Dims) -> int:
    """Exact number of parameters, tied ones once, without making any weights."""
    with Undrawn(), torch.device("meta"):
        return sum(p.numel() for p in Model(arch, dims).parameters())
