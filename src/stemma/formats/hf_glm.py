"""The layouts of GLM-4 (`glm`, `glm4` of transformers) and of GLM (2021), which has the model_type `glm` too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.declare.family import Design
from stemma.families.glm import glm4 as glm4_family
from stemma.formats.hf_bert import task_classes
from stemma.formats.hf_gpt import four_times
from stemma.formats.hf_llama import UNUSED_TENSORS
from stemma.formats.keys import ACTS, Layout, ids, key, reasons, several
from stemma.formats.names import Row, linear, row
from stemma.formats.rope import SHARE, read_rope, write_rope
from stemma.nn.parts import Heads, LMHead, Rotary, Sandwich


def read_partial(value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Interleaved pairs; by default half of a head is rotated."""
    return {"share": 0.5} | read_rope(value, config) | {"interleaved": True}


def write_partial(value: Rotary, design: Design) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 writes it."""
    return write_rope(value, design) | {SHARE: value.share}


def _four_rows(design: Design) -> Iterator[Row]:
    tied = design.arch.heads.tied
    theirs, ours = "model.layers.{i}", "decoder.blocks.{i}"
    yield row("model.embed_tokens.weight", "embed.tokens.weight", aliases=["lm_head.weight"] if tied else [])
    for x in "qkv":
        yield from linear(f"{theirs}.self_attn.{x}_proj", f"{ours}.attention.{x}", bias=design.arch.attention.bias)
    yield row(f"{theirs}.self_attn.o_proj.weight", f"{ours}.attention.o.weight")
    yield row(f"{theirs}.mlp.gate_up_proj.weight", f"{ours}.mlp.gate.weight", f"{ours}.mlp.up.weight")
    yield row(f"{theirs}.mlp.down_proj.weight", f"{ours}.mlp.down.weight")
    yield row(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight")
    yield row(f"{theirs}.post_attention_layernorm.weight", f"{ours}.mlp_norm.weight")
    if isinstance(design.arch.residual, Sandwich):
        yield row(f"{theirs}.post_self_attn_layernorm.weight", f"{ours}.attention_out_norm.weight")
        yield row(f"{theirs}.post_mlp_layernorm.weight", f"{ours}.mlp_out_norm.weight")
    yield row("model.norm.weight", "decoder.norm.weight")
    if not tied:
        yield row("lm_head.weight", "lm.weight")
    yield from linear("score", "task.out")


FOUR = (
    key("vocab_size", "dims.vocab", default=151_552),
    key("hidden_size", "dims.d_model", default=4096),
    key("intermediate_size", "dims.d_ff", default=13_696),
    key("num_hidden_layers", "dims.layers", default=40),
    key("num_attention_heads", "dims.heads", default=32),
    key("num_key_value_heads", "dims.kv_heads", default=2),
    key("head_dim", "dims.head_dim", default=128),
    key("hidden_act", "arch.mlp.act", default="silu", **ACTS),
    key("attention_dropout", "arch.dropout.attention", default=0.0),
    key("max_position_embeddings", "dims.context", default=131_072),
    key("initializer_range", "arch.init.std", default=0.02),
    key("rms_norm_eps", "arch.norm.eps", default=1.5625e-7),
    key("tie_word_embeddings", "arch.heads.lm.tied", default=False),
    key(
        "rope_parameters",
        "arch.position",
        default=None,
        older=("rope_theta", "rope_scaling", "partial_rotary_factor"),
        read=read_partial,
        write=write_partial,
    ),
    key("attention_bias", "arch.attention.bias", default=True),
    key("pad_token_id", "text.pad_id", default=151_329),
    key("bos_token_id", "text.bos_id", default=None),
    key(
        "eos_token_id",
        "text.eos_id",
        default=None,
        read=lambda v, c: (151_329, 151_336, 151_338) if v is None else several(v, c),
    ),
)


def _four(name: str, prefix: str, family: str, mark: str) -> Layout:
    return Layout(
        model_type=name,
        mark=mark,
        families=(family,),
        classes={
            f"{prefix}ForCausalLM": Heads(LMHead()),
            f"{prefix}Model": Heads(),
            **task_classes(prefix, glm4_family),
        },
        keys=FOUR,
        rows=_four_rows,
        prefix="model.",
        unused_tensors=UNUSED_TENSORS,
    )


glm4 = _four("glm", "Glm", "glm-4", mark="num_hidden_layers")
glm4_0414 = _four("glm4", "Glm4", "glm-4-0414", mark="")


def _first_rows(design: Design) -> Iterator[Row]:
    theirs, ours = "glm.transformer.layers.{i}", "decoder.blocks.{i}"
    yield row("glm.word_embeddings.weight", "embed.tokens.weight")
    yield row("glm.transformer.position_embeddings.weight", "decoder.position.table.weight")
    yield row("glm.transformer.block_position_embeddings.weight", "decoder.position.blanks.weight")
    yield from linear(f"{theirs}.attention.query_key_value", *(f"{ours}.attention.{x}" for x in "qkv"))
    yield from linear(f"{theirs}.attention.dense", f"{ours}.attention.o")
    yield from linear(f"{theirs}.input_layernorm", f"{ours}.attention_norm")
    yield from linear(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.mlp.up")
    yield from linear(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.mlp.down")
    yield from linear(f"{theirs}.post_attention_layernorm", f"{ours}.mlp_norm")
    yield from linear("glm.transformer.final_layernorm", "decoder.norm")


glm = Layout(
    model_type="glm",
    mark="num_layers",
    families=("glm",),
    classes={"GLMForConditionalGeneration": Heads(LMHead()), "GLMModel": Heads(LMHead())},
    keys=(
        key("vocab_size", "dims.vocab", default=30_592),
        key("hidden_size", "dims.d_model", default=1024),
        key("hidden_size", "dims.d_ff", default=1024, read=four_times, write=lambda v, d: d.dims.d_model),
        key("num_layers", "dims.layers"),
        key("num_attention_heads", "dims.heads", default=16),
        key("max_sequence_length", "dims.context", default=512),
        key("embedding_dropout_prob", "arch.dropout.embed", default=0.1),
        key("attention_dropout_prob", "arch.dropout.attention", default=0.1),
        key("output_dropout_prob", "arch.dropout.residual", default=0.1),
        key("initializer_range", "arch.init.std", default=0.02),
        *ids(pad=None, bos=None, eos=None),
    ),
    rows=_first_rows,
    prefix="glm.",
    fixed={
        "layernorm_epsilon": 1e-5,
        "attention_scale": 1.0,
        "block_position_encoding": True,
        "relative_encoding": False,
        "spell_length": None,
        "tie_word_embeddings": True,
    },
    unused=reasons(
        "how the reference computes, not what",
        "checkpoint_activations checkpoint_num_layers parallel_output max_memory_length output_predict",
    )
    | reasons("of a prompt encoder that the files do not have", "spell_func")
    | reasons("of a task head", "pool_token")
    | reasons("of the initialisation", "use_scaled_init_for_output_weights"),
    renames={"module.": "", "model.word_embeddings": "glm.word_embeddings", "model.transformer.": "glm.transformer."},
    unused_tensors={r"\.bias_mask$": "a causal mask"},
)
