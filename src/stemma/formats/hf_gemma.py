"""The layouts of public Gemma 1, 2 and 3 (text) checkpoints (Hugging Face)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stemma.declare.family import Design
from stemma.errors import CheckpointError, UsageError
from stemma.formats.hf_llama import UNUSED_TENSORS, classes, common, rows
from stemma.formats.keys import ACTIVATIONS, Key, Layout, key, words
from stemma.formats.rope import parameters, read_rope, write_rope
from stemma.formats.windows import LAYERS, NAMES, cycle_of, mask_of, types_of, whole, window_of
from stemma.nn.parts import Cycle, Heads, Mask, Rotary, Sliding

ACTS = words(ACTIVATIONS | {"gelu_pytorch_tanh": "gelu_tanh_fused"})
OPEN = {"use_bidirectional_attention": (False, None)}


def _first_act(value: Any, config: Mapping[str, Any]) -> Any:
    """`hidden_activation`, in files of the first Gemma, overrides `hidden_act`; the first files call the tanh form
    "gelu"."""
    word = config.get("hidden_activation") or config.get("hidden_act", "gelu_pytorch_tanh")
    return "gelu_tanh_fused" if word == "gelu" else ACTS["read"](word, config)


def _write_first_act(value: Any, design: Design) -> Any:
    return "gelu_python" if value == "gelu" else ACTS["write"](value, design)


BASE: dict[str, dict[str, Any]] = dict(
    vocab_size=dict(default=256_000),
    hidden_act=dict(name="hidden_activation", **ACTS, default="gelu_pytorch_tanh"),
    pad_token_id=dict(default=0),
    bos_token_id=dict(default=2),
    eos_token_id=dict(default=1),
    tie_word_embeddings=dict(default=True),
)


def _keys(changed: Mapping[str, Mapping[str, Any]]) -> tuple[Key, ...]:
    fields = {name: {**BASE.get(name, {}), **changed.get(name, {})} for name in {**BASE, **changed}}
    return (
        *common(**fields),
        key("attention_bias", "arch.attention.bias", "arch.attention.out_bias", default=False),
    )


gemma = Layout(
    model_type="gemma",
    families=("gemma",),
    classes=classes("Gemma", "SequenceClassification", "TokenClassification"),
    keys=(
        *_keys(
            dict(
                hidden_act=dict(
                    name="hidden_act", older=("hidden_activation",), read=_first_act, write=_write_first_act
                ),
                hidden_size=dict(default=3072),
                intermediate_size=dict(default=24_576),
                num_hidden_layers=dict(default=28),
                num_attention_heads=dict(default=16),
                head_dim=dict(default=256),
            )
        ),
        key("num_key_value_heads", "dims.kv_heads", default=16),
        key("max_position_embeddings", "dims.context", default=8192),
    ),
    rows=rows,
    prefix="model.",
    fixed=OPEN,
    unused_tensors=UNUSED_TENSORS,
)

SECOND: dict[str, dict[str, Any]] = dict(
    hidden_size=dict(default=2304),
    intermediate_size=dict(default=9216),
    num_hidden_layers=dict(default=26),
    num_attention_heads=dict(default=8),
    head_dim=dict(default=256),
)
SCORES = (
    key("num_key_value_heads", "dims.kv_heads", default=4),
    key(
        "query_pre_attn_scalar",
        "arch.attention.scale_width",
        default=256,
        write=lambda v, d: int(v) if v is not None and v == int(v) else v,  # the reference takes whole numbers only
    ),
)


def _read_second(value: Any, config: Mapping[str, Any]) -> Mask:
    window, types = config.get("sliding_window", 4096), config.get("layer_types")
    if types is not None:
        return mask_of(types, window)
    return cycle_of([True, False], window)


def _write_window(mask: Mask, design: Design) -> int:
    return window_of(mask) or 4096  # the reference wants one even where no layer has it


gemma2 = replace(
    gemma,
    model_type="gemma2",
    families=("gemma2",),
    classes=classes("Gemma2", "SequenceClassification", "TokenClassification"),
    keys=(
        *_keys(SECOND),
        *SCORES,
        key("max_position_embeddings", "dims.context", default=8192),
        key("attn_logit_softcapping", "arch.attention.softcap", default=50.0),
        key("final_logit_softcapping", "arch.heads.lm.softcap", default=30.0),
        key("sliding_window", "arch.mask", default=4096, read=_read_second, write=_write_window),
        key("layer_types", "arch.mask", default=None, read=_read_second, write=types_of),
    ),
    unused={"cache_implementation": "the cache follows from the windows here"},
)

PATTERN = ("sliding_window_pattern", "_sliding_window_pattern")


def _read_third(value: Any, config: Mapping[str, Any]) -> Mask:
    """Every `sliding_window_pattern`-th layer has full attention; `layer_types` overrides that."""
    window, types = config.get("sliding_window", 4096), config.get("layer_types")
    given = [name for name in PATTERN if name in config]
    by_layer = mask_of(types, window) if types is not None else None
    if by_layer is not None and given and all(config[name] is None for name in given):
        return by_layer
    named = next((name for name in given if config[name] is not None), None)
    pattern = 6 if named is None else whole(named, config[named], LAYERS)
    cycle = [bool((i + 1) % pattern) for i in range(pattern)]
    if (
        types is not None
        and by_layer is not None
        and [NAMES[t] for t in types] != [cycle[i % pattern] for i in range(len(types))]
    ):
        return by_layer
    return cycle_of(cycle, window)


def _write_pattern(mask: Mask, design: Design) -> int | None:
    return len(mask.masks) if isinstance(mask, Cycle) else None  # `layer_types` is enough then


def _ropes(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The positions of layers with full attention, and of those with a window."""
    given = config.get("rope_parameters")
    if isinstance(given, Mapping) and set(given) <= set(NAMES):
        data = {name: given.get(name) or {} for name in NAMES}
        if wrong := [name for name in data if not isinstance(data[name], Mapping)]:
            raise CheckpointError(f"{data[wrong[0]]!r} should be an object with a rope_type")
        bases = [config["rope_theta"]] if config.get("rope_theta") is not None else []
        full = parameters(data["full_attention"], bases, [], 1e6)
    else:
        data, full = {"sliding_attention": {}}, read_rope(given, config, 1e6)
    local = [config["rope_local_base_freq"]] if config.get("rope_local_base_freq") is not None else []
    return full, parameters(data["sliding_attention"], local, [], 10_000.0)


