"""GGUF files read: the metadata as a design, the tensors as weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemma import families, spec
from stemma.declare.family import Design, Family, Text
from stemma.disk import nearest_path
from stemma.errors import CheckpointError, UsageError, did_you_mean
from stemma.formats.gguf import quants, vocab
from stemma.formats.gguf.file import File
from stemma.formats.gguf.parts import UNTIED, GGUFContent, Reading, decimal, differences, whole
from stemma.formats.gguf.split import open_file
from stemma.formats.gguf.tables import ARCHITECTURES, OPTIONAL, Architecture, apart
from stemma.formats.names import Ledger, missing
from stemma.formats.weights import WeightLoader, attach, device_of, dtype_of, meta_model
from stemma.nn.model import Model
from stemma.nn.parts import Heads, LMHead
from stemma.rewrites.kinds import Rewrite
from stemma.text import Tokenizer

EMBEDDINGS = "token_embd.weight"


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    *,
    tokenizer: bool = True,
    rewrites: Sequence[Rewrite] = (),
    stream: bool = False,
) -> Model:
    """The model in a GGUF file, or in the files of which `path` is one (see `split`), in eval mode, its weights
    dequantised to `dtype` (`"auto"`: a plain tensor's own type; for a quantised one that of the embeddings, float32 if
    these are quantised); `device="meta"` reads shapes only.
    `model.ledger` accounts for every tensor; `model.extras["gguf"]` has the metadata without long arrays.
    `tokenizer=False` reads no tokenizer; with `stream` the weights stay in the file (device meta). Raises
    CheckpointError naming the key, the tensor or the bytes that are wrong."""
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist{nearest_path(path)}")
    kind = None if dtype == "auto" else dtype_of(dtype)
    file = open_file(path)
    try:
        arch = _architecture(file)
        read = vocab.read(file.metadata) if tokenizer else None
        design, ledger = read_design(arch, file)
        if read is not None:
            read.check(design.dims.vocab)
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    owner, name = _nearest(arch, design)
    design = replace(design, name=name, objective=owner.objective, recipe=owner.recipe, text=_text(design, read))
    model = meta_model(design)
    loader = WeightLoader(model, file, str(path), ledger, stream=stream)
    target, other = device_of(device), kind or _own_dtype(file)
    if (target.type != "meta" or stream) and (used := {e.type for e in file.entries.values()} & {*quants.BY_LIBRARY}):
        quants.library(used)
    rows = [one for r in arch.table(design) for one in apart(r, file)]
    for r in rows:
        loader.find(r)
    loader.account({r"\.attn_rot_embd$": "computed from the design"})
    loader.rewrite(rewrites)
    for r in rows:
        interleaved = re.search(arch.interleaved, r.theirs) is not None
        loader.read(r, r.theirs, target, kind or _plain(file, r.theirs) or other, interleaved)
    loader.finish(target, other)
    attach(model, design, owner, read)
    model.extras = {"gguf": {k: v for k, v in file.metadata.items() if not isinstance(v, list) or len(v) <= 64}}
    return model.eval()


# ---------------------------------------------------------------- what the metadata says


def _architecture(file: File) -> Architecture:
    if (kind := file.value("general.type", str, "model")) != "model":
        raise CheckpointError(f"general.type is {kind!r}, not 'model'")
    name = file.value("general.architecture", str)
    if name is None:
        raise CheckpointError("there is no key 'general.architecture', which every model needs")
    if name not in ARCHITECTURES:
        hint = did_you_mean(name, ARCHITECTURES)
        raise CheckpointError(f"architecture {name!r} is not supported; known: {', '.join(ARCHITECTURES)}{hint}")
    return ARCHITECTURES[name]


def read_design(arch: Architecture, file: GGUFContent) -> tuple[Design, Ledger]:
    """The design from keys and tensor names, and a ledger with the unused keys."""
    keys = {k.removeprefix(f"{arch.name}."): v for k, v in file.metadata.items() if k.startswith(f"{arch.name}.")}
    ledger = Ledger(config=_unused(arch, keys, file.metadata))
    text = vocab.ids(file.metadata)
    changes = _sizes(arch, keys, file) | {
        "arch.norm.eps": decimal(_needed(arch, keys, arch.eps), f"{arch.name}.{arch.eps}"),
        "arch.heads": Heads(LMHead(tied=_tied(file, ledger))) if arch.head else Heads(),
        "text.bos_id": text.bos,
        "text.eos_id": text.eos,
        "text.pad_id": text.pad,
    }
    at = Reading(arch.name, keys, file, ledger)
    try:
        design = spec.edit(arch.base(), changes)
        for part in arch.parts:
            design = spec.edit(design, part.read(design, at))
        return design, ledger
    except UsageError as error:
        raise CheckpointError(f"the metadata do not describe a model: {error}") from None


def _needed(arch: Architecture, keys: Mapping[str, Any], key: str) -> Any:
    if key not in keys:
        raise CheckpointError(f"there is no key '{arch.name}.{key}', which this architecture needs")
    return keys[key]


def _sizes(arch: Architecture, keys: Mapping[str, Any], file: GGUFContent) -> dict[str, Any]:
    """The dims. The vocabulary is the number of embeddings."""
    wanted = {k: dim for k, dim in arch.sizes.items() if k in keys or k not in OPTIONAL}
    dims = {f"dims.{dim}": whole(_needed(arch, keys, k), f"{arch.name}.{k}") for k, dim in wanted.items()}
    where = str(getattr(file, "path", "the file"))
    if EMBEDDINGS not in file:
        raise missing(EMBEDDINGS, file.entries, where)
    shape = file.entries[EMBEDDINGS].shape
    if len(shape) != 2:
        raise CheckpointError(f"tensor {EMBEDDINGS!r} should have 2 axes, not {len(shape)}")
    counts = dict.fromkeys(("encoder", "decoder"), dims["dims.layers"])
    counts["decoder"] = dims.get("dims.decoder_layers", counts["decoder"])
    repeated = [r for r in arch.rows(arch.base()) if "{i}" in r.theirs]
    one = {r.ours[0].split(".")[0]: r for r in reversed(repeated)}
    for stack, r in one.items():  # before so many layers are made
        if (last := r.at(counts[stack] - 1).theirs) not in file:
            raise missing(last, file.entries, where)
    return dims | {"dims.vocab": shape[0]}


def _text(design: Design, tokenizer: Tokenizer | None) -> Text:
    """The text settings: the family's, with the file's tokenizer and special tokens."""
    if tokenizer is None:
        return design.text
    names = {f"text.{role}": getattr(tokenizer.specials, role) for role in ("bos", "eos", "pad", "unk", "mask")}
    return spec.edit(design, {"text.tokenizer": tokenizer.kind, **names}).text


def _unused(arch: Architecture, keys: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, str]:
    """Keys that change nothing, with reasons. Raises CheckpointError for an unknown key or an unsupported value."""
    read = {*arch.sizes, arch.eps, *(k for part in arch.parts for k in part.keys)}
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


def _tied(file: GGUFContent, ledger: Ledger) -> bool:
    """Whether the head is tied: its matrix is absent, or equal to the embeddings byte for byte."""
    if UNTIED not in file:
        return True
    a, b = file.entries[EMBEDDINGS], file.entries[UNTIED]
    if (a.shape, a.type) == (b.shape, b.type) and np.array_equal(file.raw(a.name), file.raw(b.name)):
        ledger.tied[UNTIED] = a.name
        return True
    return False


# ---------------------------------------------------------------- the family


def _nearest(arch: Architecture, design: Design) -> tuple[Family, str]:
    """The family and published size that the design equals; else the family with its mask that differs least."""
    owners = [families.family(f) for f in arch.families]
    for owner in owners:
        for size in owner:
            known = owner[size]
            a, b = (spec.edit(x.arch, {"heads": known.arch.heads}) for x in (design, known))
            if known.dims == design.dims and not differences(a, b):
                return owner, size

    def distance(owner: Family) -> tuple[bool, int]:
        known = replace(owner.arch, dropout=design.arch.dropout, init=design.arch.init)
        return type(known.mask) is not type(design.arch.mask), len(spec.diff(known, design.arch))

    owner = min(owners, key=distance)
    return owner, owner.name


def _own_dtype(file: File) -> torch.dtype:
    """What `dtype="auto"` makes of quantised tensors."""
    kind = _plain(file, EMBEDDINGS)
    return torch.float32 if kind is None else kind


def _plain(file: File, name: str) -> torch.dtype | None:
    """The type of a tensor that is not quantised, None for others, and for float64, which no network computes in."""
    kind = quants.PLAIN.get(file.entries[name].type)
    return None if kind == torch.float64 else kind
