"""The layouts of public BART and mBART checkpoints (Hugging Face)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from stemma.declare.family import Design
from stemma.errors import CheckpointError
from stemma.families.bart import bart as bart_family
from stemma.families.bart import mbart as mbart_family
from stemma.formats.hf_bert import task_classes
from stemma.formats.hf_t5 import task_rows
from stemma.formats.keys import ACTS, Key, Layout, ids, key, reasons
from stemma.formats.names import Row, Shaped, linear, row
from stemma.nn.parts import Heads, LMHead

BLOCK = (
    ("self_attn_layer_norm", "attention_norm"),
    ("encoder_attn_layer_norm", "cross_norm"),
    ("fc1", "mlp.up"),
    ("fc2", "mlp.down"),
    ("final_layer_norm", "mlp_norm"),
)
ATTENTION = (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "o"))
STACK = (("layernorm_embedding", "embed_norm"), ("layer_norm", "norm"))


def stack_rows(stack: str) -> Iterator[Row]:
    """The rows of an encoder or a decoder, with fairseq's names. Rows of parts that a model lacks are dropped."""
    yield row(f"{stack}.embed_positions.weight", f"{stack}.position.table.weight")
    for theirs, ours in STACK:
        yield from linear(f"{stack}.{theirs}", f"{stack}.{ours}")
    layer, block = f"{stack}.layers.{{i}}", f"{stack}.blocks.{{i}}"
    for theirs, ours in (("self_attn", "attention"), ("encoder_attn", "cross")):
        for x, y in ATTENTION:
            yield from linear(f"{layer}.{theirs}.{x}", f"{block}.{ours}.{y}")
    for theirs, ours in BLOCK:
        yield from linear(f"{layer}.{theirs}", f"{block}.{ours}")


def _rows(design: Design) -> Iterator[Row]:
    head = design.arch.heads.lm
    alias = ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"]
    alias += ["lm_head.weight"] if head is not None else []
    yield row("model.shared.weight", "embed.tokens.weight", aliases=alias)
    for stack in ("encoder", "decoder"):
        for r in stack_rows(stack):
            yield replace(r, theirs=f"model.{r.theirs}")
    if isinstance(head, LMHead) and head.bias:
        yield row("final_logits_bias", "lm.bias", op=Shaped((1, design.dims.vocab)))
    yield from task_rows(design)


def _counted(value: Any, config: Mapping[str, Any]) -> Any:
    if value is None:
        raise CheckpointError("None should be a whole number")
    return value


def _keys(start: int | None) -> tuple[Key, ...]:
    return (
        key("vocab_size", "dims.vocab", default=50_265),
        key("max_position_embeddings", "dims.context", default=1024),
        key("d_model", "dims.d_model", default=1024),
        key("encoder_layers", "dims.layers", default=12),
        key("decoder_layers", "dims.decoder_layers", default=12, read=_counted),
        key("encoder_attention_heads", "dims.heads", default=16),
        key(
            "decoder_attention_heads", "dims.decoder_heads", default=16, read=_counted,
            write=lambda v, d: d.dims.decoder.heads,
        ),
        key("encoder_ffn_dim", "dims.d_ff", default=4096),
        key(
            "decoder_ffn_dim", "dims.decoder_d_ff", default=4096, read=_counted, write=lambda v, d: d.dims.decoder.d_ff
        ),
        key("activation_function", "arch.mlp.act", default="gelu", **ACTS),
        key("dropout", "arch.dropout.residual", "arch.dropout.embed", default=0.1),
        key("attention_dropout", "arch.dropout.attention", default=0.0),
        key("activation_dropout", "arch.dropout.inner", default=0.0),
        key("init_std", "arch.init.std", default=0.02),
        key("scale_embedding", "arch.embed_scale", default=False),
        *ids(pad=1, bos=0, eos=2),
        key("decoder_start_token_id", "text.start_id", default=start),
    )  # fmt: skip


def _fixed(final_norms: bool) -> dict[str, Any]:
    return {
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "normalize_before": final_norms,
        "add_final_layer_norm": final_norms,
        "normalize_embedding": True,
        "static_position_embeddings": False,
        "extra_pos_embeddings": 2,
        "add_bias_logits": False,
        "do_blenderbot_90_layernorm": False,
    }


UNUSED = {
    "num_hidden_layers": "repeats encoder_layers",
    **reasons("a kind of dropout, which there is none of here", "encoder_layerdrop decoder_layerdrop"),
    "classif_dropout": "dropout of a task head, which its spec says",
    **reasons("says how the file was made", "save_step"),
    "force_bos_token_to_be_generated": "generation is set by generation_config.json and by the call",
}
UNUSED_TENSORS = {
    r"(^|\.)(encoder|decoder)\.version$": "a mark of fairseq's",
    r"^final_logits_bias$": "a bias of the head: all zeros, or of a head that is not in use",
    r"^lm_head\.weight$": "of a head that is not in use",
}

bart = Layout(
    model_type="bart",
    families=("bart",),
    classes={
        "BartForConditionalGeneration": Heads(LMHead()),
        "BartModel": Heads(),
        **task_classes("Bart", bart_family),
    },
    keys=_keys(start=2),
    rows=_rows,
    prefix="model.",
    fixed=_fixed(final_norms=False),
    unused=UNUSED,
    unused_tensors=UNUSED_TENSORS,
    bias_by_file=True,
    labels=3,
)

mbart = replace(
    bart,
    model_type="mbart",
    families=("mbart",),
    classes={
        "MBartForConditionalGeneration": Heads(LMHead()),
        "MBartModel": Heads(),
        **task_classes("MBart", mbart_family),
    },
    keys=_keys(start=None),
    fixed=_fixed(final_norms=True),
    labels=2,
)
