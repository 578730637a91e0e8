"""Writing GGUF files with the `gguf` package: a design by the rows of `tables`, in one of the types of `types`.

Before any weight is written, the keys and shapes are read as a file's would be: what does not come back as the same
network is refused.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma import disk, spec
from stemma.declare.family import Design, Family
from stemma.errors import CheckpointError, StemmaError, UsageError, brief, require
from stemma.formats import tensors
from stemma.formats.config import lost, refuse_loss
from stemma.formats.gguf import quants, vocab_write
from stemma.formats.gguf.file import Entry
from stemma.formats.gguf.parts import UNTIED, WINDOW, differences
from stemma.formats.gguf.quantise import quantise
from stemma.formats.gguf.read import EMBEDDINGS, read_design
from stemma.formats.gguf.split import parts_of
from stemma.formats.gguf.tables import ARCHITECTURES, EXACT, Architecture
from stemma.formats.gguf.types import NUMBERS, TYPES, Choice, named, tell_wider
from stemma.formats.gguf.vocab import PREFIX
from stemma.formats.heads import with_heads
from stemma.formats.names import Row
from stemma.formats.rotary import to_pairs
from stemma.formats.weights import check_weights, design_of, meta_model
from stemma.nn.model import Model
from stemma.nn.parts import Dims, Heads, Sliding
from stemma.rewrites.modules import Blocks
from stemma.rewrites.paths import PlainTensors


@dataclass(frozen=True)
class WritePlan:
    """A file without its data: every key, and every tensor with the row or the values that it comes from."""

    arch: Architecture
    design: Design
    metadata: dict[str, Any]
    entries: dict[str, Entry]
    rows: dict[str, Row]
    made: dict[str, Tensor]
    choice: Choice

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def get(self, name: str) -> Tensor:
        return self.made[name]

    def raw(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Bytes that differ from those of any other tensor, so that no two count as equal."""
        return np.frombuffer(name.encode(), np.uint8)


def save(model: Model, path: str | Path, *, dtype: str | None = None, split_bytes: int | None = None) -> Path:
    """Write a model and its tokenizer as one GGUF file, or with `split_bytes` as parts of at most so many bytes of
    tensors, all or nothing. Gives the path of the file, or of the first part (`x-00001-of-00003.gguf`).

    `dtype` is one of `types.TYPES`, by default the model's own; matrices that the model keeps in the blocks of a GGUF
    file are then written as they are. A BERT is written without its heads,
    which the format has no names for; a warning says so. Raises UsageError for a family or a value that the format has
    no name for, ResourceError without the `gguf` package or room on the disk.
    """
    path, library = Path(path), _library()
    if path.is_dir():
        raise UsageError(f"{path} is a folder; a GGUF checkpoint is one file, such as model.gguf")
    check_weights(model)
    word = str(model.dtype).removeprefix("torch.") if dtype is None else named(dtype)
    design = design_of(model)
    plan = plan_file(design, model.family, word)
    keys = {**plan.metadata, **_words(model, plan)}
    state = PlainTensors(model)
    if dtype is None:
        plan = replace(
            plan, entries={name: _as_it_is(plan, entry, state, word) for name, entry in plan.entries.items()}
        )
        keys |= _of_blocks(model, plan)
    else:
        tell_wider(path, plan.choice, plan.entries)
    mask, context = design.arch.mask, design.dims.context
    if isinstance(mask, Sliding) and mask.window < context and WINDOW in plan.arch.parts:
        warnings.warn(
            f"{path} says that a token sees {mask.window} tokens, which llama.cpp does not heed for its "
            f"{plan.arch.name!r}: longer texts, up to {context} tokens, will give other outputs there",
            stacklevel=2,
        )
    if left := sorted({name.split(".")[0] for name in _unnamed(plan, state)}):
        heads = " and ".join(left)
        warnings.warn(f"{path} is written without {heads}: GGUF has no names for these parts", stacklevel=2)
    if split_bytes is None:
        with disk.replacing(path, note=tensors.UNCHANGED) as scratch:
            _write(library, scratch, plan, keys, state)
        return path
    with tensors.whole(path.parent, lambda name: name == path.name or parts_of(name) == path.stem) as folder:
        _write(library, folder / path.name, plan, keys, state, split_bytes)
        first = min(file.name for file in folder.iterdir())
    return path.parent / first


