"""Models in GGUF files, the format of llama.cpp: architectures `llama` (LLaMA, Mistral, SmolLM, ...) and `gpt2`.

The tables here say which key is which field of the design and which tensor is which parameter; `file` reads the
bytes, `quants` undoes the quantisation, `vocab` makes the tokenizer. A file of architecture `llama` has the rows of q
and k in the order of Meta's own code, where the neighbours (2i, 2i+1) turn together; here, as in Hugging Face files,
(i, i + D/2) do. So these rows change places when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stemma import families, formats, spec
from stemma.errors import CheckpointError, UsageError, did_you_mean
from stemma.families.declare import Design, Family, Text
from stemma.formats.gguf import quants, vocab
from stemma.formats.gguf.file import File
from stemma.formats.names import Ledger, Row, expand, linear, missing, row
from stemma.nn import positions
from stemma.nn.model import Model
from stemma.nn.parts import Heads, LinearScaling, Llama3Scaling, LMHead, Rotary, Sliding
from stemma.text import Tokenizer

UNTIED, FACTORS, CONTEXT = "output.weight", "rope_freqs.weight", "rope.scaling.original_context_length"


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    *,
    tokenizer: bool = True,
) -> Model:
    """The model in a GGUF file, in eval mode, its weights dequantised to `dtype` (`"auto"`: the type of the file's
    embeddings, float32 if they are quantised); `device="meta"` reads shapes and no data. `model.ledger` accounts for
    every tensor; `model.extras["gguf"]` has the metadata, long arrays left out. `tokenizer=False` leaves the tokenizer
    out. Raises CheckpointError naming the key, the tensor or the bytes that are wrong."""
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    kind = None if dtype == "auto" else formats.dtype_of(dtype)
    file = File(path)
    try:
        arch = _architecture(file)
        read = vocab.read(file.metadata) if tokenizer else None
        design, ledger = _design(arch, file)
        if read is not None:
            read.check(design.dims.vocab)
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    owner, name = _nearest(arch, design)
    design = replace(design, name=name, objective=owner.objective, recipe=owner.recipe, text=_text(design, read))
    with torch.device("meta"):
        model = Model(design.arch, design.dims)
    _fill(model, arch, design, file, ledger, formats.device_of(device), kind or _own_dtype(file))
    model.ledger = ledger
    formats.attach(model, design, owner, read)
    model.extras = {"gguf": {k: v for k, v in file.metadata.items() if not isinstance(v, list) or len(v) <= 64}}
    return model.eval()


# ---------------------------------------------------------------- what the metadata says


@dataclass(frozen=True)
class Architecture:
    """How one architecture is written: the families that it holds, its size keys with the dims that they set, the key
    of the norm's eps, its tensors, which of them have rows to put back in order, and further keys: allowed only with
    the values given, or with any (None)."""

    name: str
    families: tuple[str, ...]
    sizes: Mapping[str, str]
    eps: str
    rows: Callable[[Design], Iterator[Row]]
    turned: str = r"$^"
    fixed: Mapping[str, tuple[Any, ...] | None] = field(default_factory=dict)


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


SIZES = {
    "embedding_length": "d_model",
    "block_count": "layers",
    "attention.head_count": "heads",
    "feed_forward_length": "d_ff",
    "context_length": "context",
}
ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture(
            "llama",
            families=("llama", "mistral"),
            sizes=SIZES | {"attention.head_count_kv": "kv_heads", "attention.key_length": "head_dim"},
            eps="attention.layer_norm_rms_epsilon",
            rows=_llama_rows,
            turned=r"\.attn_[qk]\.(weight|bias)$",
            fixed={
                "vocab_size": None,  # the embeddings tell
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
            fixed={"vocab_size": None, "attention.causal": (True,), "attention.head_count_kv": None},
        ),
    )
}
ROPE = (
    "attention.value_length",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    CONTEXT,
)
OPTIONAL = ("attention.head_count_kv", "attention.key_length")


def _architecture(file: File) -> Architecture:
    if (count := file.value("split.count", int, 1)) > 1:
        part = file.value("split.no", int, 0) + 1
        raise CheckpointError(f"this is part {part} of {count}; join the parts first (gguf-split --merge)")
    if (kind := file.value("general.type", str, "model")) != "model":
        raise CheckpointError(f"general.type is {kind!r}, not 'model'")
    name = file.value("general.architecture", str)
    if name is None:
        raise CheckpointError("there is no key 'general.architecture', which every model needs")
    if name not in ARCHITECTURES:
        hint = did_you_mean(name, ARCHITECTURES)
        raise CheckpointError(f"architecture {name!r} is not supported; known: {', '.join(ARCHITECTURES)}{hint}")
    return ARCHITECTURES[name]


def _whole(value: Any, key: str) -> int:
    """One whole number; a list of them if all are equal (some files have one a layer)."""
    one = value[0] if isinstance(value, list) and value and all(v == value[0] for v in value) else value
    if not isinstance(one, int) or isinstance(one, bool):
        raise CheckpointError(f"{key} should be one whole number for all layers, not {str(value)[:40]!r}")
    return one


def _decimal(value: Any, key: str) -> float:
    """The shortest decimal number that a file's float32 can mean: 1e-05, not 9.999999747378752e-06."""
    if not isinstance(value, (int, float)):
        raise CheckpointError(f"{key} should be a number, not {str(value)[:40]!r}")
    return float(str(np.float32(value)))


