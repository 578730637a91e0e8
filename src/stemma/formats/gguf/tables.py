"""What GGUF's names mean, for both directions: one `Architecture` a row of llama.cpp's list.

An architecture has keys for the dims, a key for the norm's eps, tensors, and `parts`: what several keys or the tensors
themselves say together (rotary positions, a window, biases). A new one is a row; a new kind of component is a part.

Names and meanings: ggml's docs/gguf.md, llama.cpp's src/llama-arch.cpp and conversion scripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stemma import families, spec
from stemma.errors import CheckpointError
from stemma.families.declare import Design
from stemma.formats.gguf.file import Entry
from stemma.formats.hf_llama import llama
from stemma.formats.names import Ledger, Row, expand, linear, row
from stemma.formats.windows import cycle_of, repeating, window_of
from stemma.nn import positions
from stemma.nn.masks import layer_mask
from stemma.nn.parts import (
    MLP,
    Cycle,
    Experts,
    GatedMLP,
    HeadNorm,
    LinearScaling,
    Llama3Scaling,
    Norm,
    Parallel,
    RMSNorm,
    Rotary,
    Sandwich,
    Sliding,
    YarnScaling,
)

UNTIED, FACTORS, CONTEXT = "output.weight", "rope_freqs.weight", "rope.scaling.original_context_length"
# small matrices that llama.cpp wants in F32
EXACT = re.compile(r"^(position_embd|token_types)\.|\.(attn_rel_b|ffn_gate_inp)\.")


class Source(Protocol):
    """A file, or what is to become one."""

    @property
    def metadata(self) -> dict[str, Any]: ...

    @property
    def entries(self) -> dict[str, Entry]: ...

    def __contains__(self, name: object) -> bool: ...

    def get(self, name: str) -> Tensor: ...

    def raw(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]: ...


@dataclass(frozen=True)
class Reading:
    """A file while it is read: its keys without the architecture's name before them."""

    arch: Architecture
    keys: Mapping[str, Any]
    file: Source
    ledger: Ledger

    def key(self, name: str) -> str:
        """The name of a key as it is in the file."""
        return f"{self.arch.name}.{name}"


@dataclass(frozen=True)
class Part:
    """One thing that several keys or tensors say: the keys, how they change the design read so far, and how a design
    makes them, and further tensors."""

    keys: tuple[str, ...]
    read: Callable[[Design, Reading], dict[str, Any]]
    write: Callable[[Design], dict[str, Any]] = lambda design: {}
    tensors: Callable[[Design], dict[str, Tensor]] = lambda design: {}


@dataclass(frozen=True)
class Architecture:
    """How one architecture is written: the families that it holds, its size keys with the dims that they set, the key
    of the norm's eps, its tensors, its parts, which tensors have rows in Meta's order, whether there is a
    language-model head, and further keys: allowed only with the values given, or with any (None)."""

    name: str
    families: tuple[str, ...]
    sizes: Mapping[str, str]
    eps: str
    rows: Callable[[Design], Iterator[Row]]
    parts: tuple[Part, ...] = ()
    turned: str = r"$^"
    head: bool = True
    fixed: Mapping[str, tuple[Any, ...] | None] = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)  # of the fixed keys, those that are written

    def base(self) -> Design:
        """The design that a file changes: the first family's first size, counts that follow from others left out."""
        owner = families.family(self.families[0])
        free = dict.fromkeys(("dims.kv_heads", "dims.head_dim", "dims.decoder_layers"))
        return spec.edit(owner[next(iter(owner.sizes))], free)

    def table(self, design: Design) -> list[Row]:
        """The rows of every layer, the output matrix included where it is not the embeddings."""
        rows = expand(self.rows(design), depths(design))
        lm = design.arch.heads.lm
        return [*rows, row(UNTIED, "lm.weight")] if self.head and lm is not None and not lm.tied else rows


def depths(design: Design) -> dict[str, int]:
    """Blocks of each stack."""
    both = design.arch.structure == "encoder-decoder"
    return {"encoder": design.dims.layers, "decoder": design.dims.depth if both else design.dims.layers}


# ---------------------------------------------------------------- values


def whole(value: Any, key: str) -> int:
    """One whole number; a list of them if all are equal (some files have one a layer)."""
    one = value[0] if isinstance(value, list) and value and all(v == value[0] for v in value) else value
    if not isinstance(one, int) or isinstance(one, bool):
        raise CheckpointError(f"{key} should be one whole number for all layers, not {str(value)[:40]!r}")
    return one


