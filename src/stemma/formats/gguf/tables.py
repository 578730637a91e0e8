"""What GGUF's names mean, for both directions: one `Architecture` a row of llama.cpp's list.

An architecture has keys for the dims, a key for the norm's eps, tensors, and parts (see `parts`): what several keys or
the tensors themselves give together. A new one is a row; a new kind of component is a part.

Names and meanings: ggml's docs/gguf.md, llama.cpp's src/llama-arch.cpp and conversion scripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stemma import families, spec
from stemma.declare.family import Design
from stemma.formats.gguf.parts import (
    BIASED,
    BUCKETS,
    EXPERTS,
    HEAD_NORMS,
    LLAMA3,
    LOCAL,
    QK_EPS,
    QKV_BIAS,
    ROTARY,
    SEGMENTS,
    SHARE,
    START,
    T5_KIND,
    TIED,
    UNTIED,
    WINDOW,
    GGUFContent,
    Part,
    biases,
    number,
    scale_width,
    widths,
    windows,
)
from stemma.formats.hf_llama import llama
from stemma.formats.names import Row, expand, linear, row
from stemma.nn.parts import Dims, Experts, GatedMLP, HeadNorm, Learned, Norm, Parallel, RMSNorm, Sandwich

# small matrices that llama.cpp wants in F32
EXACT = re.compile(r"^(position_embd|token_types)\.|\.(attn_rel_b|ffn_gate_inp)\.")
Fixed = dict[str, tuple[Any, ...] | None]


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp. `sizes`: key -> dim; `eps`: the key of the norm's eps; `rows`: the names table;
    `interleaved`: tensors with rows in Meta's order (a pattern); `head`: whether it has a language-model head; `fixed`:
    further keys with their allowed values (None: any); `constants`: keys that are always written; `stored`: another
    design that gives the same outputs, if a file has that."""

    name: str
    families: tuple[str, ...]
    sizes: Mapping[str, str]
    eps: str
    rows: Callable[[Design], Iterator[Row]]
    parts: tuple[Part, ...] = ()
    interleaved: str = r"$^"
    head: bool = True
    fixed: Fixed = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)  # of the fixed keys, those that are written
    stored: Callable[[Design], Design] = lambda design: design

    def base(self) -> Design:
        """The design that a file edits: the first size of the first family, without derived counts."""
        free = dict.fromkeys(f"dims.{dim}" for dim in Dims.RULES)
        return spec.edit(families.family(self.families[0]).first, free)

    def table(self, design: Design) -> list[Row]:
        """The rows of every layer, and of the output matrix if it is untied."""
        rows = expand(self.rows(design), design)
        return rows if design.arch.heads.tied or not self.head else [*rows, row(UNTIED, "lm.weight")]


def apart(r: Row, file: GGUFContent) -> list[Row]:
    """The row of packed q, k, v, or a row for each if the file has them apart."""
    if r.theirs in file or ".attn_qkv." not in r.theirs:
        return [r]
    return [row(r.theirs.replace("attn_qkv", f"attn_{x}"), ours) for x, ours in zip("qkv", r.ours, strict=True)]


# ---------------------------------------------------------------- tensors


@dataclass(frozen=True)
class FromOne:
    """A norm's gain g in the file, g - 1 in the model. F32 gives the same gain back: 1 + (g - 1) rounds in the model as
    in the file."""

    def shape(self, parts: list[torch.Size]) -> Sequence[int]:
        return parts[0]

    def read(self, tensor: Tensor, parts: list[torch.Size]) -> Sequence[Tensor]:
        return [tensor.float() - 1]

    def write(self, tensors: list[Tensor]) -> Tensor:
        return tensors[0].float() + 1


@dataclass(frozen=True)
class FromRow:
    """A table without its first rows, which no text reads: those are 0 where they come back."""

    first: int

    def shape(self, parts: list[torch.Size]) -> Sequence[int]:
        return [parts[0][0] - self.first, *parts[0][1:]]

    def read(self, tensor: Tensor, parts: list[torch.Size]) -> Sequence[Tensor]:
        return [torch.cat([tensor.new_zeros(self.first, *parts[0][1:]), tensor])]

    def write(self, tensors: list[Tensor]) -> Tensor:
        return tensors[0][self.first :]


