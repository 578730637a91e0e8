"""The layouts of public LLaMA and Mistral checkpoints (Hugging Face)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.errors import CheckpointError
from stemma.families.declare import Design
from stemma.formats.config import Layout, key, meant, several, token, words
from stemma.formats.names import Row, linear, row
from stemma.nn.parts import Causal, Heads, LinearScaling, Llama3Scaling, LMHead, Rotary, Sliding

SCALING = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low",
        "high_freq_factor": "high",
        "original_max_position_embeddings": "context",
    },
}

KINDS = {"linear": LinearScaling, "llama3": Llama3Scaling}
ACTS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def read_rope(value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` as it is written now, or `rope_theta` and `rope_scaling` as before."""
    given = [config[name] for name in ("rope_parameters", "rope_scaling") if config.get(name) is not None]
    if len(given) == 2 and given[0] != given[1]:
        raise CheckpointError("rope_parameters and rope_scaling differ; keep the one that is right")
    if given and not isinstance(given[0], Mapping):
        raise CheckpointError(f"{given[0]!r} should be an object with a rope_type")
    data = dict(given[0]) if given else {}
    known = ["rope_type", "type", "rope_theta", *dict.fromkeys(n for names in SCALING.values() for n in names)]
    if unknown := [name for name in data if name not in known]:
        raise CheckpointError(f"no rotary parameter {unknown[0]!r} is known{meant(unknown[0], known)}")
    kinds = {str(k) for name in ("rope_type", "type") if (k := data.pop(name, None)) is not None}
    bases = [b for b in (data.pop("rope_theta", None), config.get("rope_theta")) if b is not None]
    if len(kinds) > 1 or (len(bases) == 2 and bases[0] != bases[1]):
        raise CheckpointError("rope_theta or the rope_type is given twice, with different values; keep the right one")
    kind = kinds.pop() if kinds else "default"
    if kind not in SCALING:
        hint = meant(kind, SCALING)
        raise CheckpointError(f"rotary scaling {kind!r} is not supported; known: {', '.join(SCALING)}{hint}")
    names = SCALING[kind]
    if surplus := [name for name in data if name not in names]:
        raise CheckpointError(f"a rotary scaling of type {kind!r} has no {surplus[0]!r}")
    if absent := [n for n in names if n not in data]:
        raise CheckpointError(f"rotary scaling {kind!r} needs {', '.join(absent)}")
    scaling = {"kind": KINDS[kind].__name__} | {names[n]: v for n, v in data.items()} if kind in KINDS else None
    return {"kind": "Rotary", "base": bases[0] if bases else 10_000.0, "scaling": scaling}


def write_rope(value: Rotary, design: Design) -> dict[str, Any]:
    """As transformers 5 writes it."""
    out: dict[str, Any] = {"rope_theta": value.base, "rope_type": "default"}
    match value.scaling:
        case LinearScaling(factor):
            out |= {"rope_type": "linear", "factor": factor}
        case Llama3Scaling() as s:
            out |= {"rope_type": "llama3"} | {theirs: getattr(s, ours) for theirs, ours in SCALING["llama3"].items()}
    return out


KEYS = (
    key("vocab_size", "dims.vocab", default=32_000),
    key("hidden_size", "dims.d_model", default=4096),
    key("intermediate_size", "dims.d_ff"),
    key("num_hidden_layers", "dims.layers", default=32),
    key("num_attention_heads", "dims.heads", default=32),
    key("head_dim", "dims.head_dim", default=None, write=lambda v, d: d.dims.width),
    key("hidden_act", "arch.mlp.act", default="silu", **words(ACTS)),
    key("initializer_range", "arch.init.std", default=0.02),
    key("rms_norm_eps", "arch.norm.eps", default=1e-6),
    key("tie_word_embeddings", "arch.heads.lm.tied", default=False),
    key("attention_dropout", "arch.dropout.attention", default=0.0),
    key(
        "rope_parameters",
        "arch.position",
        default=None,
        older=("rope_theta", "rope_scaling"),
        read=read_rope,
        write=write_rope,
    ),
    key("pad_token_id", "text.pad_id", default=None, read=token),
    key("bos_token_id", "text.bos_id", default=1),
    key("eos_token_id", "text.eos_id", default=2, read=several),
)


def _rows(design: Design) -> Iterator[Row]:
    arch = design.arch
    tied = arch.heads.lm is None or arch.heads.lm.tied
    theirs, ours = "model.layers.{i}", "decoder.blocks.{i}"
    yield row("model.embed_tokens.weight", "embed.tokens.weight", aliases=["lm_head.weight"] if tied else [])
    for x in "qkv":
        yield from linear(f"{theirs}.self_attn.{x}_proj", f"{ours}.attention.{x}", bias=arch.attention.bias)
    yield from linear(f"{theirs}.self_attn.o_proj", f"{ours}.attention.o", bias=arch.attention.out_bias)
    for x in ("gate", "up", "down"):
        yield from linear(f"{theirs}.mlp.{x}_proj", f"{ours}.mlp.{x}", bias=arch.mlp.bias)
    yield row(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight")
    yield row(f"{theirs}.post_attention_layernorm.weight", f"{ours}.mlp_norm.weight")
    yield row("model.norm.weight", "decoder.norm.weight")
    if not tied:
        yield row("lm_head.weight", "lm.weight")


def rows(design: Design) -> list[Row]:
    """The names table of both."""
    return list(_rows(design))


STRAY = {r"\.rotary_emb\.inv_freq$": "computed from the config"}

llama = Layout(
    model_type="llama",
    families=("llama",),
    classes={"LlamaForCausalLM": Heads(LMHead()), "LlamaModel": Heads(), "LLaMAForCausalLM": Heads(LMHead())},
    keys=(
        *KEYS,
        key(
            "num_key_value_heads",
            "dims.kv_heads",
            default=None,
            write=lambda v, d: d.dims.kv,
        ),
        key("max_position_embeddings", "dims.context", default=2048),
        key("attention_bias", "arch.attention.bias", "arch.attention.out_bias", default=False),
        key("mlp_bias", "arch.mlp.bias", default=False),
    ),
    rows=rows,
    prefix="model.",
    fixed={"pretraining_tp": 1},
    unused={
        "max_sequence_length": "a copy of max_position_embeddings in early files",
        "rope_interleaved": "an unused flag of some files",
        "_rope_scaling_validation": "a note of an old version",
    },
    stray=STRAY,
)


def _read_window(value: Any, config: Mapping[str, Any]) -> Causal | dict[str, Any]:
    return Causal() if value is None else {"kind": "Sliding", "window": value}


mistral = Layout(
    model_type="mistral",
    families=("mistral",),
    classes={"MistralForCausalLM": Heads(LMHead()), "MistralModel": Heads()},
    keys=(
        *KEYS,
        key("num_key_value_heads", "dims.kv_heads", default=8, write=lambda v, d: d.dims.kv),
        key("max_position_embeddings", "dims.context", default=131_072),
        key(
            "sliding_window",
            "arch.mask",
            default=4096,
            read=_read_window,
            write=lambda v, d: v.window if isinstance(v, Sliding) else None,
        ),
    ),
    rows=rows,
    prefix="model.",
    stray=STRAY,
)