def decimal(value: Any, key: str) -> float:
    """The shortest decimal number that a file's float32 can mean: 1e-05, not 9.999999747378752e-06."""
    if not isinstance(value, (int, float)):
        raise CheckpointError(f"{key} should be a number, not {str(value)[:40]!r}")
    return float(str(np.float32(value)))


def differences(a: Any, b: Any) -> list[spec.Change]:
    """Where two values differ by more than a file's float32 can say."""

    def alike(x: Any, y: Any) -> bool:
        return isinstance(x, float) and isinstance(y, float) and np.float32(x) == np.float32(y)

    return [c for c in spec.diff(a, b) if not alike(c.old, c.new)]


# ---------------------------------------------------------------- parts


BIASED = {
    "arch.attention.bias": ("attn_q", "attn_qkv"),
    "arch.attention.out_bias": ("attn_output",),
    "arch.mlp.bias": ("ffn_up",),
}


def biases(*paths: str) -> Part:
    """Biases that a file may hold or not."""

    def read(design: Design, at: Reading) -> dict[str, Any]:
        return {path: any(f"blk.0.{name}.bias" in at.file for name in BIASED[path]) for path in paths}

    return Part((), read)


QKV_BIAS = biases("arch.attention.bias")


def widths(*names: str) -> Part:
    """Keys that repeat the width of a head."""

    def read(design: Design, at: Reading) -> dict[str, Any]:
        width = design.dims.width
        for name in names:
            if at.keys.get(name, width) != width:
                raise CheckpointError(
                    f"{at.key(name)} is {at.keys[name]}, but a head is {width} wide; only equal ones are supported"
                )
        return {}

    return Part(names, read, lambda design: dict.fromkeys(names, design.dims.width))


def _read_window(design: Design, at: Reading) -> dict[str, Any]:
    window = whole(at.keys.get("attention.sliding_window", 0), at.key("attention.sliding_window"))
    return {"arch.mask": Sliding(window)} if window else {}


def _write_window(design: Design) -> dict[str, Any]:
    mask = design.arch.mask
    return {"attention.sliding_window": mask.window} if isinstance(mask, Sliding) else {}


WINDOW = Part(("attention.sliding_window",), _read_window, _write_window)


def windows(period: int, usual: int = 0) -> Part:
    """Layers with a window and without, in turns of `period` of which the last sees all, or as a key says: another
    period (0: all have it), or a list. `usual`: the window where a file names none (0: no layer has one)."""
    name, pattern = "attention.sliding_window", "attention.sliding_window_pattern"

    def read(design: Design, at: Reading) -> dict[str, Any]:
        window, said = whole(at.keys.get(name, usual), at.key(name)), at.keys.get(pattern, period)
        if isinstance(said, list):
            if len(said) != design.dims.layers:
                raise CheckpointError(f"{at.key(pattern)} should have one value a layer, not {len(said)}")
            return {"arch.mask": repeating([bool(x) and window > 0 for x in said], window), "arch.local": None}
        n = min(max(whole(said, at.key(pattern)), 0), design.dims.layers + 1)
        slides = [window > 0 and (i + 1) % n != 0 for i in range(n)] if n else [window > 0]
        return {"arch.mask": cycle_of(slides, window), "arch.local": None}

    def write(design: Design) -> dict[str, Any]:
        mask = design.arch.mask
        masks = mask.masks if isinstance(mask, Cycle) else (mask,)
        slides = [isinstance(m, Sliding) for m in masks]
        if not any(slides):
            return {pattern: 1}
        said: Any = [isinstance(layer_mask(mask, i), Sliding) for i in range(design.dims.layers)]
        if slides == [True] or slides == [True] * (len(slides) - 1) + [False]:
            said = 0 if slides == [True] else len(slides)
        return {name: window_of(mask)} | ({} if said == period else {pattern: said})

    return Part((name, pattern), read, write)


LOCAL_BASE = "rope.freq_base_swa"


def _read_local(design: Design, at: Reading) -> dict[str, Any]:
    """Rotary positions of the layers with a window, which nothing scales."""
    rotary = Rotary(decimal(at.keys.get(LOCAL_BASE, 10_000.0), at.key(LOCAL_BASE)))
    match design.arch.mask:
        case Cycle():
            return {"arch.local": rotary}
        case Sliding():
            return {"arch.position": rotary}
    return {}


def _write_local(design: Design) -> dict[str, Any]:
    rotary = design.arch.local or design.arch.position
    return {LOCAL_BASE: float(rotary.base)} if isinstance(rotary, Rotary) else {}