def _from_zero(design: Design) -> Design:
    """The design without a place for padding: text is numbered from row 0 of the table on. RoBERTa's table has rows
    for padding and before it, which llama.cpp leaves out."""
    position = design.arch.position
    numbered = isinstance(position, Learned) and position.padding is not None
    return spec.edit(design, {"arch.position": Learned()}) if numbered else design


def _gain(theirs: str, ours: str, norm: Norm | HeadNorm) -> Row:
    op = FromOne() if isinstance(norm, RMSNorm) and norm.offset else None
    return row(f"{theirs}.weight", f"{ours}.weight", op=op)


def _decoder_rows(design: Design, *, packed: tuple[str, ...] = ()) -> Iterator[Row]:
    """The rows of LLaMA and of architectures with its names. `packed`: `qkv` and `up` (gate, then up) if the file has
    them in one tensor."""
    arch = design.arch
    theirs, ours = "blk.{i}", "decoder.blocks.{i}"
    yield row("token_embd.weight", "embed.tokens.weight")
    yield _gain(f"{theirs}.attn_norm", f"{ours}.attention_norm", arch.norm)
    for names in ("qkv",) if "qkv" in packed else "qkv":
        yield from linear(f"{theirs}.attn_{names}", *(f"{ours}.attention.{x}" for x in names), bias=arch.attention.bias)
    if arch.attention.qk_norm is not None:
        for x in "qk":
            yield _gain(f"{theirs}.attn_{x}_norm", f"{ours}.attention.{x}_norm", arch.attention.qk_norm)
    yield from linear(f"{theirs}.attn_output", f"{ours}.attention.o", bias=arch.attention.out_bias)
    if isinstance(arch.residual, Sandwich):
        yield _gain(f"{theirs}.post_attention_norm", f"{ours}.attention_out_norm", arch.norm)
        yield _gain(f"{theirs}.post_ffw_norm", f"{ours}.mlp_out_norm", arch.norm)
    if not isinstance(arch.residual, Parallel):
        yield _gain(f"{theirs}.ffn_norm", f"{ours}.mlp_norm", arch.norm)
    if isinstance(arch.mlp, Experts):
        yield row(f"{theirs}.ffn_gate_inp.weight", f"{ours}.mlp.router.weight")
        for x in ("gate", "up", "down"):
            yield row(f"{theirs}.ffn_{x}_exps.weight", f"{ours}.mlp.{x}")
    else:
        groups = (("gate", "up"), ("down",)) if "up" in packed else (("gate",), ("up",), ("down",))
        for group in groups:
            yield from linear(
                f"{theirs}.ffn_{group[-1]}", *(f"{ours}.mlp.{x}" for x in group), bias=spec.get(arch, "mlp.bias")
            )
    yield _gain("output_norm", "decoder.norm", arch.norm)


def _gpt2_rows(design: Design) -> Iterator[Row]:
    theirs, ours = "blk.{i}", "decoder.blocks.{i}"
    yield row("token_embd.weight", "embed.tokens.weight")
    yield row("position_embd.weight", "decoder.position.table.weight")
    yield from linear(f"{theirs}.attn_norm", f"{ours}.attention_norm")
    yield from linear(f"{theirs}.attn_qkv", *(f"{ours}.attention.{x}" for x in "qkv"))
    yield from linear(f"{theirs}.attn_output", f"{ours}.attention.o")
    yield from linear(f"{theirs}.ffn_norm", f"{ours}.mlp_norm")
    yield from linear(f"{theirs}.ffn_up", f"{ours}.mlp.up")
    yield from linear(f"{theirs}.ffn_down", f"{ours}.mlp.down")
    yield from linear("output_norm", "decoder.norm")


