"""The layout of public DistilBERT checkpoints (Hugging Face)."""

from __future__ import annotations

from collections.abc import Iterator

from stemma.declare.family import Design
from stemma.families.distilled import distilbert as family
from stemma.formats.hf_bert import GAMMA, task_classes, task_rows
from stemma.formats.keys import ACTS, Layout, ids, key, reasons, switch
from stemma.formats.names import Row, linear, row
from stemma.nn.parts import Choose, Classify, Heads, MLMHead


def _rows(design: Design) -> Iterator[Row]:
    tied = design.arch.heads.tied
    body = "distilbert"
    theirs, ours = f"{body}.transformer.layer.{{i}}", "encoder.blocks.{i}"
    projector = ["vocab_projector.weight"] if tied else []
    yield row(f"{body}.embeddings.word_embeddings.weight", "embed.tokens.weight", aliases=projector)
    yield row(f"{body}.embeddings.position_embeddings.weight", "encoder.position.table.weight")
    yield from linear(f"{body}.embeddings.LayerNorm", "encoder.embed_norm")
    for name, mine in (("q_lin", "q"), ("k_lin", "k"), ("v_lin", "v"), ("out_lin", "o")):
        yield from linear(f"{theirs}.attention.{name}", f"{ours}.attention.{mine}")
    yield from linear(f"{theirs}.sa_layer_norm", f"{ours}.attention_norm")
    yield from linear(f"{theirs}.ffn.lin1", f"{ours}.mlp.up")
    yield from linear(f"{theirs}.ffn.lin2", f"{ours}.mlp.down")
    yield from linear(f"{theirs}.output_layer_norm", f"{ours}.mlp_norm")
    yield from linear("vocab_transform", "lm.dense")
    yield from linear("vocab_layer_norm", "lm.norm")
    yield row("vocab_projector.bias", "lm.bias")
    if not tied:
        yield row("vocab_projector.weight", "lm.weight")
    if isinstance(design.arch.heads.task, Classify | Choose):
        yield from linear("pre_classifier", "task.summary.dense")
        yield from linear("classifier", "task.out")
    else:
        yield from task_rows(design)


distilbert = Layout(
    model_type="distilbert",
    families=("distilbert",),
    classes={
        "DistilBertForMaskedLM": Heads(MLMHead()),
        "DistilBertModel": Heads(),
        **task_classes("DistilBert", family),
    },
    keys=(
        key("vocab_size", "dims.vocab", default=30_522),
        key("dim", "dims.d_model", default=768),
        key("n_layers", "dims.layers", default=6),
        key("n_heads", "dims.heads", default=12),
        key("hidden_dim", "dims.d_ff", default=3072),
        key("max_position_embeddings", "dims.context", default=512),
        key("sinusoidal_pos_embds", "arch.init.positions", default=False, **switch("sines", None)),
        key("activation", "arch.mlp.act", "arch.heads.lm.act", default="gelu", **ACTS),
        key("dropout", "arch.dropout.embed", "arch.dropout.residual", default=0.1),
        key("attention_dropout", "arch.dropout.attention", default=0.1),
        key("initializer_range", "arch.init.std", default=0.02),
        key("tie_word_embeddings", "arch.heads.lm.tied", default=True, older=("tie_weights_",)),
        *ids(pad=0, bos=None, eos=None),
    ),
    rows=_rows,
    prefix="distilbert.",
    unused=reasons("dropout of a task head, which its spec says", "qa_dropout seq_classif_dropout"),
    renames=GAMMA,
    unused_tensors={r"(^|\.)embeddings\.position_ids$": "a buffer of 0, 1, 2, ..."},
)
