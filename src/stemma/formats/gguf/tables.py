"""What GGUF's names mean, for both directions: one `Architecture` a row of llama.cpp's list.

An architecture has keys for the dims, a key for the norm's eps, tensors, and `parts`: what several keys or the tensors
themselves say together (rotary positions, a window, biases). A new one is a row; a new kind of component is a part.

Names and meanings: ggml's docs/gguf.md, llama.cpp's src/llama-arch.cpp and conversion scripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stemma import families, spec
from stemma.errors import CheckpointError
from stemma.families.declare import Design
from stemma.formats.gguf.file import Entry
from stemma.formats.names import Ledger, Row, expand, linear, row
from stemma.nn import positions
from stemma.nn.parts import (
    MLP,
    GatedMLP,
    LinearScaling,
    Llama3Scaling,
    Rotary,
    Sliding,
)

UNTIED, FACTORS, CONTEXT = "output.weight", "rope_freqs.weight", "rope.scaling.original_context_length"
EXACT = re.compile(r"^(position_embd|token_types)\.|\.attn_rel_b\.")  # small tables that llama.cpp wants in F32


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


# ---------------------------------------------------------------- parts


def _read_biases(design: Design, at: Reading) -> dict[str, Any]:
    return {
        "arch.attention.bias": "blk.0.attn_q.bias" in at.file,
        "arch.attention.out_bias": "blk.0.attn_output.bias" in at.file,
        "arch.mlp.bias": "blk.0.ffn_up.bias" in at.file,
    }


BIASES = Part((), _read_biases)


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


def _read_rotary(design: Design, at: Reading) -> dict[str, Any]:
    base = decimal(at.keys.get("rope.freq_base", 10_000.0), at.key("rope.freq_base"))
    scaling: LinearScaling | Llama3Scaling | None = _scaling(at)
    if FACTORS in at.file:
        if scaling is not None:
            raise CheckpointError(f"the file has both {FACTORS} and a rotary scaling among its keys")
        context = whole(at.keys.get(CONTEXT, 8192), at.key(CONTEXT))
        scaling = _llama3(at.file.get(FACTORS).float(), base, design.dims.width, context)
        at.ledger.ignored[FACTORS] = f"computed from the design: rotary scaling {scaling}"
    return {"arch.position": Rotary(base, scaling)}


def _scaling(at: Reading) -> LinearScaling | None:
    name = "rope.scaling.factor"
    factor = decimal(at.keys.get(name, at.keys.get("rope.scale_linear", 0.0)), at.key(name))
    kind = at.keys.get("rope.scaling.type", "linear" if factor else "none")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind != "linear":
        raise CheckpointError(
            f"{at.key('rope.scaling.type')}={kind!r} is not supported; known: none, linear, and Llama 3's"
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
        case Llama3Scaling(context=context) if context != 8192:
            out[CONTEXT] = context
    return out


def _factors(design: Design) -> dict[str, Tensor]:
    position = design.arch.position
    if not (isinstance(position, Rotary) and isinstance(position.scaling, Llama3Scaling)):
        return {}
    free, scaled = (_frequencies(design.dims.width, position.base, s) for s in (None, position.scaling))
    return {FACTORS: free / scaled}


ROTARY = Part(
    ("rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", CONTEXT),
    _read_rotary,
    _write_rotary,
    _factors,
)


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


def _llama_rows(design: Design) -> Iterator[Row]:
    arch = design.arch
    theirs, ours = "blk.{i}", "decoder.blocks.{i}"
    yield row("token_embd.weight", "embed.tokens.weight")
    yield row(f"{theirs}.attn_norm.weight", f"{ours}.attention_norm.weight")
    for x in "qkv":
        yield from linear(f"{theirs}.attn_{x}", f"{ours}.attention.{x}", bias=arch.attention.bias)
    yield from linear(f"{theirs}.attn_output", f"{ours}.attention.o", bias=arch.attention.out_bias)
    yield row(f"{theirs}.ffn_norm.weight", f"{ours}.mlp_norm.weight")
    for x in ("gate", "up", "down"):
        yield from linear(f"{theirs}.ffn_{x}", f"{ours}.mlp.{x}", bias=getattr(arch.mlp, "bias", False))
    yield row("output_norm.weight", "decoder.norm.weight")


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
OPTIONAL = ("attention.head_count_kv", "attention.key_length", "decoder_block_count")
COUNTS = {"kv_heads": "kv", "head_dim": "width", "decoder_layers": "depth"}  # dims that may be left to a rule
ANY = {"vocab_size": None}  # the embeddings tell

ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture(
            "llama",
            families=("llama", "mistral"),
            sizes=SIZES | {"attention.head_count_kv": "kv_heads", "attention.key_length": "head_dim"},
            eps="attention.layer_norm_rms_epsilon",
            rows=_llama_rows,
            parts=(BIASES, widths("rope.dimension_count", "attention.value_length"), WINDOW, ROTARY),
            turned=r"\.attn_[qk]\.(weight|bias)$",
            fixed=ANY
            | {
                "tensor_data_layout": None,  # a note on the order of rows, the same in all files
                "rope.scaling.finetuned": None,
                "expert_count": (0,),
                "expert_used_count": (0,),
                "attention.causal": (True,),
                "attention.clamp_kqv": (0.0,),
                "attention.max_alibi_bias": (0.0,),
                "use_parallel_residual": (False,),
                "logit_scale": (0.0, 1.0),
            },
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
