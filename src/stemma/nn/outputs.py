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

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.nn import parts
from stemma.nn.functional import out_of_range, readable

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

    def put_task(self, spec: parts.Task, named: Mapping[str, Tensor]) -> None:
        """Store what a task head answers, by name; `logits` of their own name where an LM head has that one."""
        for name, scores in named.items():
            if name == "logits" and self.logits is not None:
                name = "mc_logits" if spec.candidates else "task_logits"
            setattr(self, name, scores)

    def put_detector(self, scores: Tensor) -> None:
        """Store the logits of a detector, B T. Call it after `put_task`."""
        if self.logits is None:
            self.logits = scores
        else:
            self.detector_logits = scores


def detector_loss(logits: Tensor, labels: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Mean binary cross-entropy over the tokens (B T) that are no padding; a label is 1 where a token was replaced."""
    real = torch.ones_like(labels) if attention_mask is None else attention_mask
    each = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    return each[real.bool()].mean()


def token_mean(logits: Tensor, labels: Tensor, shifted: bool) -> Tensor:
    """Mean cross-entropy of `logits` (B T V) at `labels` (B T). `shifted`: logits at t predict the label at t + 1."""
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    if not readable(labels):
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
    try:
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
    except IndexError:
        raise out_of_range("labels", labels[labels != IGNORED], logits.shape[-1]) from None