LOCAL = Part((LOCAL_BASE,), _read_local, _write_local)


def number(key: str, path: str, usual: float) -> Part:
    """One number of the design, `usual` where a file has no key; 0 stands for None."""

    def read(design: Design, at: Reading) -> dict[str, Any]:
        return {path: decimal(at.keys.get(key, usual), at.key(key)) or None}

    def write(design: Design) -> dict[str, Any]:
        value = spec.get(design, path)
        return {} if value is None else {key: float(value)}

    return Part((key,), read, write)


def scale_width(deep: int) -> Part:
    """What Gemma's scores are divided by the root of: the width of a head, but d_model / heads in the largest size,
    which llama.cpp knows by its `deep` layers. No key says it."""

    def read(design: Design, at: Reading) -> dict[str, Any]:
        dims = design.dims
        return {"arch.attention.scale_width": float(dims.d_model // dims.heads if dims.layers == deep else dims.width)}

    return Part((), read)


QK_EPS = Part((), lambda design, at: {"arch.attention.qk_norm.eps": design.arch.norm.eps})


def _read_head_norms(design: Design, at: Reading) -> dict[str, Any]:
    """llama.cpp expects them from 64 layers up, and nowhere else."""
    return {"arch.attention.qk_norm": HeadNorm(design.arch.norm.eps) if design.dims.layers >= 64 else None}


def _read_tied(design: Design, at: Reading) -> dict[str, Any]:
    if design.arch.heads.lm is not None and not design.arch.heads.lm.tied:
        raise CheckpointError("this architecture takes the embeddings for its output matrix, and has no other")
    return {}


TIED = Part((), _read_tied)


def _read_experts(design: Design, at: Reading) -> dict[str, Any]:
    count, used = (whole(at.keys.get(key, 0), at.key(key)) for key in ("expert_count", "expert_used_count"))
    return {"arch.mlp": Experts("silu"), "dims.experts": count, "dims.active": used} if count else {}


def _write_experts(design: Design) -> dict[str, Any]:
    dims = design.dims
    return {"expert_count": dims.experts, "expert_used_count": dims.active} if dims.experts else {}


EXPERTS = Part(("expert_count", "expert_used_count"), _read_experts, _write_experts)


def _read_rotary(design: Design, at: Reading) -> dict[str, Any]:
    base = decimal(at.keys.get("rope.freq_base", 10_000.0), at.key("rope.freq_base"))
    return {"arch.position.base": base, "arch.position.scaling": _scaling(design, at)}


def _scaling(design: Design, at: Reading) -> LinearScaling | YarnScaling | None:
    name = "rope.scaling.factor"
    factor = decimal(at.keys.get(name, at.keys.get("rope.scale_linear", 0.0)), at.key(name))
    kind = at.keys.get("rope.scaling.type", "linear" if factor else "none")
    if kind == "none" or factor in (0.0, 1.0):
        return None
    if kind == "yarn":
        return YarnScaling(factor, whole(at.keys.get(CONTEXT, design.dims.context), at.key(CONTEXT)))
    if kind != "linear":
        raise CheckpointError(
            f"{at.key('rope.scaling.type')}={kind!r} is not supported; known: none, linear, yarn, and Llama 3's"
        )
    return LinearScaling(factor)


def _frequencies(width: int, base: float, scaling: Llama3Scaling | None) -> Tensor:
    return positions.Rotary(width, 0, Rotary(base, scaling)).frequencies(torch.device("cpu"))


def _llama3(factors: Tensor, base: float, width: int, context: int) -> Llama3Scaling | None:
    """The rotary scaling of Llama 3.1 and later, of which a file holds only what each frequency is divided by: the
    published one with the largest of the factors must give all of them."""
    if torch.equal(factors, torch.ones_like(factors)):
        return None
    scaling = Llama3Scaling(factor=decimal(factors.max().item(), FACTORS), context=context)
    free, scaled = (_frequencies(width, base, s) for s in (None, scaling))
    if factors.shape != free.shape or not torch.allclose(free / scaled, factors, rtol=1e-3):
        raise CheckpointError(f"{FACTORS} scales the rotary frequencies in a way that is not known (Llama 3's is)")
    return scaling


def _write_rotary(design: Design) -> dict[str, Any]:
    position = design.arch.position
    if not isinstance(position, Rotary):
        return {}
    out: dict[str, Any] = {"rope.freq_base": float(position.base)}
    match position.scaling:
        case LinearScaling(factor):
            out |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(factor)}
        case YarnScaling(factor=factor, context=context):
            out |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(factor), CONTEXT: context}
    return out


