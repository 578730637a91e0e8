"""The layout of public ALBERT checkpoints (Hugging Face)."""

from __future__ import annotations

from collections.abc import Iterator

from stemma.declare.family import Design
from stemma.families.albert import albert as family
from stemma.formats.hf_bert import ABSOLUTE, GAMMA, head, task_classes, task_rows
from stemma.formats.keys import ACTS, Layout, ids, key, number, reasons
from stemma.formats.names import Row, linear, row
from stemma.nn.parts import Heads, MLMHead, Summary


def _rows(design: Design) -> Iterator[Row]:
    body, inner = "albert", design.dims.inner
    tied = design.arch.heads.tied
    decoder = ["predictions.decoder.weight"] if tied else []
    yield row(f"{body}.embeddings.word_embeddings.weight", "embed.tokens.weight", aliases=decoder)
    yield row(f"{body}.embeddings.position_embeddings.weight", "encoder.position.table.weight")
    yield row(f"{body}.embeddings.token_type_embeddings.weight", "embed.segments.weight")
    yield from linear(f"{body}.embeddings.LayerNorm", "encoder.embed_norm")
    yield from linear(f"{body}.encoder.embedding_hidden_mapping_in", "encoder.project")
    for at in range((design.dims.groups or design.dims.layers) * inner):
        group, place = divmod(at, inner)
        theirs = f"{body}.encoder.albert_layer_groups.{group}.albert_layers.{place}"
        ours = f"encoder.blocks.{at}"
        for name, mine in (("query", "q"), ("key", "k"), ("value", "v"), ("dense", "o")):
            yield from linear(f"{theirs}.attention.{name}", f"{ours}.attention.{mine}")
        yield from linear(f"{theirs}.attention.LayerNorm", f"{ours}.attention_norm")
        yield from linear(f"{theirs}.ffn", f"{ours}.mlp.up")
        yield from linear(f"{theirs}.ffn_output", f"{ours}.mlp.down")
        yield from linear(f"{theirs}.full_layer_layer_norm", f"{ours}.mlp_norm")
    yield from linear(f"{body}.pooler", "pooler.dense")
    yield from head("predictions", "dense", "LayerNorm", tied)
    yield from linear("sop_classifier.classifier", "pair")
    yield from task_rows(design)


albert = Layout(
    model_type="albert",
    families=("albert", "albert-v2"),
    classes={
        "AlbertForPreTraining": Heads(MLMHead(), pooler=Summary(), pair=True),
        "AlbertForMaskedLM": Heads(MLMHead()),
        "AlbertModel": Heads(pooler=Summary()),
        **task_classes("Albert", family),
    },
    keys=(
        key("vocab_size", "dims.vocab", default=30_000),
        key("embedding_size", "dims.embed", default=128, read=number),
        key("hidden_size", "dims.d_model", default=4096),
        key("num_hidden_layers", "dims.layers", default=12),
        key("num_hidden_groups", "dims.groups", default=1, read=number),
        key("inner_group_num", "dims.inner", default=1),
        key("num_attention_heads", "dims.heads", default=64),
        key("intermediate_size", "dims.d_ff", default=16_384),
        key("hidden_act", "arch.mlp.act", "arch.heads.lm.act", default="gelu_new", **ACTS),
        key("hidden_dropout_prob", "arch.dropout.embed", "arch.dropout.residual", default=0.0),
        key("attention_probs_dropout_prob", "arch.dropout.attention", default=0.0),
        key("classifier_dropout_prob", "arch.dropout.pair", default=0.1),
        key("max_position_embeddings", "dims.context", default=512),
        key("type_vocab_size", "dims.segments", default=2),
        key("initializer_range", "arch.init.std", default=0.02),
        key("layer_norm_eps", "arch.norm.eps", default=1e-12),
        key("tie_word_embeddings", "arch.heads.lm.tied", default=True),
        *ids(pad=0, bos=2, eos=3),
    ),
    rows=_rows,
    prefix="albert.",
    fixed=ABSOLUTE,
    unused=reasons(
        "of the TensorFlow release; no code reads it", "down_scale_factor gap_size net_structure_type num_memory_blocks"
    ),
    renames=GAMMA,
    unused_tensors={
        r"(^|\.)embeddings\.(position|token_type)_ids$": "a buffer",
        r"^predictions\.bias$": "not in use where the head is not tied: its decoder has a bias of its own",
    },
)