def _design(arch: Architecture, file: File) -> tuple[Design, Ledger]:
    """The design that the keys and the tensors' names describe, and a ledger with the keys that change nothing."""
    keys = {k.removeprefix(f"{arch.name}."): v for k, v in file.metadata.items() if k.startswith(f"{arch.name}.")}
    ledger = Ledger(config=_unused(arch, keys, file.metadata))
    text = vocab.ids(file.metadata)
    changes = _sizes(arch, keys, file) | {
        "arch.norm.eps": _decimal(_needed(arch, keys, arch.eps), f"{arch.name}.{arch.eps}"),
        "arch.heads": Heads(LMHead(tied=_tied(file, ledger))),
        "text.bos_id": text.bos,
        "text.eos_id": text.eos,
        "text.pad_id": text.pad,
    }
    owner = families.family(arch.families[0])
    base = spec.edit(owner[next(iter(owner.sizes))], {"dims.kv_heads": None, "dims.head_dim": None})
    try:
        design = spec.edit(base, changes)
        return (_llama(design, keys, file, ledger) if arch.name == "llama" else design), ledger
    except UsageError as error:
        raise CheckpointError(f"the metadata do not describe a model: {error}") from None


def _needed(arch: Architecture, keys: Mapping[str, Any], key: str) -> Any:
    if key not in keys:
        raise CheckpointError(f"there is no key '{arch.name}.{key}', which this architecture needs")
    return keys[key]


def _sizes(arch: Architecture, keys: Mapping[str, Any], file: File) -> dict[str, Any]:
    """The dims; the embeddings tell how many tokens there are."""
    wanted = {k: dim for k, dim in arch.sizes.items() if k in keys or k not in OPTIONAL}
    dims = {f"dims.{dim}": _whole(_needed(arch, keys, k), f"{arch.name}.{k}") for k, dim in wanted.items()}
    if "token_embd.weight" not in file:
        raise missing("token_embd.weight", file, str(file.path))
    shape = file.entries["token_embd.weight"].shape
    if len(shape) != 2:
        raise CheckpointError(f"tensor 'token_embd.weight' should have 2 axes, not {len(shape)}")
    last = f"blk.{dims['dims.layers'] - 1}.attn_norm.weight"
    if last not in file:  # before so many layers are made
        raise missing(last, file, str(file.path))
    return dims | {"dims.vocab": shape[0]}


def _text(design: Design, tokenizer: Tokenizer | None) -> Text:
    """How its text is read: the family's words give way to the file's own."""
    if tokenizer is None:
        return design.text
    names = {f"text.{role}": getattr(tokenizer.specials, role) for role in ("bos", "eos", "pad", "unk", "mask")}
    return spec.edit(design, {"text.tokenizer": tokenizer.kind, **names}).text


def _unused(arch: Architecture, keys: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, str]:
    """Keys that change nothing, with reasons. Raises CheckpointError for an unknown key or an unsupported value."""
    read = {*arch.sizes, arch.eps, *(ROPE if arch.name == "llama" else ())}
    out = {k: "about the file" for k in metadata if k.startswith(("general.", "split."))}
    for key, value in keys.items():
        if key in read:
            continue
        if key not in arch.fixed:
            hint = did_you_mean(key, read | set(arch.fixed))
            raise CheckpointError(f"no key {arch.name}.{key} is known for this architecture{hint}")
        allowed = arch.fixed[key]
        if allowed is not None and value not in allowed:
            raise CheckpointError(f"{arch.name}.{key}={value!r} is not supported; only {allowed[0]!r} is")
        out[f"{arch.name}.{key}"] = (
            "says nothing more" if allowed is None else "only one value is supported, and it has it"
        )
    return out


def _tied(file: File, ledger: Ledger) -> bool:
    """Whether the embeddings are the output matrix too: it is absent, or there again byte for byte."""
    if UNTIED not in file:
        return True
    a, b = file.entries["token_embd.weight"], file.entries[UNTIED]
    if (a.shape, a.type) == (b.shape, b.type) and np.array_equal(file.raw(a.name), file.raw(b.name)):
        ledger.tied[UNTIED] = a.name
        return True
    return False


# ---------------------------------------------------------------- what only llama has