ROTARY = Part(
    ("rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", CONTEXT),
    _read_rotary,
    _write_rotary,
)


def _read_factors(design: Design, at: Reading) -> dict[str, Any]:
    position = design.arch.position
    if FACTORS not in at.file or not isinstance(position, Rotary):
        return {}
    if position.scaling is not None:
        raise CheckpointError(f"the file has both {FACTORS} and a rotary scaling among its keys")
    context = whole(at.keys.get(CONTEXT, 8192), at.key(CONTEXT))
    scaling = _llama3(at.file.get(FACTORS).float(), position.base, design.dims.width, context)
    at.ledger.ignored[FACTORS] = f"computed from the design: rotary scaling {scaling}"
    return {"arch.position.scaling": scaling}


def _write_factors(design: Design) -> dict[str, Any]:
    scaling = getattr(design.arch.position, "scaling", None)
    return {CONTEXT: scaling.context} if isinstance(scaling, Llama3Scaling) and scaling.context != 8192 else {}


def _factors(design: Design) -> dict[str, Tensor]:
    position = design.arch.position
    if not (isinstance(position, Rotary) and isinstance(position.scaling, Llama3Scaling)):
        return {}
    free, scaled = (_frequencies(design.dims.width, position.base, s) for s in (None, position.scaling))
    return {FACTORS: free / scaled}


LLAMA3 = Part((CONTEXT,), _read_factors, _write_factors, _factors)


def _read_share(design: Design, at: Reading) -> dict[str, Any]:
    key, width = "rope.dimension_count", design.dims.width
    return {"arch.position.share": whole(at.keys.get(key, width), at.key(key)) / width}


def _write_share(design: Design) -> dict[str, Any]:
    return {"rope.dimension_count": int(design.dims.width * getattr(design.arch.position, "share", 1.0))}


SHARE = Part(("rope.dimension_count",), _read_share, _write_share)


def _write_buckets(design: Design) -> dict[str, Any]:
    return {"attention.relative_buckets_count": getattr(design.arch.position, "buckets", 0)}


BUCKETS = Part(
    ("attention.relative_buckets_count",),
    lambda design, at: {
        "arch.position.buckets": whole(
            at.keys.get("attention.relative_buckets_count", 32), at.key("attention.relative_buckets_count")
        )
    },
    _write_buckets,
)


def _read_start(design: Design, at: Reading) -> dict[str, Any]:
    return {"text.start_id": whole(at.keys.get("decoder_start_token_id", 0), at.key("decoder_start_token_id"))}


START = Part(
    ("decoder_start_token_id",),
    _read_start,
    lambda design: {} if design.text.start_id is None else {"decoder_start_token_id": design.text.start_id},
)


def _read_t5(design: Design, at: Reading) -> dict[str, Any]:
    """A gate means version 1.1, whose activation is the tanh GELU; without an output matrix the embeddings serve,
    scaled as in version 1.0 (llama.cpp does not scale: the likeliest token is the same, probabilities are not)."""
    gated = "enc.blk.0.ffn_gate.weight" in at.file
    return {
        "arch.mlp": GatedMLP("gelu_tanh", bias=False) if gated else MLP("relu", bias=False),
        "arch.heads.lm.scaled": UNTIED not in at.file,
    }


def _read_segments(design: Design, at: Reading) -> dict[str, Any]:
    table = at.file.entries.get("token_types.weight")
    return {"dims.segments": 0 if table is None else table.shape[0]}


SEGMENTS = Part((), _read_segments)


# ---------------------------------------------------------------- tensors


@dataclass(frozen=True)
class FromOne:
    """A gain that the model has as its difference from 1 and the file in full, in F32. What it comes back as is the same
    gain again: only what the sum loses of a small difference is lost, for llama.cpp too."""

    def shape(self, parts: list[torch.Size]) -> Sequence[int]:
        return parts[0]

    def read(self, tensor: Tensor, parts: list[torch.Size]) -> Sequence[Tensor]:
        return [tensor.float() - 1]

    def write(self, tensors: list[Tensor]) -> Tensor:
        return tensors[0].float() + 1


def _gain(theirs: str, ours: str, norm: Norm | HeadNorm) -> Row:
    op = FromOne() if isinstance(norm, RMSNorm) and norm.offset else None
    return row(f"{theirs}.weight", f"{ours}.weight", op=op)