def _read_position(value: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    full, local = _ropes(config)
    return local if isinstance(_read_third(None, config), Sliding) else full


def _read_local(value: Any, config: Mapping[str, Any]) -> dict[str, Any] | None:
    return _ropes(config)[1] if isinstance(_read_third(None, config), Cycle) else None


def _write_ropes(position: Rotary, design: Design) -> dict[str, Any]:
    if not isinstance(position, Rotary):
        raise UsageError(f"this layout has rotary positions, not {position}")
    local = design.arch.local or position
    return {"sliding_attention": write_rope(local, design), "full_attention": write_rope(position, design)}


OLD = ("rope_theta", "rope_scaling")

gemma3 = replace(
    gemma2,
    model_type="gemma3_text",
    families=("gemma3",),
    classes={
        "Gemma3ForCausalLM": Heads(classes("")["ForCausalLM"].lm),
        "Gemma3TextModel": Heads(),
        "Gemma3TextForSequenceClassification": classes("")["ForSequenceClassification"],
    },
    keys=(
        *_keys(
            SECOND
            | dict(
                vocab_size=dict(default=262_208),
                rms_norm_eps=dict(paths=("arch.norm.eps", "arch.attention.qk_norm.eps")),
                rope_parameters=dict(older=OLD, read=_read_position, write=_write_ropes),
            )
        ),
        key(
            "rope_local_base_freq",
            "arch.local",
            default=None,
            read=_read_local,
            write=lambda v, d: (v or d.arch.position).base,
        ),
        *SCORES,
        key("max_position_embeddings", "dims.context", default=131_072),
        # no code of this type reads it, so that a cap of ours cannot be said
        key("attn_logit_softcapping", "arch.attention.softcap", default=None, read=lambda v, c: None),
        key("final_logit_softcapping", "arch.heads.lm.softcap", default=None),
        key("sliding_window", "arch.mask", default=4096, read=_read_third, write=_write_window),
        key("layer_types", "arch.mask", default=None, read=_read_third, write=types_of),
        key(
            "_sliding_window_pattern",
            "arch.mask",
            default=None,
            older=PATTERN[:1],
            read=_read_third,
            write=_write_pattern,
        ),
    ),
)
