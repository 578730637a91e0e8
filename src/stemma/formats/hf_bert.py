"""The layout of public BERT and RoBERTa checkpoints (Hugging Face)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from stemma.declare.family import Design, Family
from stemma.errors import CheckpointError
from stemma.families.bert import bert as bert_family
from stemma.families.bert import roberta as roberta_family
from stemma.formats.keys import ACTS, Key, Layout, ids, key, reasons, several, with_defaults
from stemma.formats.names import Row, linear, row
from stemma.nn.parts import Answer, Classify, Heads, Learned, MLMHead, Summary

KEYS = (
    key("vocab_size", "dims.vocab", default=30_522),
    key("hidden_size", "dims.d_model", default=768),
    key("num_hidden_layers", "dims.layers", default=12),
    key("num_attention_heads", "dims.heads", default=12),
    key("intermediate_size", "dims.d_ff", default=3072),
    key("hidden_act", "arch.mlp.act", "arch.heads.lm.act", default="gelu", **ACTS),
    key("hidden_dropout_prob", "arch.dropout.embed", "arch.dropout.residual", default=0.1),
    key("attention_probs_dropout_prob", "arch.dropout.attention", default=0.1),
    key("type_vocab_size", "dims.segments", default=2),
    key("initializer_range", "arch.init.std", default=0.02),
    key("layer_norm_eps", "arch.norm.eps", default=1e-12),
    key("tie_word_embeddings", "arch.heads.lm.tied", default=True),
)


def with_act(*paths: str) -> tuple[Key, ...]:
    """The same keys, with the activation at other `paths`."""
    return tuple(replace(k, paths=paths) if k.name == "hidden_act" else k for k in KEYS)


def blocks() -> Iterator[Row]:
    """The rows of a body like BERT's."""
    theirs, ours = "encoder.layer.{i}", "encoder.blocks.{i}"
    yield row("embeddings.word_embeddings.weight", "embed.tokens.weight")
    yield row("embeddings.position_embeddings.weight", "encoder.position.table.weight")
    yield row("embeddings.token_type_embeddings.weight", "embed.segments.weight")
    yield from linear("embeddings.LayerNorm", "encoder.embed_norm")
    for name, mine in (("query", "q"), ("key", "k"), ("value", "v")):
        yield from linear(f"{theirs}.attention.self.{name}", f"{ours}.attention.{mine}")
    yield from linear(f"{theirs}.attention.output.dense", f"{ours}.attention.o")
    yield from linear(f"{theirs}.attention.output.LayerNorm", f"{ours}.attention_norm")
    yield from linear(f"{theirs}.intermediate.dense", f"{ours}.mlp.up")
    yield from linear(f"{theirs}.output.dense", f"{ours}.mlp.down")
    yield from linear(f"{theirs}.output.LayerNorm", f"{ours}.mlp_norm")
    yield from linear("pooler.dense", "pooler.dense")


def _body(prefix: str, decoder: str, tied: bool) -> Iterator[Row]:
    """The rows of a model with a head, whose `decoder` equals the embeddings if it is `tied`."""
    for r in blocks():
        repeated = tied and r.ours == ("embed.tokens.weight",)
        yield row(prefix + r.theirs, *r.ours, aliases=[f"{decoder}.weight"] if repeated else [])


def head(theirs: str, dense: str, norm: str, tied: bool) -> Iterator[Row]:
    """The rows of a masked-LM head; a tied head has no matrix."""
    yield from linear(f"{theirs}.{dense}", "lm.dense")
    yield from linear(f"{theirs}.{norm}", "lm.norm")
    if tied:
        yield row(f"{theirs}.bias", "lm.bias", aliases=[f"{theirs}.decoder.bias"])
    else:  # then the decoder's own bias is the one in use
        yield from linear(f"{theirs}.decoder", "lm")


def task_rows(design: Design) -> Iterator[Row]:
    """The rows of task heads."""
    task = design.arch.heads.task
    if isinstance(task, Answer):
        yield from linear("qa_outputs", "task.out")
    elif isinstance(task, Classify) and task.summary is not None:
        yield from linear("classifier.dense", "task.summary.dense")
        yield from linear("classifier.out_proj", "task.out")
    else:
        yield from linear("classifier", "task.out")


