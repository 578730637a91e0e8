"""The layouts of public ChatGLM checkpoints, which came with their own code: ChatGLM-6B, and ChatGLM2-6B and 3-6B.

ChatGLM-6B writes post-norm blocks with each norm at the beginning of what follows it: the first block's is the norm of
the embeddings, and the one after the last block is that of its MLP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.declare.family import Design
from stemma.errors import CheckpointError, UsageError
from stemma.formats.keys import Layout, key, reasons, several, token
from stemma.formats.names import ByHead, Row, linear, row
from stemma.nn.parts import Heads, LMHead

UNUSED = reasons("how the reference computes, not what", "attention_softmax_in_fp32 bias_dropout_fusion") | reasons(
    "neutral: scores are divided by it and multiplied again", "apply_query_key_layer_scaling"
)
WHOLE = {"quantization_bit": 0, "pre_seq_len": None, "prefix_projection": False}


def _first_rows(design: Design) -> Iterator[Row]:
    tied, last = design.arch.heads.tied, design.dims.layers - 1
    head = ["lm_head.weight"] if tied else []
    yield row("transformer.word_embeddings.weight", "embed.tokens.weight", aliases=head)
    yield from linear("transformer.layers.0.input_layernorm", "decoder.embed_norm")
    for i in range(design.dims.layers):
        theirs, ours = f"transformer.layers.{i}", f"decoder.blocks.{i}"
        for leaf in ("weight", "bias"):
            yield row(
                f"{theirs}.attention.query_key_value.{leaf}",
                *(f"{ours}.attention.{x}.{leaf}" for x in "qkv"),
                op=ByHead(design.dims.heads),
            )
        yield from linear(f"{theirs}.attention.dense", f"{ours}.attention.o")
        yield from linear(f"{theirs}.post_attention_layernorm", f"{ours}.attention_norm")
        yield from linear(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.mlp.up")
        yield from linear(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.mlp.down")
        following = f"transformer.layers.{i + 1}.input_layernorm" if i < last else "transformer.final_layernorm"
        yield from linear(following, f"{ours}.mlp_norm")
    if not tied:
        yield row("lm_head.weight", "lm.weight")


def _blanks(value: Any, config: Mapping[str, Any]) -> tuple[int, int]:
    ids = config.get("mask_token_id", 150_000), config.get("gmask_token_id", 150_001)
    if not all(isinstance(i, int) and not isinstance(i, bool) and abs(i) < 2**63 for i in ids):
        raise CheckpointError(f"mask_token_id={ids[0]!r} and gmask_token_id={ids[1]!r} must be whole numbers")
    return ids


def _first_blank(value: tuple[int, ...], design: Design) -> int:
    if not value:
        raise UsageError("this layout names the tokens of blanks, and this design has none (text.blank_ids)")
    return value[0]


def _last_blank(value: tuple[int, ...], design: Design) -> int:
    return _first_blank(value[::-1], design)


chatglm = Layout(
    model_type="chatglm",
    mark="inner_hidden_size",
    families=("chatglm",),
    classes={"ChatGLMModel": Heads(LMHead()), "ChatGLMForConditionalGeneration": Heads(LMHead())},
    keys=(
        key("vocab_size", "dims.vocab", default=150_528),
        key("hidden_size", "dims.d_model", default=4096),
        key("num_layers", "dims.layers", default=28),
        key("num_attention_heads", "dims.heads", default=32),
        key("inner_hidden_size", "dims.d_ff"),
        key("layernorm_epsilon", "arch.norm.eps", default=1e-5),
        key("max_sequence_length", "dims.context", default=2048),
        key("tie_word_embeddings", "arch.heads.lm.tied", default=True),
        key("bos_token_id", "text.bos_id", default=150_004),
        key("eos_token_id", "text.eos_id", default=150_005, read=several),
        key("pad_token_id", "text.pad_id", default=0),
        key("mask_token_id", "text.blank_ids", default=150_000, read=_blanks, write=_first_blank),
        key("gmask_token_id", "text.blank_ids", default=150_001, read=_blanks, write=_last_blank),
    ),
    rows=_first_rows,
    fixed={**WHOLE, "position_encoding_2d": True},
    unused=UNUSED,
    unused_tensors={r"\.rotary_emb\.inv_freq$": "computed from the config"},
    tied_by_file=True,
)


def _second_rows(design: Design) -> Iterator[Row]:
    theirs, ours = "transformer.encoder.layers.{i}", "decoder.blocks.{i}"
    q, k, v, o = (f"{ours}.attention.{x}" for x in "qkvo")
    tied, bias, inner = design.arch.heads.tied, design.arch.attention, f"{theirs}.self_attention"
    head = "transformer.output_layer.weight"
    yield row("transformer.embedding.word_embeddings.weight", "embed.tokens.weight", aliases=[head] if tied else [])
    yield row(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight")
    yield from linear(f"{inner}.query_key_value", q, k, v, bias=bias.bias)
    yield from linear(f"{inner}.dense", o, bias=bias.out_bias)
    yield row(f"{theirs}.post_attention_layernorm.weight", f"{ours}.mlp_norm.weight")
    biased = getattr(design.arch.mlp, "bias", False)
    yield from linear(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.mlp.gate", f"{ours}.mlp.up", bias=biased)
    yield from linear(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.mlp.down", bias=biased)
    yield row("transformer.encoder.final_layernorm.weight", "decoder.norm.weight")
    if not tied:
        yield row(head, "lm.weight")


def _groups(value: Any, config: Mapping[str, Any]) -> int | None:
    """Key heads: as many as query heads unless `multi_query_attention` is set."""
    few, number = config.get("multi_query_attention", False), config.get("multi_query_group_num", 1)
    if not isinstance(few, bool):
        raise CheckpointError(f"multi_query_attention={few!r} must be true or false")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise CheckpointError(f"multi_query_group_num={number!r} must be a whole number of at least 1")
    return number if few else None


chatglm2 = Layout(
    model_type="chatglm",
    mark="ffn_hidden_size",
    families=("chatglm2", "glm-4"),
    classes={"ChatGLMModel": Heads(LMHead()), "ChatGLMForConditionalGeneration": Heads(LMHead())},
    keys=(
        key("padded_vocab_size", "dims.vocab", default=65_024),
        key("hidden_size", "dims.d_model", default=4096),
        key("ffn_hidden_size", "dims.d_ff"),
        key("kv_channels", "dims.head_dim", default=128),
        key("num_layers", "dims.layers", default=28),
        key("num_attention_heads", "dims.heads", default=32),
        key("multi_query_group_num", "dims.kv_heads", default=1, read=_groups),
        key("multi_query_attention", "dims.kv_heads", default=False, read=_groups, write=lambda v, d: v is not None),
        key("seq_length", "dims.context", default=2048),
        key("layernorm_epsilon", "arch.norm.eps", default=1e-5),
        key("hidden_dropout", "arch.dropout.residual", default=0.0),
        key("attention_dropout", "arch.dropout.attention", default=0.0),
        key("add_qkv_bias", "arch.attention.bias", default=False),
        key("add_bias_linear", "arch.attention.out_bias", "arch.mlp.bias", default=False),
        key("tie_word_embeddings", "arch.heads.lm.tied", default=False),
        key("bos_token_id", "text.bos_id", default=None, read=token),
        key("eos_token_id", "text.eos_id", default=None, read=several),
        key("pad_token_id", "text.pad_id", default=None),
    ),
    rows=_second_rows,
    fixed={
        **WHOLE,
        "rmsnorm": True,
        "post_layer_norm": True,
        "apply_residual_connection_post_layernorm": False,
        "original_rope": True,
        "rope_ratio": 1,
    },
    unused=UNUSED
    | reasons("a copy of padded_vocab_size", "vocab_size")
    | reasons("the arithmetic of training, not a result", "fp32_residual_connection interleaved_qkv"),
    unused_tensors={r"rotary_pos_emb\.inv_freq$": "computed from the config"},
)
