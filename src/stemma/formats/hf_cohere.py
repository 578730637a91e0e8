"""The layout of public Command R and Aya checkpoints (Hugging Face), in which PaLM can be written too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stemma.declare.family import Design
from stemma.errors import CheckpointError
from stemma.formats.hf_llama import UNUSED_TENSORS, body
from stemma.formats.keys import ACTS, Layout, ids, key
from stemma.formats.rope import read_rope, write_rope
from stemma.nn.parts import Heads, LMHead, Normal


def _read_rope(value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """As LLaMA's, but with interleaved pairs and a default base of 500,000."""
    given = [config.get(name) for name in ("rope_parameters", "rope_scaling")]
    based = config.get("rope_theta") is not None or any(isinstance(g, Mapping) and "rope_theta" in g for g in given)
    return read_rope(value, config) | {"interleaved": True} | ({} if based else {"base": 500_000.0})


def _read_norm(value: Any, config: Mapping[str, Any]) -> dict[str, Any] | None:
    if value not in (True, False, None) or isinstance(value, float):
        raise CheckpointError(f"use_qk_norm={value!r} must be true or false")
    return {"kind": "HeadNorm", "eps": config.get("layer_norm_eps", 1e-5)} if value else None


def _is_scaled(value: Any, config: Mapping[str, Any]) -> bool:
    """Whether the factor of the logits is that of a scaled head (PaLM)."""
    width = config.get("hidden_size", 8192)
    return isinstance(width, int) and width > 0 and value == width**-0.5


def _read_factor(value: Any, config: Mapping[str, Any]) -> Any:
    return 1.0 if _is_scaled(value, config) else value


def _factor(value: Any, design: Design) -> float:
    """The factor of the logits: the head's, times that of its scaled input."""
    head = design.arch.heads.lm
    assert isinstance(head, LMHead)
    return head.factor * design.dims.d_model**-0.5 if head.scaled else head.factor


cohere = Layout(
    model_type="cohere",
    families=("command-r", "palm"),
    classes={"CohereForCausalLM": Heads(LMHead()), "CohereModel": Heads()},
    keys=(
        key("vocab_size", "dims.vocab", default=256_000),
        key("hidden_size", "dims.d_model", default=8192),
        key("intermediate_size", "dims.d_ff", default=22_528),
        key("num_hidden_layers", "dims.layers", default=40),
        key("num_attention_heads", "dims.heads", default=64),
        key("num_key_value_heads", "dims.kv_heads", default=None),
        key("head_dim", "dims.head_dim", default=None),
        key("hidden_act", "arch.mlp.act", default="silu", **ACTS),
        key("max_position_embeddings", "dims.context", default=8192),
        key(
            "initializer_range",
            "arch.init",
            default=0.02,
            read=lambda v, c: {"kind": "Normal", "std": v},
            write=lambda v, d: v.std if isinstance(v, Normal) else 0.02,  # that of PaLM has no deviation of its own
        ),
        key("layer_norm_eps", "arch.norm.eps", default=1e-5),
        key("logit_scale", "arch.heads.lm.scaled", default=0.0625, read=_is_scaled, write=_factor),
        key("logit_scale", "arch.heads.lm.factor", default=0.0625, read=_read_factor, write=_factor),
        key("tie_word_embeddings", "arch.heads.lm.tied", default=True),
        key(
            "rope_parameters",
            "arch.position",
            default=None,
            older=("rope_theta", "rope_scaling"),
            read=_read_rope,
            write=write_rope,
        ),
        key("attention_bias", "arch.attention.bias", "arch.attention.out_bias", default=False),
        key("use_qk_norm", "arch.attention.qk_norm", default=False, read=_read_norm, write=lambda v, d: v is not None),
        key("attention_dropout", "arch.dropout.attention", default=0.0),
        *ids(pad=0, bos=5, eos=255_001),
    ),
    rows=body,
    prefix="model.",
    unused={"model_max_length": "a longer context than it was trained on", "pretraining_tp": "of its training"},
    unused_tensors=UNUSED_TENSORS,
)
