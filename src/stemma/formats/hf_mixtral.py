"""The layout of public Mixtral checkpoints (Hugging Face)."""

from __future__ import annotations

from functools import partial

from stemma.declare.family import Design
from stemma.formats.hf_llama import UNUSED_TENSORS, body, classes, common, experts, read_window, tasks
from stemma.formats.keys import Layout, key, reasons
from stemma.formats.names import Row
from stemma.formats.rope import read_rope
from stemma.formats.windows import window_of

ROPE = dict(read=partial(read_rope, base=1e6))
ROUTER = reasons("of the router's loss in training", "output_router_logits router_aux_loss_coef")


def _rows(design: Design) -> list[Row]:
    names = {"gate": "w1", "up": "w3", "down": "w2"}
    return [*body(design), *experts(design, "block_sparse_moe", names), *tasks(design)]


mixtral = Layout(
    model_type="mixtral",
    families=("mixtral",),
    classes=classes("Mixtral"),
    keys=(
        *common(intermediate_size=dict(default=14_336), rms_norm_eps=dict(default=1e-5), rope_parameters=ROPE),
        key("num_key_value_heads", "dims.kv_heads", default=8),
        key("max_position_embeddings", "dims.context", default=131_072),
        key("num_local_experts", "dims.experts", default=8, older=("num_experts",)),
        key("num_experts_per_tok", "dims.active", default=2),
        key("sliding_window", "arch.mask", default=None, read=read_window, write=lambda v, d: window_of(v)),
    ),
    rows=_rows,
    prefix="model.",
    unused=ROUTER | {"router_jitter_noise": "noise of the router in training, which there is none of here"},
    unused_tensors=UNUSED_TENSORS,
)
