"""What a call of a model returns, and the losses of its heads.

Names are those of `transformers`. Where one model has several heads, `logits` belongs to the first of: LM head, task
head, detector. A head whose logits are not in `logits` answers in a field of its own:

| heads | `logits` | beside it |
|---|---|---|
| LM | B T V | |
| classes; tags; multiple choice | B L; B T L; B C | |
| span answering | (none) | `start_logits`, `end_logits` B T |
| detector | B T | |
| LM and multiple choice (`GPT2DoubleHeadsModel`) | B C T V | `mc_logits` B C |
| LM and classes or tags | B T V | `task_logits` |
| LM or task head, and a detector | as without it | `detector_logits` B T |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.heads import summary_index, task_loss
from stemma.nn.inputs import Inputs

if TYPE_CHECKING:
    from stemma.nn.model import Hidden, Model

IGNORED = -100  # a label that is no target


@dataclass
class Output:
    """What a call returns. T is the length of the input, or the K predictions of a `target_mapping`.

    `hidden`: last hidden state, B T D (also `last_hidden_state`)
    `logits`: of the LM head (B T V), else of the task head, else of the detector (see the module's table)
    `loss`: mean over targets, if labels were given
    `start_logits`, `end_logits`: B T, that an answer starts or ends at a token
    `mc_logits`, `task_logits`, `detector_logits`: of heads beside the one that answers in `logits`
    `pooled`: B D, of the pooler; `seq_relationship_logits`: B 2, of the pair head
    `encoder_hidden`: B S D, the encoder's last hidden state in an encoder-decoder
    `mems`: what the next segment may read, B M D a layer"""

    hidden: Tensor
    logits: Tensor | None = None
    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    mc_logits: Tensor | None = None
    task_logits: Tensor | None = None
    detector_logits: Tensor | None = None
    pooled: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    encoder_hidden: Tensor | None = None
    mems: tuple[Tensor, ...] | None = None

    @property
    def last_hidden_state(self) -> Tensor:
        """`hidden`, under the name that `transformers` gives it."""
        return self.hidden

    def put_task(self, spec: parts.Task, scores: Tensor) -> None:
        """Store the logits of a task head: B L, B T L, B C, or B T 2 of a span's ends."""
        if isinstance(spec, parts.Answer):
            self.start_logits, self.end_logits = scores.unbind(-1)
        elif self.logits is None:
            self.logits = scores
        elif isinstance(spec, parts.Choose):
            self.mc_logits = scores
        else:
            self.task_logits = scores

    def put_detector(self, scores: Tensor) -> None:
        """Store the logits of a detector, B T. Call it after `put_task`."""
        if self.logits is None:
            self.logits = scores
        else:
            self.detector_logits = scores


def outputs(
    model: Model, source: Inputs, hidden: Hidden, labels: Tensor | None, next_sentence_label: Tensor | None
) -> Output:
    """The logits of all heads of a model, and the loss of its labels."""
    out = Output(hidden.last, encoder_hidden=hidden.encoder, mems=hidden.mems)
    ids, mask = source.input_ids, source.attention_mask
    if model.lm is not None:
        out.logits = model.logits(hidden.lm)
    if model.pooler is not None:
        out.pooled = model.pooled(hidden.last, ids, mask)
        if model.pair is not None:
            out.seq_relationship_logits = model.paired(out.pooled)
    loss: Callable[[Tensor], Tensor] | None = None  # of the task head, else of the detector, else of the LM head
    if out.logits is not None:
        loss = partial(token_mean, out.logits, shifted=model.arch.structure == "decoder")
    if model.task is not None:
        spec = model.task.spec
        index = summary_index(getattr(spec, "summary", None), hidden.last, ids, mask, model.text)
        scores = model.task(hidden.last, out.pooled, index)
        loss = partial(task_loss, spec, scores)
        out.put_task(spec, scores)
    if model.detect is not None:
        replaced = model.detect(hidden.last)
        out.put_detector(replaced)
        if model.task is None:
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


def detector_loss(logits: Tensor, labels: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Mean binary cross-entropy over the tokens (B T) that are no padding; a label is 1 where a token was replaced."""
    real = torch.ones_like(labels) if attention_mask is None else attention_mask
    each = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    return each[real.bool()].mean()


def token_mean(logits: Tensor, labels: Tensor, shifted: bool) -> Tensor:
    """Mean cross-entropy of `logits` (B T V) at `labels` (B T). `shifted`: logits at t predict the label at t + 1."""
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
