"""The layouts of public XLM and XLM-R checkpoints (Hugging Face)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from stemma.declare.family import Design
from stemma.errors import CheckpointError
from stemma.families.xlm import xlm as xlm_family
from stemma.families.xlm import xlm_roberta as xlm_roberta_family
from stemma.formats.hf_bert import fairseq_keys, head, roberta, task_classes, task_rows
from stemma.formats.hf_gpt import four_times
from stemma.formats.keys import Layout, key, reasons, several, switch
from stemma.formats.names import Row, linear, row
from stemma.nn.parts import Causal, Choose, Classify, Full, Heads, LMHead, MLMHead, Summary

# ---------------------------------------------------------------- XLM


def _xlm_rows(design: Design) -> Iterator[Row]:
    task, tied = design.arch.heads.task, design.arch.heads.tied
    stack = design.arch.structure  # an encoder, or a decoder where it is causal
    body, ours = "transformer", f"{stack}.blocks.{{i}}"
    yield row(f"{body}.embeddings.weight", "embed.tokens.weight", aliases=["pred_layer.proj.weight"] if tied else [])
    yield row(f"{body}.position_embeddings.weight", f"{stack}.position.table.weight")
    yield row(f"{body}.lang_embeddings.weight", "embed.languages.weight")
    yield from linear(f"{body}.layer_norm_emb", f"{stack}.embed_norm")
    for name, mine in (("q_lin", "q"), ("k_lin", "k"), ("v_lin", "v"), ("out_lin", "o")):
        yield from linear(f"{body}.attentions.{{i}}.{name}", f"{ours}.attention.{mine}")
    yield from linear(f"{body}.layer_norm1.{{i}}", f"{ours}.attention_norm")
    yield from linear(f"{body}.ffns.{{i}}.lin1", f"{ours}.mlp.up")
    yield from linear(f"{body}.ffns.{{i}}.lin2", f"{ours}.mlp.down")
    yield from linear(f"{body}.layer_norm2.{{i}}", f"{ours}.mlp_norm")
    yield row("pred_layer.proj.bias", "lm.bias")
    if not tied:
        yield row("pred_layer.proj.weight", "lm.weight")
    if isinstance(task, Classify):
        yield from linear("sequence_summary.summary", "task.out")
    elif isinstance(task, Choose):
        yield from linear("sequence_summary.summary", "task.through")
        yield from linear("logits_proj", "task.out")
    else:
        yield from task_rows(design)


def _languages(value: Any, config: Mapping[str, Any]) -> int:
    """Rows of the language table: 0 for one language or if the config switches it off."""
    used = config.get("use_lang_emb", True)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"n_langs={value!r} should be a whole number of at least 1")
    if not isinstance(used, bool):
        raise CheckpointError(f"use_lang_emb={used!r} should be true or false, beside n_langs")
    return value if used and value > 1 else 0


def _names(value: Any, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The languages by number."""
    if value is None or value == {}:
        return ()
    if not isinstance(value, dict) or sorted(map(str, value.values())) != sorted(map(str, range(len(value)))):
        raise CheckpointError(f"lang2id={value!r} should number every language, from 0")
    return tuple(sorted(value, key=lambda name: int(value[name])))


SUMMARY = {
    "summary_type": "first",
    "summary_use_proj": True,
    "summary_activation": None,
    "summary_proj_to_labels": True,
}

