"""Properties of a design that several keys, or the tensors themselves, give together: rotary positions, windows.

A `Part` reads and writes one such thing; `tables` puts them together to architectures.

What llama.cpp derives from a size, without a key, is a part too (`scale_width`, `HEAD_NORMS`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stemma import spec
from stemma.declare.family import Design
from stemma.errors import CheckpointError
from stemma.formats import windows as windowed
from stemma.formats.gguf.file import Entry
from stemma.formats.names import Ledger
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
    Rotary,
    Sliding,
    YarnScaling,
)

UNTIED, FACTORS, CONTEXT = "output.weight", "rope_freqs.weight", "rope.scaling.original_context_length"


class GGUFContent(Protocol):
    """The metadata and tensors of a file, or of one that will be written."""

    @property
    def metadata(self) -> dict[str, Any]: ...

    @property
    def entries(self) -> dict[str, Entry]: ...

    def __contains__(self, name: object) -> bool: ...

    def get(self, name: str) -> Tensor: ...

    def raw(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]: ...


@dataclass(frozen=True)
class Reading:
    """A file that is being read. `keys`: without the architecture's name before them."""

    arch: str
    keys: Mapping[str, Any]
    file: GGUFContent
    ledger: Ledger

    def key(self, name: str) -> str:
        """The name of a key as it is in the file."""
        return f"{self.arch}.{name}"


@dataclass(frozen=True)
class Part:
    """One property that several keys or tensors give: the keys, how they change the design read so far, and how a
    design makes them, and further tensors."""

    keys: tuple[str, ...]
    read: Callable[[Design, Reading], dict[str, Any]]
    write: Callable[[Design], dict[str, Any]] = lambda design: {}
    tensors: Callable[[Design], dict[str, Tensor]] = lambda design: {}


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
    """Where two values differ by more than float32 rounding."""

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
        window, given = whole(at.keys.get(name, usual), at.key(name)), at.keys.get(pattern, period)
        if isinstance(given, list):
            if len(given) != design.dims.layers:
                raise CheckpointError(f"{at.key(pattern)} should have one value a layer, not {len(given)}")
            return {
                "arch.mask": windowed.repeating([bool(x) and window > 0 for x in given], window),
                "arch.local": None,
            }
        n = 0 if given == 0 else windowed.whole(at.key(pattern), given, windowed.LAYERS)
        slides = [window > 0 and (i + 1) % n != 0 for i in range(n)] if n else [window > 0]
        return {"arch.mask": windowed.cycle_of(slides, window), "arch.local": None}

    def write(design: Design) -> dict[str, Any]:
        mask = design.arch.mask
        masks = mask.masks if isinstance(mask, Cycle) else (mask,)
        slides = [isinstance(m, Sliding) for m in masks]
        if not any(slides):
            return {pattern: 1}
        given: Any = [isinstance(layer_mask(mask, i), Sliding) for i in range(design.dims.layers)]
        if slides == [True] or slides == [True] * (len(slides) - 1) + [False]:
            given = 0 if slides == [True] else len(slides)
        return {name: windowed.window_of(mask)} | ({} if given == period else {pattern: given})

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
    """The scale of Gemma's scores, the inverse root of a width: head width, but d_model / heads in the largest size,
    which llama.cpp recognises by its `deep` layers. No key holds it."""

    def read(design: Design, at: Reading) -> dict[str, Any]:
        dims = design.dims
        return {"arch.attention.scale_width": float(dims.d_model // dims.heads if dims.layers == deep else dims.width)}

    return Part((), read)


QK_EPS = Part((), lambda design, at: {"arch.attention.qk_norm.eps": spec.get(design, "arch.norm.eps")})


def _read_head_norms(design: Design, at: Reading) -> dict[str, Any]:
    """llama.cpp expects them from 64 layers up, and nowhere else."""
    return {"arch.attention.qk_norm": HeadNorm(spec.get(design, "arch.norm.eps")) if design.dims.layers >= 64 else None}


HEAD_NORMS = Part((), _read_head_norms)


def _read_tied(design: Design, at: Reading) -> dict[str, Any]:
    if not design.arch.heads.tied:
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
    lambda design: {"decoder_start_token_id": i} if (i := design.text.start_id) is not None and i >= 0 else {},
)


def _read_t5(design: Design, at: Reading) -> dict[str, Any]:
    """A gate means version 1.1, whose activation is the tanh GELU; without an output matrix the embeddings serve,
    scaled as in version 1.0 (llama.cpp does not scale: the likeliest token is the same, probabilities are not)."""
    gated = "enc.blk.0.ffn_gate.weight" in at.file
    return {
        "arch.mlp": GatedMLP("gelu_tanh", bias=False) if gated else MLP("relu", bias=False),
        "arch.heads.lm.scaled": UNTIED not in at.file,
    }


T5_KIND = Part((), _read_t5)


def _read_segments(design: Design, at: Reading) -> dict[str, Any]:
    table = at.file.entries.get("token_types.weight")
    return {"dims.segments": 0 if table is None else table.shape[0]}


SEGMENTS = Part((), _read_segments)
