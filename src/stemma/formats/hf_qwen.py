"""The layouts of public Qwen2 (and 2.5), Qwen3 and Qwen3-MoE checkpoints (Hugging Face)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stemma.declare.family import Design
from stemma.errors import CheckpointError
from stemma.formats.hf_llama import ANSWERS, UNUSED_TENSORS, body, classes, common, experts, rows, tasks
from stemma.formats.hf_mixtral import ROUTER
from stemma.formats.keys import Key, Layout, key
from stemma.formats.names import Row
from stemma.formats.windows import LAYERS, NAMES, cycle_of, mask_of, types_of, whole, window_of
from stemma.nn.parts import Mask


def _window(config: Mapping[str, Any]) -> Any:
    return config.get("sliding_window", 4096) if config.get("use_sliding_window", False) else None


def _read_mask(value: Any, config: Mapping[str, Any]) -> Mask:
    """With `use_sliding_window`, layers from `max_window_layers` up have the window; `layer_types` overrides that."""
    window, types = _window(config), config.get("layer_types")
    if types is None:
        layers, first = (
            whole("num_hidden_layers", config.get("num_hidden_layers", 32), LAYERS),
            config.get("max_window_layers", 28),
        )
        if not isinstance(first, int):
            raise CheckpointError(f"max_window_layers={first!r} should be a whole number")
        sliding, full = sorted(NAMES, key=lambda n: not NAMES[n])
        types = [sliding if window is not None and i >= first else full for i in range(layers)]
    return mask_of(types, window)


def _read_one_mask(value: Any, config: Mapping[str, Any]) -> Mask:
    return cycle_of([_window(config) is not None], _window(config))


def _keys(**changed: Mapping[str, Any]) -> tuple[Key, ...]:
    return (
        *common(
            vocab_size=dict(default=151_936),
            intermediate_size=dict(default=22_016),
            bos_token_id=dict(default=None),
            eos_token_id=dict(default=None),
            **changed,
        ),
        key("max_position_embeddings", "dims.context", default=32_768),
    )


def _windows(read: Any, by_layer: bool) -> tuple[Key, ...]:
    def first(mask: Mask, design: Design) -> int:
        types = types_of(mask, design)
        return next((i for i, t in enumerate(types) if NAMES[t]), len(types))

    return (
        key("use_sliding_window", "arch.mask", default=False, read=read, write=lambda v, d: window_of(v) is not None),
        key("sliding_window", "arch.mask", default=4096, read=read, write=lambda v, d: window_of(v)),
        *((key("max_window_layers", "arch.mask", default=28, read=read, write=first),) if by_layer else ()),
        *((key("layer_types", "arch.mask", default=None, read=read, write=types_of),) if by_layer else ()),
    )


WIDE = dict(default=128)
EPS = dict(paths=("arch.norm.eps", "arch.attention.qk_norm.eps"))
BIAS = key("attention_bias", "arch.attention.bias", "arch.attention.out_bias", default=False)

qwen2 = Layout(
    model_type="qwen2",
    families=("qwen2", "qwen2.5"),
    classes=classes("Qwen2"),
    keys=(
        *_keys(),
        key("num_key_value_heads", "dims.kv_heads", default=32),
        *_windows(_read_mask, by_layer=True),
    ),
    rows=rows,
    prefix="model.",
    bodies={"Qwen2ForQuestionAnswering": "transformer."},
    renames=ANSWERS,
    unused_tensors=UNUSED_TENSORS,
)

qwen3 = replace(
    qwen2,
    model_type="qwen3",
    families=("qwen3",),
    classes=classes("Qwen3"),
    keys=(
        *_keys(head_dim=WIDE, rms_norm_eps=EPS),
        key("num_key_value_heads", "dims.kv_heads", default=32),
        BIAS,
        *_windows(_read_mask, by_layer=True),
    ),
    bodies={"Qwen3ForQuestionAnswering": "transformer."},
)


def _moe_rows(design: Design) -> list[Row]:
    names = {x: f"{x}_proj" for x in ("gate", "up", "down")}
    return [*body(design), *experts(design, "mlp", names), *tasks(design)]


qwen3_moe = replace(
    qwen2,
    model_type="qwen3_moe",
    families=("qwen3-moe",),
    classes=classes("Qwen3Moe"),
    keys=(
        *(
            k
            for k in _keys(
                hidden_size=dict(default=2048),
                num_hidden_layers=dict(default=24),
                rms_norm_eps=EPS,
            )
            if k.name != "intermediate_size"
        ),
        key("num_key_value_heads", "dims.kv_heads", default=4),
        BIAS,
        *_windows(_read_one_mask, by_layer=False),
        key("moe_intermediate_size", "dims.d_ff", default=768),
        key("num_experts", "dims.experts", default=128, older=("num_local_experts",)),
        key("num_experts_per_tok", "dims.active", default=8),
        key("norm_topk_prob", "arch.mlp.normalised", default=False),
    ),
    rows=_moe_rows,
    bodies={"Qwen3MoeForQuestionAnswering": "transformer."},
    fixed={"decoder_sparse_step": 1, "mlp_only_layers": []},
    unused=ROUTER
    | {
        "intermediate_size": "of dense layers, of which there are none",
        "max_window_layers": "no code of this type reads it",
    },
)