def _write(
    library: ModuleType,
    path: Path,
    plan: WritePlan,
    keys: Mapping[str, Any],
    state: PlainTensors,
    split_bytes: int = 0,
) -> None:
    """The file, or its parts where there are more than `split_bytes` of tensors: the first has the keys."""
    out = library.GGUFWriter(path, plan.arch.name, split_max_size=split_bytes)
    for key, value in keys.items():
        _put(library, out, key, value)
    for entry in plan.entries.values():
        out.add_tensor_info(
            entry.name, entry.shape, np.dtype(np.float32), _size(entry), library.GGMLQuantizationType(entry.type)
        )
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    try:
        for entry in plan.entries.values():
            out.write_tensor_data(_data(library, plan, entry, state))
    finally:
        out.close()


def _library() -> ModuleType:
    require("gguf", "writing GGUF files", "'stemma-lm[gguf]'")
    import gguf

    return gguf


# ---------------------------------------------------------------- what a file is to hold


def plan_file(design: Design, family: Family | None, word: str) -> WritePlan:
    """The file of a design, in the architecture of its nearest ancestor that loses nothing."""
    why = ""
    for relative in family.lineage if family is not None else []:
        for arch in ARCHITECTURES.values():
            if relative.name in arch.families:
                try:
                    return _of(arch, design, word)
                except StemmaError as error:
                    why = why or str(error)
    if why:
        raise UsageError(why)
    known = ", ".join(f for a in ARCHITECTURES.values() for f in a.families)
    name = family.name if family is not None else design.name
    raise UsageError(f"GGUF has no architecture for {name!r}; it has one for {known}, and for what descends from them")


def _of(arch: Architecture, design: Design, word: str) -> WritePlan:
    blank = {name: p.detach() for name, p in meta_model(design).named_parameters()}
    rows = {r.theirs: r for r in arch.table(design) if all(o in blank for o in r.ours)}
    made = {name: tensor for part in arch.parts for name, tensor in part.tensors(design).items()}
    held = {name: list(tensor.shape) for name, tensor in made.items()}
    held |= {name: list(r.write(blank).shape) for name, r in rows.items()}
    head = (UNTIED if UNTIED in held else EMBEDDINGS) if arch.head else None
    choice = Choice(word, head, design.dims.layers, EXACT)
    entries = {name: Entry(name, tuple(shape), choice.of(name, tuple(shape)), 0) for name, shape in held.items()}
    plan = WritePlan(arch, design, _keys(arch, design, word), entries, rows, made, choice)
    try:
        again, _ = read_design(arch, plan)
    except CheckpointError as error:
        raise UsageError(f"GGUF's {arch.name!r} architecture cannot express this design: {error}") from None
    written = arch.stored(design if arch.head else with_heads(design, Heads()))
    refuse_loss(f"GGUF's {arch.name!r} architecture", lost(written, again, differences))
    if arch.head and (odd := _unnamed(plan, blank)):
        raise UsageError(f"GGUF's {arch.name!r} architecture has no name for the parameter {odd[0]!r}")
    return plan


def _unnamed(plan: WritePlan, state: Mapping[str, Tensor]) -> list[str]:
    named = {o for r in plan.rows.values() for o in r.ours}
    return [name for name in state if name not in named]


def _as_it_is(plan: WritePlan, entry: Entry, state: PlainTensors, word: str) -> Entry:
    """The entry of a matrix with the widest type that its parts have in the model, or with that of its blocks."""
    row = plan.rows.get(entry.name)
    if (kept := _blocks(row, state)) is not None:
        return replace(entry, type=NUMBERS[kept[0].kind])
    kinds = [state.dtype(name) for name in row.ours] if row is not None else []
    known = [kind for kind in kinds if kind is not None] or [getattr(torch, word)]
    widest = functools.reduce(torch.promote_types, known)
    own = str(widest).removeprefix("torch.")
    return replace(entry, type=plan.choice.of(entry.name, entry.shape, own if own in TYPES else word))


def _blocks(row: Row | None, state: PlainTensors) -> list[Blocks] | None:
    """The parts of a row that are all kept in quantised blocks of one type; None for any other row."""
    if row is None or row.op is not None or row.transposed:
        return None
    parts = [part for name in row.ours if (part := state.blocks(name)) is not None]
    return parts if len(parts) == len(row.ours) and len({part.kind for part in parts}) == 1 else None


