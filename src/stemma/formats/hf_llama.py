"""The layouts of public LLaMA and Mistral checkpoints (Hugging Face), and what their relatives share with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from stemma import spec
from stemma.declare.family import Design
from stemma.errors import CheckpointError
from stemma.families.llama import llama as family
from stemma.formats.keys import ACTS, Key, Layout, key, several, token
from stemma.formats.names import Row, linear, row
from stemma.formats.rope import read_rope, write_rope
from stemma.nn.parts import Answer, Causal, Classify, Experts, Heads, LMHead, Parallel, Sandwich, Sliding, Tag

KEYS = (
    key("vocab_size", "dims.vocab", default=32_000),
    key("hidden_size", "dims.d_model", default=4096),
    key("intermediate_size", "dims.d_ff"),
    key("num_hidden_layers", "dims.layers", default=32),
    key("num_attention_heads", "dims.heads", default=32),
    key("head_dim", "dims.head_dim", default=None),
    key("hidden_act", "arch.mlp.act", default="silu", **ACTS),
    key("initializer_range", "arch.init.std", default=0.02),
    key("rms_norm_eps", "arch.norm.eps", default=1e-6),
    key("tie_word_embeddings", "arch.heads.lm.tied", default=False),
    key("attention_dropout", "arch.dropout.attention", default=0.0),
    key(
        "rope_parameters",
        "arch.position",
        default=None,
        older=("rope_theta", "rope_scaling", "partial_rotary_factor"),
        read=read_rope,
        write=write_rope,
    ),
    key("pad_token_id", "text.pad_id", default=None, read=token),
    key("bos_token_id", "text.bos_id", default=1),
    key("eos_token_id", "text.eos_id", default=2, read=several),
)


def common(**changed: Mapping[str, Any]) -> tuple[Key, ...]:
    """The shared keys, some with other fields: `common(vocab_size={"default": 256_000})`."""
    return tuple(replace(k, **changed.get(k.name, {})) for k in KEYS)


def body(design: Design) -> Iterator[Row]:
    """The rows of a body, without those of experts."""
    arch = design.arch
    tied = arch.heads.tied
    theirs, ours = "model.layers.{i}", "decoder.blocks.{i}"
    yield row("model.embed_tokens.weight", "embed.tokens.weight", aliases=["lm_head.weight"] if tied else [])
    for x in "qkv":
        yield from linear(f"{theirs}.self_attn.{x}_proj", f"{ours}.attention.{x}", bias=arch.attention.bias)
    yield from linear(f"{theirs}.self_attn.o_proj", f"{ours}.attention.o", bias=arch.attention.out_bias)
    if arch.attention.qk_norm is not None:
        for x in "qk":
            yield row(f"{theirs}.self_attn.{x}_norm.weight", f"{ours}.attention.{x}_norm.weight")
    if not isinstance(arch.mlp, Experts):
        for x in ("gate", "up", "down"):
            yield from linear(f"{theirs}.mlp.{x}_proj", f"{ours}.mlp.{x}", bias=spec.get(arch, "mlp.bias"))
    yield row(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight")
    if isinstance(arch.residual, Sandwich):
        yield row(f"{theirs}.post_attention_layernorm.weight", f"{ours}.attention_out_norm.weight")
        yield row(f"{theirs}.pre_feedforward_layernorm.weight", f"{ours}.mlp_norm.weight")
        yield row(f"{theirs}.post_feedforward_layernorm.weight", f"{ours}.mlp_out_norm.weight")
    elif not isinstance(arch.residual, Parallel):
        yield row(f"{theirs}.post_attention_layernorm.weight", f"{ours}.mlp_norm.weight")
    yield row("model.norm.weight", "decoder.norm.weight")
    if not tied:
        yield row("lm_head.weight", "lm.weight")


def experts(design: Design, block: str, names: Mapping[str, str]) -> Iterator[Row]:
    """The rows of a mixture of experts: `block` of the file, with `names` for our three matrices of each expert."""
    theirs, ours = f"model.layers.{{i}}.{block}", "decoder.blocks.{i}.mlp"
    yield row(f"{theirs}.gate.weight", f"{ours}.router.weight")
    for e in range(design.dims.experts or 0):
        for mine, name in names.items():
            yield row(f"{theirs}.experts.{e}.{name}.weight", f"{ours}.{mine}.{e}")


def tasks(design: Design) -> Iterator[Row]:
    """The rows of task heads."""
    match design.arch.heads.task:
        case Classify():
            yield from linear("score", "task.out", bias=False)
        case Tag():
            yield from linear("score", "task.out")
        case Answer():
            yield from linear("qa_outputs", "task.out")


def rows(design: Design) -> Iterator[Row]:
    """The names table of LLaMA, Mistral, Qwen and Gemma."""
    yield from body(design)
    yield from tasks(design)


def classes(prefix: str, *names: str) -> dict[str, Heads]:
    """The model classes: a language model, the body alone, and task heads (all three if none are named)."""
    known = {
        "SequenceClassification": family.tasks["classify"],
        "TokenClassification": family.tasks["tag"],
        "QuestionAnswering": family.tasks["answer"],
    }
    return {
        f"{prefix}ForCausalLM": Heads(LMHead()),
        f"{prefix}Model": Heads(),
        **{f"{prefix}For{name}": known[name] for name in names or known},
    }


ANSWERS = {"transformer.": "model."}  # the prefix of the body in a model for question answering
UNUSED_TENSORS = {r"\.rotary_emb\.inv_freq$": "computed from the config"}

llama = Layout(
    model_type="llama",
    families=(
        "llama",
        "llama2",
        "llama3",
        "llama3.1",
        "llama3.2",
        "codellama",
        "codellama-python",
        "openllama",
        "tinyllama",
        "giraffe",
    ),
    classes={**classes("Llama"), "LLaMAForCausalLM": Heads(LMHead())},
    bodies={"LlamaForQuestionAnswering": "transformer."},
    renames=ANSWERS,
    keys=(
        *KEYS,
        key("num_key_value_heads", "dims.kv_heads", default=None),
        key("max_position_embeddings", "dims.context", default=2048),
        key("attention_bias", "arch.attention.bias", "arch.attention.out_bias", default=False),
        key("mlp_bias", "arch.mlp.bias", default=False),
    ),
    rows=rows,
    prefix="model.",
    unused={
        "pretraining_tp": "how products were cut up in its training, which rounds otherwise",
        "max_sequence_length": "a copy of max_position_embeddings in early files",
        "rope_interleaved": "an unused flag of some files",
        "_rope_scaling_validation": "a note of an old version",
    },
    unused_tensors=UNUSED_TENSORS,
)


def read_window(value: Any, config: Mapping[str, Any]) -> Causal | dict[str, Any]:
    return Causal() if value is None else {"kind": "Sliding", "window": value}


mistral = Layout(
    model_type="mistral",
    families=("mistral",),
    classes=classes("Mistral"),
    keys=(
        *KEYS,
        key("num_key_value_heads", "dims.kv_heads", default=8),
        key("max_position_embeddings", "dims.context", default=131_072),
        key(
            "sliding_window",
            "arch.mask",
            default=4096,
            read=read_window,
            write=lambda v, d: v.window if isinstance(v, Sliding) else None,
        ),
    ),
    rows=rows,
    prefix="model.",
    unused_tensors=UNUSED_TENSORS,
)


def _read_layers(value: Any, config: Mapping[str, Any]) -> Any:
    if value == []:
        raise CheckpointError("mem_layers=[] should list the layers that have a memory")
    return several(value, config)


longllama = Layout(
    model_type="longllama",
    families=("longllama",),
    classes={
        "LongLlamaForCausalLM": Heads(LMHead()),
        "LongLlamaModel": Heads(),
        "LongLlamaForSequenceClassification": family.tasks["classify"],
    },
    keys=(
        *(
            k
            for k in common(intermediate_size={"default": 11_008}, pad_token_id={"default": 0})
            if k.name not in ("head_dim", "attention_dropout", "rope_parameters")
        ),
        key("rope_theta", "arch.position.base", default=10_000.0),
        key("max_position_embeddings", "dims.context", default=2048),
        key("mem_layers", "arch.mask.layers", read=_read_layers, write=lambda v, d: list(v)),
        key("mem_dtype", "arch.mask.dtype", default="bfloat16"),
        key("last_context_length", "arch.mask.last", default=1024),
    ),
    rows=rows,
    prefix="model.",
    fixed={"mem_positionals": True},
    unused={"mem_attention_grouping": "trades speed for memory, and changes no result"},
    unused_tensors=UNUSED_TENSORS,
)