def _t5_rows(design: Design) -> Iterator[Row]:
    yield row("token_embd.weight", "embed.tokens.weight")
    ffn = ("gate", "up", "down") if isinstance(design.arch.mlp, GatedMLP) else ("up", "down")
    for short, stack in (("enc", "encoder"), ("dec", "decoder")):
        theirs, ours = f"{short}.blk.{{i}}", f"{stack}.blocks.{{i}}"
        yield row(f"{theirs}.attn_norm.weight", f"{ours}.attention_norm.weight")
        for x in "qkvo":
            yield row(f"{theirs}.attn_{x}.weight", f"{ours}.attention.{x}.weight")
        if stack == "decoder":
            yield row(f"{theirs}.cross_attn_norm.weight", f"{ours}.cross_norm.weight")
            for x in "qkvo":
                yield row(f"{theirs}.cross_attn_{x}.weight", f"{ours}.cross.{x}.weight")
        yield row(f"{theirs}.ffn_norm.weight", f"{ours}.mlp_norm.weight")
        for x in ffn:
            yield row(f"{theirs}.ffn_{x}.weight", f"{ours}.mlp.{x}.weight")
        yield row(f"{short}.blk.0.attn_rel_b.weight", f"{stack}.position.table.weight")
        yield row(f"{short}.output_norm.weight", f"{stack}.norm.weight")


def _bert_rows(design: Design) -> Iterator[Row]:
    theirs, ours = "blk.{i}", "encoder.blocks.{i}"
    yield row("token_embd.weight", "embed.tokens.weight")
    padding = design.arch.position.padding if isinstance(design.arch.position, Learned) else None
    yield row(
        "position_embd.weight",
        "encoder.position.table.weight",
        op=None if padding is None else FromRow(padding + 1),
    )
    if design.dims.segments:
        yield row("token_types.weight", "embed.segments.weight")
    yield from linear("token_embd_norm", "encoder.embed_norm")
    for x in "qkv":
        yield from linear(f"{theirs}.attn_{x}", f"{ours}.attention.{x}")
    yield from linear(f"{theirs}.attn_output", f"{ours}.attention.o")
    yield from linear(f"{theirs}.attn_output_norm", f"{ours}.attention_norm")
    yield from linear(f"{theirs}.ffn_up", f"{ours}.mlp.up")
    yield from linear(f"{theirs}.ffn_down", f"{ours}.mlp.down")
    yield from linear(f"{theirs}.layer_output_norm", f"{ours}.mlp_norm")


# ---------------------------------------------------------------- the rows


SIZES = {
    "embedding_length": "d_model",
    "block_count": "layers",
    "attention.head_count": "heads",
    "feed_forward_length": "d_ff",
    "context_length": "context",
}
GROUPED = SIZES | {"attention.head_count_kv": "kv_heads"}
WIDE = GROUPED | {"attention.key_length": "head_dim"}
OPTIONAL = ("attention.head_count_kv", "attention.key_length", "decoder_block_count")
EPS = "attention.layer_norm_rms_epsilon"
ANY: Fixed = {"vocab_size": None}  # the embeddings tell
DECODER: Fixed = ANY | {
    "rope.scaling.finetuned": None,
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_beta_fast": (32.0,),
    "rope.scaling.yarn_beta_slow": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "attention.causal": (True,),
}
ROUTER: Fixed = {
    "expert_gating_func": (1,),  # softmax
    "expert_weights_norm": (True,),
    "expert_weights_scale": (1.0, 0.0),
}
TURNING = widths("rope.dimension_count", "attention.value_length")
NARROW = widths("rope.dimension_count", "attention.key_length", "attention.value_length")


def _decoder(name: str, **own: Any) -> Architecture:
    """An architecture like LLaMA's, by its differences."""
    usual: dict[str, Any] = {"eps": EPS, "rows": _decoder_rows, "fixed": DECODER}
    return Architecture(name, **(usual | own))