def _of_blocks(model: Model, plan: WritePlan) -> dict[str, Any]:
    """The keys of a file with quantised blocks: what the file that they are from says of itself."""
    if all(entry.type in quants.PLAIN for entry in plan.entries.values()):
        return {}
    named = (model.extras or {}).get("gguf", {})
    return {"general.quantization_version": 2} | {k: named[k] for k in ("general.file_type",) if k in named}


def _keys(arch: Architecture, design: Design, word: str) -> dict[str, Any]:
    sizes = {key: getattr(design.dims, Dims.RULES.get(dim, dim)) for key, dim in arch.sizes.items()}
    own: dict[str, Any] = {
        "vocab_size": design.dims.vocab,
        **sizes,
        arch.eps: float(spec.get(design, "arch.norm.eps")),
        **arch.constants,
    }
    for part in arch.parts:
        own |= part.write(design)
    out: dict[str, Any] = {"general.name": design.name, "general.file_type": TYPES[word][1]}
    if NUMBERS[TYPES[word][0]] not in quants.PLAIN:
        out["general.quantization_version"] = 2
    return out | {f"{arch.name}.{key}": value for key, value in own.items()}


def _words(model: Model, plan: WritePlan) -> dict[str, Any]:
    """The tokenizer's keys; bos, eos and pad ids come from the model if the tokenizer has none, where they have an
    embedding."""
    text, rows = plan.design.text, plan.design.dims.vocab
    ids = {"bos": text.bos_id, "padding": text.pad_id, **_ends(model, plan)}
    out: dict[str, Any] = {f"{PREFIX}{word}_token_id": i for word, i in ids.items() if i is not None and 0 <= i < rows}
    if model.tokenizer is None:
        out[f"{PREFIX}model"] = "no_vocab"
    else:
        out |= vocab_write.write(model.tokenizer, plan.design.dims.vocab)
    if not plan.arch.head:
        out[f"{PREFIX}token_type_count"] = plan.design.dims.segments
    return out


def _ends(model: Model, plan: WritePlan) -> dict[str, int]:
    """The keys of the tokens that end a text: the tokenizer's, then generation_config.json's, else the design's. A file
    has place for three."""
    held = (model.extras or {}).get("generation_config", {}).get("eos_token_id")
    listed = held if isinstance(held, list) else [] if held is None else [held]
    if not all(type(i) is int for i in listed):
        raise CheckpointError(
            f"generation_config.json: eos_token_id={brief(held)} should be a number or a list of them"
        )
    ids = [i for i in listed or plan.design.text.eos_ids if 0 <= i < plan.design.dims.vocab]
    first = getattr(model.tokenizer, "eos_id", None)
    ids = list(dict.fromkeys([*([] if first is None else [first]), *ids]))
    words = ("eos", "eot", "eom")
    if len(ids) > len(words):
        warnings.warn(f"GGUF names three tokens that end a text; {ids[3:]} are left out", stacklevel=4)
    return dict(zip(words, ids, strict=False))


# ---------------------------------------------------------------- bytes


def _put(library: ModuleType, out: Any, key: str, value: Any) -> None:
    """A key with the type that llama.cpp expects: numbers of 32 bits, an array of bytes for a character map."""
    match value:
        case bool():
            out.add_bool(key, value)
        case int():
            out.add_uint32(key, value)
        case float():
            out.add_float32(key, value)
        case str():
            out.add_string(key, value)
        case _:
            out.add_array(key, value)


def _size(entry: Entry) -> int:
    weights, width = quants.SIZES[entry.type]
    return entry.elements // weights * width


def _data(library: ModuleType, plan: WritePlan, entry: Entry, state: PlainTensors) -> np.ndarray[Any, np.dtype[Any]]:
    r = plan.rows.get(entry.name)
    kept = _blocks(r, state)
    if kept is not None and NUMBERS[kept[0].kind] == entry.type:  # rows of bytes are ordered as rows of numbers
        tensor = torch.cat([part.data for part in kept]).cpu()
    else:
        kept, tensor = None, plan.made[entry.name] if r is None else r.write(state).cpu()
    if re.search(plan.arch.interleaved, entry.name):
        tensor = to_pairs(tensor, plan.design.dims.width)
    if kept is not None:
        return tensor.contiguous().numpy()
    plain = quants.PLAIN.get(entry.type)
    if plain is not None:  # as bytes, which numpy has for bfloat16 too
        return tensor.to(plain).contiguous().view(torch.uint8).numpy()
    try:
        return quantise(tensor, entry.type, library)
    except UsageError as error:
        raise UsageError(f"{entry.name}: {error}") from None