def _decoder_rows(design: Design, *, packed: tuple[str, ...] = ()) -> Iterator[Row]:
    """Of all that descend from LLaMA or have its names. `packed`: what the file has in one, `qkv` or the `up` and the
    gate before it."""
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
            yield from linear(f"{theirs}.ffn_{group[-1]}", *(f"{ours}.mlp.{x}" for x in group), bias=arch.mlp.bias)
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
    yield row("position_embd.weight", "encoder.position.table.weight")
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
COUNTS = {"kv_heads": "kv", "head_dim": "width", "decoder_layers": "depth"}  # dims that may be left to a rule
EPS = "attention.layer_norm_rms_epsilon"
ANY = {"vocab_size": None}  # the embeddings tell
DECODER: dict[str, tuple[Any, ...] | None] = ANY | {
    "rope.scaling.finetuned": None,
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_beta_fast": (32.0,),
    "rope.scaling.yarn_beta_slow": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "attention.causal": (True,),
}
ROUTER: dict[str, tuple[Any, ...] | None] = {
    "expert_gating_func": (1,),  # softmax
    "expert_weights_norm": (True,),
    "expert_weights_scale": (1.0, 0.0),
}
TURNING = widths("rope.dimension_count", "attention.value_length")
NARROW = widths("rope.dimension_count", "attention.key_length", "attention.value_length")

ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture(
            "llama",
            families=(*llama.families, "mistral", "mixtral"),
            sizes=WIDE,
            eps=EPS,
            rows=_decoder_rows,
            parts=(biases(*BIASED), TURNING, WINDOW, ROTARY, LLAMA3, EXPERTS),
            turned=r"\.attn_[qk]\.(weight|bias)$",
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
        Architecture(
            "qwen2",
            families=("qwen2", "qwen2.5"),
            sizes=GROUPED,
            eps=EPS,
            rows=_decoder_rows,
            parts=(QKV_BIAS, NARROW, ROTARY),
            fixed=DECODER,
        ),
        Architecture(
            "qwen3",
            families=("qwen3",),
            sizes=WIDE,
            eps=EPS,
            rows=_decoder_rows,
            parts=(QKV_BIAS, TURNING, QK_EPS, ROTARY),
            fixed=DECODER,
        ),
        Architecture(
            "qwen3moe",
            families=("qwen3-moe",),
            sizes={k: dim for k, dim in WIDE.items() if dim != "d_ff"}
            | {"expert_feed_forward_length": "d_ff", "expert_count": "experts", "expert_used_count": "active"},
            eps=EPS,
            rows=_decoder_rows,
            parts=(QKV_BIAS, TURNING, QK_EPS, ROTARY),
            fixed=DECODER | ROUTER | {"feed_forward_length": None},  # of dense layers, of which there are none
        ),
        Architecture(
            "gemma",
            families=("gemma",),
            sizes=WIDE,
            eps=EPS,
            rows=_decoder_rows,
            parts=(QKV_BIAS, TURNING, TIED, ROTARY),
            fixed=DECODER,
        ),
        Architecture(
            "gemma2",
            families=("gemma2",),
            sizes=WIDE,
            eps=EPS,
            rows=_decoder_rows,
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
            fixed=DECODER,
        ),
        Architecture(
            "gemma3",
            families=("gemma3",),
            sizes=WIDE,
            eps=EPS,
            rows=_decoder_rows,
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
            fixed=DECODER,
        ),
        Architecture(
            "chatglm",
            families=("chatglm2", "glm-4"),
            sizes=GROUPED,
            eps=EPS,
            rows=partial(_decoder_rows, packed=("qkv", "up")),
            parts=(QKV_BIAS, widths("attention.key_length", "attention.value_length"), ROTARY, SHARE),
            fixed=DECODER,
        ),
        Architecture(
            "glm4",
            families=("glm-4-0414",),
            sizes=WIDE,
            eps=EPS,
            rows=partial(_decoder_rows, packed=("up",)),
            parts=(QKV_BIAS, widths("attention.value_length"), ROTARY, SHARE),
            fixed=DECODER,
        ),
        Architecture(
            "command-r",
            families=("command-r",),
            sizes=GROUPED,
            eps="attention.layer_norm_epsilon",
            rows=_decoder_rows,
            parts=(
                QKV_BIAS,
                NARROW,
                TIED,
                Part((), _read_head_norms),
                number("logit_scale", "arch.heads.lm.factor", 1.0),
                ROTARY,
            ),
            fixed=DECODER,
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
            eps="attention.layer_norm_rms_epsilon",
            rows=_t5_rows,
            parts=(widths("attention.value_length"), BUCKETS, START, Part((), _read_t5)),
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
            said={"attention.causal": False},
        ),
    )
}