def task_classes(prefix: str, family: Family) -> dict[str, Heads]:
    """The model classes of the family's task heads."""
    names = {
        "classify": "SequenceClassification",
        "tag": "TokenClassification",
        "answer": "QuestionAnswering",
        "choose": "MultipleChoice",
    }
    return {f"{prefix}For{names[task]}": heads for task, heads in family.tasks.items()}


def _bert_rows(design: Design) -> Iterator[Row]:
    tied = design.arch.heads.tied
    yield from _body("bert.", "cls.predictions.decoder", tied)
    yield from head("cls.predictions", "transform.dense", "transform.LayerNorm", tied)
    yield from linear("cls.seq_relationship", "pair")
    yield from task_rows(design)


def roberta_rows(design: Design) -> Iterator[Row]:
    """The rows of RoBERTa and of families with its network."""
    tied = design.arch.heads.tied
    yield from _body("roberta.", "lm_head.decoder", tied)
    yield from head("lm_head", "dense", "layer_norm", tied)
    yield from task_rows(design)


ABSOLUTE = {"position_embedding_type": "absolute"}
UNUSED_TENSORS = {
    r"(^|\.)embeddings\.position_ids$": "a buffer of 0, 1, 2, ...",
    r"^(cls\.predictions|lm_head)\.bias$": "not in use where the head is not tied: its decoder has a bias of its own",
}
GAMMA = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

bert = Layout(
    model_type="bert",
    families=("bert", "minilm", "all-minilm"),
    classes={
        "BertForPreTraining": Heads(MLMHead(), pooler=Summary(), pair=True),
        "BertForMaskedLM": Heads(MLMHead()),
        "BertModel": Heads(pooler=Summary()),
        "BertForNextSentencePrediction": Heads(pooler=Summary(), pair=True),
        "BertEncoder": Heads(),
        **task_classes("Bert", bert_family),
    },
    keys=(
        *KEYS,
        key("max_position_embeddings", "dims.context", default=512),
        *ids(pad=0, bos=None, eos=None),
    ),
    rows=_bert_rows,
    prefix="bert.",
    fixed=ABSOLUTE,
    unused=reasons(
        "of the multilingual TensorFlow release; no code reads it",
        "directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head "
        "pooler_type",
    ),
    renames=GAMMA,
    unused_tensors=UNUSED_TENSORS,
)


def _padding(value: Any, config: Mapping[str, Any]) -> Any:
    if value is None:
        raise CheckpointError("pad_token_id must be a number: RoBERTa counts positions from it")
    return value


def _rows_to_context(value: Any, config: Mapping[str, Any]) -> Any:
    padding = config.get("pad_token_id", 1)
    if not isinstance(value, int) or not isinstance(padding, int):
        raise CheckpointError(f"max_position_embeddings={value!r} and pad_token_id={padding!r} must be whole numbers")
    if value <= padding + 1:
        raise CheckpointError(
            f"max_position_embeddings={value} leaves no position: pad_token_id={padding} takes the first {padding + 1}"
        )
    return value - padding - 1


def _context_to_rows(value: Any, design: Design) -> Any:
    position = design.arch.position
    return value + 1 + (position.padding or 0 if isinstance(position, Learned) else 0)


def fairseq_keys(**defaults: Any) -> tuple[Key, ...]:
    """RoBERTa's keys: BERT's, but the head's activation is fixed and positions are counted from the padding id.
    `defaults`: the reference's, where they differ from BERT's."""
    keys = (
        *with_act("arch.mlp.act"),
        key("max_position_embeddings", "dims.context", default=512, read=_rows_to_context, write=_context_to_rows),
        key("pad_token_id", "text.pad_id", "arch.position.padding", default=1, read=_padding),
        key("bos_token_id", "text.bos_id", default=0),
        key("eos_token_id", "text.eos_id", default=2, read=several),
    )
    return with_defaults(keys, **defaults)


roberta = Layout(
    model_type="roberta",
    families=("roberta", "distilroberta"),
    classes={
        "RobertaForMaskedLM": Heads(MLMHead()),
        "RobertaModel": Heads(pooler=Summary()),
        "RobertaEncoder": Heads(),
        **task_classes("Roberta", roberta_family),
    },
    keys=fairseq_keys(vocab_size=50_265),
    rows=roberta_rows,
    prefix="roberta.",
    fixed=ABSOLUTE,
    renames=GAMMA,
    unused_tensors=UNUSED_TENSORS,
)