ARCHITECTURES = {
    a.name: a
    for a in (
        _decoder(
            "llama",
            families=(*llama.families, "mistral", "mixtral"),
            sizes=WIDE,
            parts=(biases(*BIASED), TURNING, WINDOW, ROTARY, LLAMA3, EXPERTS),
            interleaved=r"\.attn_[qk]\.(weight|bias)$",
            fixed=DECODER
            | ROUTER
            | {
                "tensor_data_layout": None,  # a note on the order of rows, the same in all files
                "attention.clamp_kqv": (0.0,),
                "attention.max_alibi_bias": (0.0,),
                "use_parallel_residual": (False,),
                "logit_scale": (0.0, 1.0),
            },
        ),
        _decoder("qwen2", families=("qwen2", "qwen2.5"), sizes=GROUPED, parts=(QKV_BIAS, NARROW, ROTARY)),
        _decoder("qwen3", families=("qwen3",), sizes=WIDE, parts=(QKV_BIAS, TURNING, QK_EPS, ROTARY)),
        _decoder(
            "qwen3moe",
            families=("qwen3-moe",),
            sizes={k: dim for k, dim in WIDE.items() if dim != "d_ff"}
            | {"expert_feed_forward_length": "d_ff", "expert_count": "experts", "expert_used_count": "active"},
            parts=(QKV_BIAS, TURNING, QK_EPS, ROTARY),
            fixed=DECODER | ROUTER | {"feed_forward_length": None},  # of dense layers, of which there are none
        ),
        _decoder("gemma", families=("gemma",), sizes=WIDE, parts=(QKV_BIAS, TURNING, TIED, ROTARY)),
        _decoder(
            "gemma2",
            families=("gemma2",),
            sizes=WIDE,
            parts=(
                QKV_BIAS,
                TURNING,
                TIED,
                windows(2, usual=4096),
                scale_width(46),
                number("attn_logit_softcapping", "arch.attention.softcap", 50.0),
                number("final_logit_softcapping", "arch.heads.lm.softcap", 30.0),
                ROTARY,
            ),
        ),
        _decoder(
            "gemma3",
            families=("gemma3",),
            sizes=WIDE,
            parts=(
                QKV_BIAS,
                TURNING,
                QK_EPS,
                windows(6),
                scale_width(62),
                number("final_logit_softcapping", "arch.heads.lm.softcap", 0.0),
                ROTARY,
                LOCAL,
            ),
        ),
        _decoder(
            "chatglm",
            families=("chatglm2", "glm-4"),
            sizes=GROUPED,
            rows=partial(_decoder_rows, packed=("qkv", "up")),
            parts=(QKV_BIAS, widths("attention.key_length", "attention.value_length"), ROTARY, SHARE),
        ),
        _decoder(
            "glm4",
            families=("glm-4-0414",),
            sizes=WIDE,
            rows=partial(_decoder_rows, packed=("up",)),
            parts=(QKV_BIAS, widths("attention.value_length"), ROTARY, SHARE),
        ),
        _decoder(
            "command-r",
            families=("command-r",),
            sizes=GROUPED,
            eps="attention.layer_norm_epsilon",
            parts=(
                QKV_BIAS,
                NARROW,
                TIED,
                HEAD_NORMS,
                number("logit_scale", "arch.heads.lm.factor", 1.0),
                ROTARY,
            ),
        ),
        Architecture(
            "gpt2",
            families=("gpt2",),
            sizes=SIZES,
            eps="attention.layer_norm_epsilon",
            rows=_gpt2_rows,
            fixed=ANY | {"attention.causal": (True,), "attention.head_count_kv": None},
        ),
        Architecture(
            "t5",
            families=("t5", "t5-v1.1"),
            sizes=SIZES | {"attention.key_length": "head_dim", "decoder_block_count": "decoder_layers"},
            eps=EPS,
            rows=_t5_rows,
            parts=(widths("attention.value_length"), BUCKETS, START, T5_KIND),
            fixed=ANY | {"attention.layer_norm_epsilon": None, "attention.head_count_kv": None},
        ),
        Architecture(
            "bert",
            families=("bert",),
            sizes=SIZES,
            eps="attention.layer_norm_epsilon",
            rows=_bert_rows,
            parts=(SEGMENTS,),
            head=False,
            fixed=ANY | {"attention.causal": (False,), "pooling_type": None, "attention.head_count_kv": None},
            constants={"attention.causal": False},
            stored=_from_zero,
        ),
    )
}