xlm = Layout(
    model_type="xlm",
    families=("xlm", "xlm-clm"),
    classes={
        "XLMWithLMHeadModel": Heads(LMHead(bias=True)),
        "XLMModel": Heads(),
        **{
            name.replace("QuestionAnswering", "QuestionAnsweringSimple"): heads
            for name, heads in task_classes("XLM", xlm_family).items()
        },
    },
    keys=(
        key("vocab_size", "dims.vocab", default=30_145, older=("n_words",)),
        key("emb_dim", "dims.d_model", default=2048),
        key("emb_dim", "dims.d_ff", default=2048, read=four_times, write=lambda value, d: d.dims.d_model),
        key("n_layers", "dims.layers", default=12),
        key("n_heads", "dims.heads", default=16),
        key("dropout", "arch.dropout.embed", "arch.dropout.residual", default=0.1),
        key("attention_dropout", "arch.dropout.attention", default=0.1),
        key("gelu_activation", "arch.mlp.act", default=True, **switch("gelu", "relu")),
        key("sinusoidal_embeddings", "arch.init.positions", default=False, **switch("sines", None)),
        key("causal", "arch.structure", default=False, **switch("decoder", "encoder")),
        key("causal", "arch.mask", default=False, read=switch(Causal(), Full())["read"],
            write=lambda value, d: d.arch.structure == "decoder"),
        key("n_langs", "dims.languages", default=1, read=_languages, write=lambda value, d: max(value, 1)),
        key("lang2id", "text.languages", default=None, read=_names,
            write=lambda value, d: {name: i for i, name in enumerate(value)}),
        key("max_position_embeddings", "dims.context", default=512),
        key("init_std", "arch.init.std", default=0.02),
        key("layer_norm_eps", "arch.norm.eps", default=1e-12),
        key("tie_word_embeddings", "arch.heads.lm.tied", default=True, older=("share_inout_emb",)),
        key("pad_token_id", "text.pad_id", default=2, older=("pad_index",)),
        key("bos_token_id", "text.bos_id", default=0, older=("bos_index",)),
        key("eos_token_id", "text.eos_id", default=1, read=several, older=("eos_index",)),
    ),
    rows=_xlm_rows,
    prefix="transformer.",
    fixed={"asm": False, "is_encoder": True},
    fixed_in={"ForSequenceClassification": SUMMARY, "ForMultipleChoice": SUMMARY},
    unused={
        **reasons("read with n_langs and lang2id", "use_lang_emb id2lang"),
        **reasons("how embeddings begin before training", "embed_init_std"),
        **reasons("the tokenizer's files say which token it is", "unk_index mask_index"),
        **reasons("the language is an argument of each call", "lang_id"),
        **reasons("of a search for answers that is not built here", "start_n_top end_n_top"),
        **reasons("how the model was made; no code reads it", "max_vocab min_count same_enc_dec asm_cutoffs "
                  "asm_div_value"),
        **reasons("dropout of a task head, which its spec says", "summary_first_dropout summary_last_dropout"),
    },
    unused_tensors={r"(^|\.)position_ids$": "a buffer of 0, 1, 2, ..."},
)  # fmt: skip

# ---------------------------------------------------------------- XLM-R

xlm_roberta = replace(
    roberta,
    model_type="xlm-roberta",
    families=("xlm-roberta",),
    classes={
        "XLMRobertaForMaskedLM": Heads(MLMHead()),
        "XLMRobertaModel": Heads(pooler=Summary()),
        **task_classes("XLMRoberta", xlm_roberta_family),
    },
    keys=fairseq_keys(),
)


def _xl_rows(design: Design) -> Iterator[Row]:
    body = "roberta"
    theirs, ours = f"{body}.encoder.layer.{{i}}", "encoder.blocks.{i}"
    tied = design.arch.heads.tied
    decoder = ["lm_head.decoder.weight"] if tied else []
    yield row(f"{body}.embeddings.word_embeddings.weight", "embed.tokens.weight", aliases=decoder)
    yield row(f"{body}.embeddings.position_embeddings.weight", "encoder.position.table.weight")
    yield row(f"{body}.embeddings.token_type_embeddings.weight", "embed.segments.weight")
    yield from linear(f"{theirs}.attention.self_attn_layer_norm", f"{ours}.attention_norm")
    for name, mine in (("query", "q"), ("key", "k"), ("value", "v")):
        yield from linear(f"{theirs}.attention.self.{name}", f"{ours}.attention.{mine}")
    yield from linear(f"{theirs}.attention.output.dense", f"{ours}.attention.o")
    yield from linear(f"{theirs}.LayerNorm", f"{ours}.mlp_norm")
    yield from linear(f"{theirs}.intermediate.dense", f"{ours}.mlp.up")
    yield from linear(f"{theirs}.output.dense", f"{ours}.mlp.down")
    yield from linear(f"{body}.encoder.LayerNorm", "encoder.norm")
    yield from linear(f"{body}.pooler.dense", "pooler.dense")
    yield from head("lm_head", "dense", "layer_norm", tied)
    yield from task_rows(design)


xlm_roberta_xl = replace(
    roberta,
    model_type="xlm-roberta-xl",
    families=("xlm-roberta-xl",),
    classes={
        "XLMRobertaXLForMaskedLM": Heads(MLMHead()),
        "XLMRobertaXLModel": Heads(pooler=Summary()),
        **task_classes("XLMRobertaXL", xlm_roberta_family),
    },
    keys=fairseq_keys(
        vocab_size=250_880,
        hidden_size=2560,
        num_hidden_layers=36,
        num_attention_heads=32,
        intermediate_size=10_240,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    ),
    rows=_xl_rows,
)