def _llama(design: Design, keys: Mapping[str, Any], file: File, ledger: Ledger) -> Design:
    """Biases, window and rotary positions of an architecture `llama`."""
    changes: dict[str, Any] = {
        "arch.attention.bias": "blk.0.attn_q.bias" in file,
        "arch.attention.out_bias": "blk.0.attn_output.bias" in file,
        "arch.mlp.bias": "blk.0.ffn_up.bias" in file,
    }
    width = design.dims.width
    for key in ("rope.dimension_count", "attention.value_length"):
        if keys.get(key, width) != width:
            raise CheckpointError(
                f"llama.{key} is {keys[key]}, but a head is {width} wide; only equal ones are supported"
            )
    if window := _whole(keys.get("attention.sliding_window", 0), "llama.attention.sliding_window"):
        changes["arch.mask"] = Sliding(window)
    base = _decimal(keys.get("rope.freq_base", 10_000.0), "llama.rope.freq_base")
    scaling: LinearScaling | Llama3Scaling | None = _scaling(keys)
    if FACTORS in file:
        if scaling is not None:
            raise CheckpointError(f"the file has both {FACTORS} and a rotary scaling among its keys")
        context = _whole(keys.get(CONTEXT, 8192), f"llama.{CONTEXT}")
        scaling = _llama3(file.get(FACTORS).float(), base, width, context)
        ledger.ignored[FACTORS] = f"computed from the design: rotary scaling {scaling}"
    changes["arch.position"] = Rotary(base, scaling)
    return spec.edit(design, changes)


def _scaling(keys: Mapping[str, Any]) -> LinearScaling | None:
    factor = _decimal(keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 0.0)), "llama.rope.scaling.factor")
    kind = keys.get("rope.scaling.type", "linear" if factor else "none")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind != "linear":
        raise CheckpointError(f"llama.rope.scaling.type={kind!r} is not supported; known: none, linear, and Llama 3's")
    return LinearScaling(factor)


def _llama3(factors: Tensor, base: float, width: int, context: int) -> Llama3Scaling | None:
    """The rotary scaling of Llama 3.1 and later, of which a file holds only what each frequency is divided by: the
    published one with the largest of the factors must give all of them."""
    if torch.equal(factors, torch.ones_like(factors)):
        return None
    scaling = Llama3Scaling(factor=_decimal(factors.max().item(), FACTORS), context=context)
    free, scaled = (
        positions.Rotary(width, context, Rotary(base, s)).frequencies(torch.device("cpu")) for s in (None, scaling)
    )
    if factors.shape != free.shape or not torch.allclose(free / scaled, factors, rtol=1e-3):
        raise CheckpointError(f"{FACTORS} scales the rotary frequencies in a way that is not known (Llama 3's is)")
    return scaling


def _in_halves(tensor: Tensor, width: int) -> Tensor:
    """Rows (or biases) of heads `width` wide, from neighbours (0, 1), (2, 3), ... to halves 0, 2, ..., 1, 3, ..."""
    heads = tensor.reshape(-1, width // 2, 2, *tensor.shape[1:])
    return heads.transpose(1, 2).reshape(tensor.shape)


# ---------------------------------------------------------------- the family and the weights


def _nearest(arch: Architecture, design: Design) -> tuple[Family, str]:
    """The family and, if one equals it, the published size; else the family whose mask it has."""
    owners = [families.family(f) for f in arch.families]
    for owner in owners:
        for size in owner:
            known = owner[size]
            a, b = (spec.edit(x.arch, {"heads": known.arch.heads}) for x in (design, known))
            if known.dims == design.dims and a == b:
                return owner, size
    owner = next((o for o in owners if type(o.arch.mask) is type(design.arch.mask)), owners[0])
    return owner, owner.name


def _own_dtype(file: File) -> torch.dtype:
    kind = quants.PLAIN.get(file.entries["token_embd.weight"].type)
    return kind if kind in (torch.float16, torch.bfloat16) else torch.float32


def _fill(
    model: Model,
    arch: Architecture,
    design: Design,
    file: File,
    ledger: Ledger,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give every parameter its tensor. All names, types and shapes are right before anything is read."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    rows = expand(arch.rows(design), {"decoder": design.dims.layers})
    if "lm.weight" in shapes:
        rows.append(row(UNTIED, "lm.weight"))
    for r in rows:
        if r.theirs not in file:
            raise missing(r.theirs, file, str(file.path))
        r.read(file.blank(r.theirs), shapes)
        ledger.loaded |= dict.fromkeys(r.ours, r.theirs)
    _account(file, ledger)
    for r in rows:
        tensor = file.blank(r.theirs) if device.type == "meta" else file.get(r.theirs)
        if re.search(arch.turned, r.theirs):
            tensor = _in_halves(tensor, design.dims.width)
        for ours, part in r.read(tensor, shapes):
            owner, _, leaf = ours.rpartition(".")
            # a copy of its own: a part must not keep the whole packed tensor alive
            value = torch.empty(part.shape, dtype=dtype, device=device).copy_(part)
            setattr(model.get_submodule(owner), leaf, nn.Parameter(value))


def _account(file: File, ledger: Ledger) -> None:
    """Every tensor that no row reads is tied, ignored by a named rule, or an error."""
    known = {*ledger.loaded.values(), *ledger.tied, *ledger.ignored}
    for name in (n for n in file if n not in known):
        if not re.search(r"\.attn_rot_embd$", name):
            raise CheckpointError(f"{file.path} holds a tensor {name!r} for which this model has no place")
        ledger.ignored[name] = "computed from the design"


__all__ = ["ARCHITECTURES", "File", "load"]
