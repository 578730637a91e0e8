"""Learn from a teacher: from what it predicts, or from where it looks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stemma.declare import objectives as declared
from stemma.declare.family import Text
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.nn.parts import Arch, Dims, PostNorm
from stemma.objectives import base
from stemma.objectives.clm import NextToken
from stemma.objectives.vocabulary import LOGITS

Design = tuple[Arch, Dims]


class Distilled(base.Objective, of=declared.Distillation):
    """The rows and targets of `spec.task`, with three losses: on the targets (`token`), the divergence of the student's
    distribution from the teacher's, both at `temperature`, times its square (`soft`), and one minus the cosine of the
    last hidden states (`cosine`). As in the released distiller the latter two are means over all tokens of the text and
    not only over targets; of a decoder, over the tokens whose next one is a target."""

    def __init__(self, spec: declared.Distillation, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.task: base.Objective = base.runnable(spec.task)(spec.task, setting)
        self.structures, self.predicts_all = self.task.structures, self.task.predicts_all
        self.streamed = self.task.streamed

    @classmethod
    def required_roles(cls, spec: declared.Distillation, text: Text) -> tuple[tuple[str, ...], ...]:
        return base.runnable(spec.task).required_roles(spec.task, text)

    @classmethod
    def incompatible_reason(cls, spec: declared.Distillation, arch: Arch) -> str | None:
        return base.runnable(spec.task).incompatible_reason(spec.task, arch)

    @classmethod
    def teacher_mismatch(cls, spec: declared.Distillation, student: Design, teacher: Design) -> str | None:
        if (why := base.runnable(spec.task).incompatible_reason(spec.task, teacher[0])) is not None:
            return f"the teacher cannot give what objective.task asks: {why}"
        if teacher[0].heads.lm is None:
            return "the teacher has no language-model head, whose predictions this objective learns from"
        if teacher[1].languages and teacher[1].languages != student[1].languages:
            return (
                f"the teacher is told of {teacher[1].languages} languages and the student of {student[1].languages}: "
                "both must have the same table"
            )
        widths = student[1].d_model, teacher[1].d_model
        if spec.cosine and widths[0] != widths[1]:
            return (
                f"objective.cosine={spec.cosine} compares hidden states, and the student's have {widths[0]} numbers, "
                f"the teacher's {widths[1]}; set objective.cosine=0 or dims.d_model={widths[1]}"
            )
        if spec.start == "layers" and (odd := unlike(student, teacher)):
            return (
                f"objective.start=layers begins the student as layers of the teacher, which need the same {odd}; set "
                f"objective.start=fresh or the student's {odd} to the teacher's"
            )
        return None

    def tie(self, model: Model, nets: base.Nets) -> None:
        if self.spec.start == "layers":
            begin(model, nets["teacher"])

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        return self.task.lazy_examples(view, cursor, once)

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        batch = self.task.collate(examples)
        if isinstance(self.task, NextToken):
            return batch
        real = base.stack(examples, "documents")["documents"].flatten() != base.PAD_DOCUMENT
        return batch | {"everywhere": real.nonzero().squeeze(1)}

    def tokens_without_target(self, view: base.View) -> int:
        return self.task.tokens_without_target(view)

    def counts(self, batch: base.Batch) -> dict[str, int]:
        n = len(batch["everywhere"]) if "everywhere" in batch else len(batch["targets"])
        found = {self.main: len(batch["targets"])}
        return found | {k: n for k in ("soft", "cosine") if getattr(self.spec, k)}

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        teacher, where = nets["teacher"], batch.get("everywhere", batch.get("where"))
        with torch.no_grad():
            known, last = (rows(x, where) for x in states(teacher, batch))
        hidden, own = states(model, batch)
        sums = {self.main: self.token_loss(model, hidden, batch)}
        if self.spec.soft:
            sums["soft"] = soft_loss(model, rows(hidden, where), teacher, known, self.spec.temperature)
        if self.spec.cosine:
            sums["cosine"] = (1 - F.cosine_similarity(rows(own, where).float(), last.float(), dim=-1)).sum()
        weights = {self.main: self.spec.hard, "soft": self.spec.soft, "cosine": self.spec.cosine}
        return base.Loss(sums, self.counts(batch), weights=weights)


def states(model: Model, batch: base.Batch) -> tuple[Tensor, Tensor]:
    """What the language-model head reads, and the last hidden state: B T D each."""
    ids, pos, documents = batch["input_ids"], base.position_ids(model, batch), batch.get("documents")
    langs = batch.get("langs") if model.dims.languages else None
    if model.decoder is not None:
        alone = base.alone(model, batch)
        hidden = model.decode(Inputs(ids, position_ids=pos, documents=documents, langs=langs, contexts=alone))
        return hidden, hidden
    inputs = Inputs(ids, batch.get("attention_mask"), position_ids=pos, documents=documents, langs=langs)
    state = model.state(inputs)
    return model.read(state), state.hidden


def rows(hidden: Tensor, where: Tensor | None) -> Tensor:
    """N D: the hidden states (B T D) at places of the flattened batch."""
    flat = hidden.flatten(0, 1)
    return flat if where is None else flat.index_select(0, where)


def soft_loss(student: Model, own: Tensor, teacher: Model, theirs: Tensor, temperature: float) -> Tensor:
    """The divergence (Hinton et al. 2015, arXiv:1503.02531, section 2) in nats, summed over N hidden states of each,
    times the square of the temperature, fp32."""

    def some(h: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            goal = (teacher.logits(t).float() / temperature).log_softmax(-1)
        found = (student.logits(h).float() / temperature).log_softmax(-1)
        return F.kl_div(found, goal, reduction="sum", log_target=True) * temperature**2

    size = max(1, LOGITS // student.dims.vocab // 2)
    if len(own) <= size:
        return some(own, theirs)
    parts = zip(own.split(size), theirs.split(size), strict=True)
    return torch.stack([checkpoint(some, h, t, use_reentrant=False) for h, t in parts]).sum()


# ---------------------------------------------------------------- beginning as the teacher's layers


def unlike(student: Design, teacher: Design) -> str:
    """What two designs do not share that layers need to fit; empty if nothing."""
    for name in ("d_model", "heads", "d_ff", "kv", "width", "embed"):
        if getattr(student[1], name) != getattr(teacher[1], name):
            return f"dims.{name}"
    if student[1].layers > teacher[1].layers:
        return "dims.layers at most"
    for name in ("position", "attention", "mlp", "residual", "norm"):
        if type(getattr(student[0], name)) is not type(getattr(teacher[0], name)):
            return f"arch.{name}"
    return ""


def begin(student: Model, teacher: Model) -> None:
    """Give the student the teacher's embeddings, heads and evenly spaced layers, first and last among them: of 12 for 6
    those numbered 0, 2, 4, 7, 9, 11 (the released scripts/extract_distilbert.py). What the teacher lacks stays; of
    tables that differ in length (positions, segments) the beginning is taken."""
    of = {k: k for k in range(student.dims.layers)}
    if student.dims.layers > 1:
        step = (teacher.dims.layers - 1) / (student.dims.layers - 1)
        of = {k: round(k * step) for k in of}
    theirs = dict(teacher.named_parameters())
    with torch.no_grad():
        for name, p in student.named_parameters():
            head, mark, tail = name.partition(".blocks.")
            number, dot, rest = tail.partition(".")
            source = theirs.get(f"{head}{mark}{of[int(number)]}{dot}{rest}" if mark else name)
            if source is None or source.shape[1:] != p.shape[1:]:
                continue
            n = min(len(source), len(p)) if p.ndim else 0
            p[:n].copy_(source[:n]) if p.ndim else p.copy_(source)


# ---------------------------------------------------------------- attention


class Relations(base.Objective, of=declared.AttentionDistillation):
    """Rows of whole texts, documents written `cls tokens sep`, and for each token the divergence of two distributions
    of the student's last layer from the teacher's, as means over heads: where it looks (`attention`), and how its
    values resemble those of the others, softmax(V V' / sqrt(width)) (`values`). Nothing is masked, which the paper
    leaves open; what stands above the last attention (its MLP, the heads) learns nothing."""

    main = "attention"
    reads_attention = True
    structures = ("encoder",)
    roles = ("cls", "bos"), ("sep", "eos")

    def __init__(self, spec: declared.AttentionDistillation, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.cls, self.sep = self.special_id("cls", "bos"), self.special_id("sep", "eos")

    @classmethod
    def teacher_mismatch(cls, spec: declared.AttentionDistillation, student: Design, teacher: Design) -> str | None:
        if teacher[0].structure != "encoder":
            return f"the teacher's structure must be encoder, not {teacher[0].structure}"
        heads = student[1].heads, teacher[1].heads
        if heads[0] != heads[1]:
            return (
                f"AttentionDistillation compares head with head: the student has {heads[0]}, the teacher {heads[1]}; "
                f"set dims.heads={heads[1]}"
            )
        return None

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        def piece(document: int, _: int) -> base.Ints:
            return np.concatenate([[self.cls], np.asarray(view[document]), [self.sep]]).astype(np.int64)[None]

        packer = base.Packer(self.order(view, once), lambda d: len(view[d]) + 2, piece, once)
        for chunk, follow in packer.chunks(cursor, self.context, self.context):
            yield partial(self.example, packer, chunk), follow

    def example(self, packer: base.Packer, chunk: base.Chunk) -> base.Example:
        window = packer.row(chunk, self.context, [self.padding])
        return {
            "input_ids": window.values[0],
            "documents": window.documents,
            "position_ids": window.positions,
        }

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        batch = base.stack(examples, "input_ids", "documents", "position_ids")
        # every token is a target, and what it is to say is the teacher's: of targets only their number counts
        batch |= base.targets(torch.where(batch["documents"] == base.PAD_DOCUMENT, IGNORED, batch["input_ids"]))
        if self.mixed or not base.several(examples):
            real = batch.pop("documents") != base.PAD_DOCUMENT
            del batch["position_ids"]
            if not bool(real.all()):
                batch["attention_mask"] = real.to(torch.int64)
        return batch

    def counts(self, batch: base.Batch) -> dict[str, int]:
        return {"attention": len(batch["targets"]), "values": len(batch["targets"])}

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        with torch.no_grad():
            goal = relations(nets["teacher"], batch)
        found = relations(model, batch)
        where = batch.get("where")
        sums = {}
        for name, own, theirs in zip(("attention", "values"), found, goal, strict=True):
            apart = (theirs.exp() * (theirs - own).masked_fill(theirs == float("-inf"), 0.0)).sum(-1).mean(1).flatten()
            sums[name] = (apart if where is None else apart.index_select(0, where)).sum()
        return base.Loss(sums, self.counts(batch))


def relations(model: Model, batch: base.Batch) -> tuple[Tensor, Tensor]:
    """Of the last layer, the logarithms of where each token looks and of how values resemble each other: B H T T, minus
    infinity where nothing is seen."""
    encoder = model.encoder
    assert encoder is not None
    ids, pos = batch["input_ids"], base.position_ids(model, batch)
    inputs = Inputs(ids, batch.get("attention_mask"), position_ids=pos, documents=batch.get("documents"))
    state = model.state(inputs)
    block: Any = encoder.blocks[encoder.order[-1][0]]
    last = state.last_input
    source = last if isinstance(model.arch.residual, PostNorm) else block.attention_norm(last)
    scores, values = block.attention.scores(source, state.attn_mask, state.position)
    likeness = (values @ values.transpose(-1, -2)).float() * values.shape[-1] ** -0.5
    if (seen := state.attn_mask.dense()) is not None:
        likeness = likeness.masked_fill(~seen, float("-inf"))
    return scores.log_softmax(-1), likeness.log_softmax(-1)
