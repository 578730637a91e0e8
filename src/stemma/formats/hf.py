"""Folders of config.json, safetensors and a tokenizer: the layouts of Hugging Face, and Stemma's own."""

from __future__ import annotations

import functools
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stemma import disk, spec
from stemma.declare.family import Design
from stemma.errors import CheckpointError, UsageError
from stemma.formats import sentences, tensors
from stemma.formats.classes import label_names, write_labels
from stemma.formats.config import GENERATION
from stemma.formats.heads import HEADS, body_for, every_head, heads_in_file, part, wanted_task, with_heads
from stemma.formats.keys import Layout, flat, nested
from stemma.formats.layouts import file_rows, layout_of, read_design, table_of
from stemma.formats.names import Ledger, expand
from stemma.formats.weights import (
    WeightLoader,
    attach,
    check_weights,
    design_of,
    device_of,
    dtype_of,
    meta_model,
)
from stemma.nn.init import initialise
from stemma.nn.model import Model
from stemma.nn.parts import LMHead, Task
from stemma.rewrites.kinds import Rewrite
from stemma.rewrites.paths import PlainTensors

if TYPE_CHECKING:
    from stemma.text import Tokenizer

CONFIGS = ("config.json", "generation_config.json")
VOCABULARY = (  # one makes a tokenizer
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spm.model",
)
TOKENIZER = (
    *VOCABULARY,
    "merges.txt",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


# ---------------------------------------------------------------- loading


def load(
    folder: Path,
    device: str | torch.device,
    dtype: torch.dtype | None,
    *,
    new: Collection[str],
    task: str | Task | None,
    labels: int | None,
    problem: str | None,
    tokenizer: bool,
    rewrites: Sequence[Rewrite] = (),
    stream: bool = False,
) -> Model:
    """The model in a folder, in eval mode (see `stemma.load`). `stream`: its weights stay in the file (device meta)."""
    folder, pooling = sentences.read(folder)
    if not (folder / "config.json").is_file() and (why := tensors.interrupted(folder)):
        raise CheckpointError(why)
    raw = disk.read_object(folder / "config.json")
    source = tensors.Tensors(folder)
    if task is None and (asked := {"labels": labels, "problem": problem}) != {"labels": None, "problem": None}:
        field = next(k for k, v in asked.items() if v is not None)
        raise UsageError(f"{field}={asked[field]!r} is for the head of a task: give task= too, such as task='classify'")
    goal = None if task is None else (task, labels, problem)
    model = _assemble(raw, source, str(folder), new, device_of(device), dtype, goal, rewrites, stream)
    model.extras, model.pooling = {"config": raw}, pooling
    model.labels = () if "task" in new else label_names(raw, model.arch.heads)
    if (folder / "generation_config.json").is_file():
        model.extras["generation_config"] = disk.read_object(folder / "generation_config.json")
    if tokenizer:
        model.tokenizer = read_tokenizer(folder, model)
    return model.eval()


def _assemble(
    raw: Mapping[str, Any],
    source: tensors.Tensors,
    where: str,
    new: Collection[str],
    device: torch.device,
    dtype: torch.dtype | None,
    goal: tuple[str | Task, int | None, str | None] | None,
    rewrites: Sequence[Rewrite],
    stream: bool,
) -> Model:
    design, owner, layout, unused = read_design(raw)
    files = _names_in_file(source, layout, where)
    task = None if goal is None else wanted_task(owner, layout, raw, goal, new)
    afresh = {"task"} & set(new) if task is not None else set()
    design, left = heads_in_file(design, raw, layout, files, new, where, task, owner)
    if task is not None:
        new = {*new, "task", "pooler"}
        whole, design = design, body_for(design)
        if layout is not None and design is not whole:
            gone = (r for r in expand(layout.rows(whole), whole) if part(r) == "decoder")
            left += [n for r in gone for n in (r.theirs, *r.aliases)]
    design, equal = _by_file(design, layout, source, files)
    model = meta_model(design)
    loader = WeightLoader(model, source, where, Ledger(config=unused), files, new, equal, stream)
    found = [(r, loader.find(r, part(r) in afresh)) for r in table_of(design, layout, PlainTensors(model, slices=True))]
    loader.account({} if layout is None else layout.unused_tensors, left)
    held = [(r, name) for r, name in found if name]
    _draw_new(model, design, loader.ledger, device, dtype or source.meta_tensor(held[0][1]).dtype)
    loader.rewrite(rewrites)
    for r, name in held:
        loader.read(r, name, device, dtype)
    loader.finish(device, dtype)
    return attach(model, design, owner)


def _names_in_file(source: tensors.Tensors, layout: Layout | None, where: str) -> dict[str, str]:
    """The table's name of each tensor -> its name in the file."""
    if layout is None:
        return {name: name for name in source}
    current = {name: functools.reduce(lambda n, r: n.replace(*r), layout.renames.items(), name) for name in source}
    if layout.prefix and not any(n.startswith(layout.prefix) for n in current.values()):
        heads = _head_names(layout)
        alone = {n for n in current.values() if n in heads or n.startswith(("cls.", "lm_head"))}
        current = {f: n if n in alone else layout.prefix + n for f, n in current.items()}
    names: dict[str, str] = {}
    for file, name in current.items():
        if name in names:
            raise CheckpointError(f"{where} holds both {names[name]!r} and {file!r}, which mean the same tensor")
        names[name] = file
    return names


def _head_names(layout: Layout) -> set[str]:
    """The names of tensors of all heads of a layout's classes."""
    base = layout.base()
    kinds = [every_head(base.arch.heads, heads) for heads in (base.arch.heads, *layout.classes.values())]
    rows = [r for heads in kinds for r in layout.rows(with_heads(base, heads)) if part(r) in HEADS]
    return {name for r in rows for name in (r.theirs, *r.aliases)}


def _by_file(
    design: Design, layout: Layout | None, source: tensors.Tensors, files: Mapping[str, str]
) -> tuple[Design, set[frozenset[str]]]:
    """The design with what only the tensors tell: the head is untied if the file's two matrices differ, and has a bias
    if the file's is not all zero. With it, the pairs of tensors that were found equal."""
    equal: set[frozenset[str]] = set()
    head = design.arch.heads.lm
    if layout is None or head is None:
        return design, equal
    if layout.bias_by_file and isinstance(head, LMHead):
        biased = spec.edit(design, {"arch.heads.lm.bias": True})
        names = [files[r.theirs] for r in layout.rows(biased) if r.ours == ("lm.bias",) and r.theirs in files]
        if any(bool(source.get(name).any()) for name in names):
            design = biased
    if not layout.tied_by_file or not head.tied:
        return design, equal
    for r in layout.rows(design):
        for alias in r.aliases:
            if alias == "lm_head.weight" and {alias, r.theirs} <= set(files):
                pair = files[alias], files[r.theirs]
                if not torch.equal(*map(source.get, pair)):
                    return spec.edit(design, {"arch.heads.lm.tied": False}), equal
                equal.add(frozenset(pair))
    return design, equal


def _draw_new(model: Model, design: Design, ledger: Ledger, device: torch.device, dtype: torch.dtype) -> None:
    """Initialise the heads that the user asked for. Tensors of them that the file holds are loaded afterwards."""
    heads = {name.split(".")[0] for name in ledger.new}
    parts = nn.ModuleDict({head: getattr(model, head).to_empty(device="cpu") for head in sorted(heads)})
    initialise(parts, design.arch, design.dims, 0)
    parts.to(device=device, dtype=dtype)


def read_tokenizer(folder: Path, model: Model) -> Tokenizer | None:
    """The tokenizer in a folder, None if it has none. Raises CheckpointError if it has more ids than the model."""
    if not any((folder / n).is_file() for n in (*VOCABULARY, "tekken.json")):
        return None
    from stemma.text import Tokenizer

    tokenizer = Tokenizer.load(folder)
    tokenizer.check(model.dims.vocab)
    ends = model.text.eos_ids
    if tokenizer.eos_id is not None and ends and tokenizer.eos_id not in ends:
        warnings.warn(
            f"the tokenizer in {folder} ends a text with id {tokenizer.eos_id}, config.json with "
            f"{', '.join(map(str, ends))}: is it the one that the model was trained with?",
            stacklevel=4,
        )
    return tokenizer


# ---------------------------------------------------------------- saving


def check_target(model: Model, directory: Path) -> None:
    """Raises UsageError if a model cannot be saved to a folder."""
    if directory.is_file():
        raise UsageError(f"{directory} is a file; a checkpoint is a folder")
    check_weights(model)
    if model.tokenizer is None and (old := next((n for n in VOCABULARY if (directory / n).is_file()), None)):
        raise UsageError(f"{directory} holds a tokenizer ({old}) and this model has none; save it to another folder")


def save(model: Model, directory: Path, *, dtype: str | None, shard_bytes: int) -> Path:
    """Write a folder, in shards of at most `shard_bytes` (see `stemma.formats.save`)."""
    check_target(model, directory)
    design = design_of(model)
    table, data, why = layout_of(design, model.family)
    if table is None:
        warnings.warn(f"{directory} is in Stemma's own layout, which other libraries cannot read: {why}", stacklevel=2)
    state = PlainTensors(model, slices=True)
    types = {name: (state.dtype(name) or model.dtype) if dtype is None else dtype_of(dtype) for name in state}
    data["dtype"] = _most(types, state).removeprefix("torch.")
    extras = getattr(model, "extras", {})
    before = extras.get("config", {})
    if table is not None and before.get("model_type") == table.model_type:  # unused keys are kept
        respelled = {"torch_dtype", *(older for k in table.keys for older in k.older)}
        heads_own = table.of_class(data["architectures"][0])
        kept = {
            k: v
            for k, v in flat(before, table.sections).items()
            if k not in respelled and v == heads_own.get(k, v)  # a new head is as the class has it
        }
        data = nested(kept | flat(data, table.sections), table.sections)
    if table is not None:
        data |= write_labels(design.arch.heads, model.labels)
    names: dict[str, tensors.Entry] = {}
    for name, r in file_rows(design, table, data, state).items():
        about = r.write({o: torch.empty(state.shapes[o], dtype=types[o], device="meta") for o in r.ours})
        names[name] = tensors.Entry(about.shape, about.dtype, functools.partial(r.write, state))
    with tensors.whole(directory, _replaced) as scratch:
        tensors.write(scratch, names, shard_bytes)
        if model.tokenizer is not None:
            model.tokenizer.save(scratch)
        tensors.write_json(scratch / "config.json", data)
        if (generation := _generation_config(model, design, extras)) is not None:
            tensors.write_json(scratch / "generation_config.json", generation)
        if model.pooling is not None:
            sentences.write(scratch, model.pooling)
    if model.pooling is not None:
        sentences.write_pooling(directory, model.pooling, design.dims.d_model)
    return directory


def _most(types: Mapping[str, torch.dtype], state: PlainTensors) -> str:
    """The type of most weights: others read all of them as that."""
    sizes: Counter[str] = Counter()
    for name, kind in types.items():
        sizes[str(kind)] += state.shapes[name].numel()
    return sizes.most_common(1)[0][0]


def _replaced(name: str) -> bool:
    """Whether a file belongs to a checkpoint. A new checkpoint replaces all of them: a shard or a vocabulary of the old
    one would be read as its own."""
    return name in (*CONFIGS, *TOKENIZER, *sentences.FILES) or WEIGHTS.fullmatch(name) is not None


def _generation_config(model: Model, design: Design, extras: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if "generation_config" in extras:
        return extras["generation_config"]
    if design.arch.structure == "encoder":
        return None
    text = design.text
    ids = {
        "bos_token_id": text.bos_id,
        "eos_token_id": list(text.eos_id) if isinstance(text.eos_id, tuple) else text.eos_id,
        "pad_token_id": text.pad_id,
        "decoder_start_token_id": text.start_id,
    }
    before = extras.get("config", {})  # an old checkpoint's, which a generation_config.json beside it would hide
    return {k: v for k, v in (ids | {k: before.get(k) for k in GENERATION}).items() if v is not None}
