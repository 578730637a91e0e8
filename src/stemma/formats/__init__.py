"""Models in and out: `load` a checkpoint, `build` a design, `save` either in its publisher's layout."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stemma import families, spec
from stemma.declare.family import Design, Family
from stemma.disk import nearest_path
from stemma.errors import CheckpointError, ResourceError, StemmaError, UsageError, did_you_mean
from stemma.formats import hf, peft
from stemma.formats.heads import HEADS, body_for, heads_for, task_of, with_heads, with_task
from stemma.formats.layouts import LAYOUTS, layout_of, read_design
from stemma.formats.weights import attach, check_weights, device_of, dtype_of, meta_model
from stemma.formats.where import model_path
from stemma.nn.heads import LMHead
from stemma.nn.model import Model
from stemma.nn.parts import Task
from stemma.rewrites.engine import apply
from stemma.rewrites.kinds import NF4, Rewrite, WeightOnly
from stemma.rewrites.paths import linear_paths, patterns

QUANTIZED: dict[str, Callable[[tuple[str, ...]], Rewrite]] = {"nf4": NF4, "int8": WeightOnly}  # patterns -> rewrite
WHOLE = {"q8_0": "q8_0", "q4_0": "q4_0", "q4_1": "q4_1", "keep": "file"}  # WeightOnly of embeddings and head too
WRITTEN = ("hf", "meta", "gguf", "llama2c", "llama2c-v1", "fairseq", "onnx", "peft")  # the layouts that `save` knows


def build(
    name: str | Design | Family,
    overrides: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    dtype: str = "float32",
    task: str | Task | None = None,
    labels: int | Sequence[str] | None = None,
    problem: str | None = None,
    rewrites: Iterable[Rewrite] = (),
    **dims: Any,
) -> Model:
    """A model of a family's size with fresh weights, in eval mode: `build("roberta-base", layers=2)`. A family means
    its first size; `labels` are a number or names.

    `overrides` are paths into the design (`{"arch.norm.eps": 1e-6}`), keywords are dims. A `task` (see `load`) replaces
    the pretraining heads by its own. `rewrites` are applied to the fresh weights. Raises
    UsageError for names and values that do not exist."""
    owner = name if isinstance(name, Family) else None
    design = families.design(name) if isinstance(name, str) else name.first if isinstance(name, Family) else name
    owner = owner or _owner(design.name)
    count, names = _labels(labels)
    if task is not None:
        design = body_for(with_heads(design, heads_for(task_of(owner, task, count, problem), design, owner)))
    design = spec.edit(design, {**(overrides or {}), **{f"dims.{k}": v for k, v in dims.items()}})
    model = meta_model(design).to_empty(device="cpu").to(dtype_of(dtype)).initialise(seed)
    apply(model, tuple(rewrites), seed)
    model.labels = names
    return attach(model, design, owner).eval()


def _labels(labels: int | Sequence[str] | None) -> tuple[int | None, tuple[str, ...]]:
    """The number of labels and their names, where they are named. Raises UsageError for names that are not texts, or
    not different."""
    if labels is None or isinstance(labels, int):
        return labels, ()
    names = tuple(labels)
    if isinstance(labels, str) or not names or len(set(names)) < len(names) or any(type(n) is not str for n in names):
        raise UsageError(f"labels={labels!r} is neither a number nor a list of different names such as ['no', 'yes']")
    return len(names), names


# ---------------------------------------------------------------- loading


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    *,
    new: Iterable[str] = (),
    task: str | Task | None = None,
    labels: int | Sequence[str] | None = None,
    problem: str | None = None,
    revision: str | None = None,
    tokenizer: bool = True,
    rewrites: Iterable[Rewrite] = (),
    adapter: str | Path | Sequence[str | Path] = (),
    quantize: str | None = None,
) -> Model:
    """The model of a finished run, a folder (of config.json and safetensors, or Meta's own layout), a GGUF file, a
    llama2.c file (`.bin`), or a hub id. In eval mode, its family found from the files.

    Strict: every tensor of the file and of the model is accounted for in `model.ledger`. A head that the file's class
    needs and the file lacks is refused, unless `new` names it (`"lm"`, `"pooler"`, `"pair"`, ...): then it is
    initialised (`"task"`: even if the file has one). `task` (`"classify"`, `"tag"`, `"answer"`, `"choose"`, with
    `labels`, a number or names, and, to classify texts, a `problem`: `"single"`, `"multi"` or `"regression"`) replaces
    the pretraining heads by the family's head for it, loaded if the file has it, else initialised.
    `dtype="auto"` keeps the file's; `device="meta"` reads shapes and no data. `rewrites` (`stemma.rewrites`) replace
    modules before they are filled: a quantised matrix is made of the file's tensor, and no other copy is kept.
    `quantize` (`"nf4"`, `"int8"`) does so with the matrices of all blocks; `"q8_0"`, `"q4_0"` and `"q4_1"` with them,
    the embeddings and a head's own matrix (the numbers of GGUF files of these types); `"keep"` leaves all of these in
    the file's types, such as the blocks of a GGUF file. `adapter`: folders in PEFT's format, whose adapters all take
    part, and the first tokenizer beside one; the folder of an adapter as `path` loads its base too.
    Weights of the wanted type and
    layout are mapped copy-on-write (docs/formats.md). Raises CheckpointError naming the tensor, key or file."""
    folder = model_path(path) or fetch(str(path), revision)
    adapters = [adapter] if isinstance(adapter, str | Path) else list(adapter)
    if peft.is_adapter(folder):
        base = peft.base_of(folder)
        return load(
            base, device, dtype, new=new, task=task, labels=labels, problem=problem, tokenizer=tokenizer,
            rewrites=rewrites, adapter=[folder, *adapters], quantize=quantize,
        )  # fmt: skip
    given = tuple(rewrites)
    if quantize is not None:
        there = _loaded(folder, "meta", dtype, new, task, labels, problem, tokenizer=False)
        given = (*quantized(there, quantize), *given)
    model = _loaded(folder, device, dtype, new, task, labels, problem, tokenizer=tokenizer, rewrites=given)
    model.origin = str(folder.resolve()) if model_path(path) else str(path)
    own = None  # the tokenizer beside an adapter: with the template, and the tokens, that it learnt
    for one in adapters:
        place = model_path(one) or fetch(str(one), None)
        peft.attach(model, place)
        if tokenizer and own is None and any((place / name).is_file() for name in hf.VOCABULARY):
            from stemma.text import Tokenizer

            own = Tokenizer.load(place)
            own.check(model.dims.vocab)
    model.tokenizer = model.tokenizer if own is None else own
    return model


def quantized(model: Model, kind: str) -> tuple[Rewrite, ...]:
    """The rewrites that store the matrices of all blocks of `model` as `kind`; for those of `WHOLE` the embeddings and
    the head's matrix too. Raises UsageError for another kind, and for a model whose blocks have no such matrices."""
    head = ("lm",) if isinstance(model.lm, LMHead) and model.lm.weight is not None else ()
    kinds = dict(QUANTIZED)
    for name, dtype in WHOLE.items():
        kinds[name] = functools.partial(_whole, dtype, ("embed.tokens", *head))
    if kind not in kinds:
        raise UsageError(f"quantize={kind!r} is not known; use {', '.join(kinds)}{did_you_mean(kind, kinds)}")
    paths = [path for path in linear_paths(model) if ".blocks." in path]
    if not paths:
        raise UsageError(f"quantize={kind!r}: the blocks of this model have no linear layers")
    return (kinds[kind](patterns(model, paths)),)


def _whole(dtype: Any, beside: tuple[str, ...], where: tuple[str, ...]) -> Rewrite:
    return WeightOnly((*where, *beside), dtype)


def _loaded(
    folder: Path,
    device: str | torch.device,
    dtype: str | torch.dtype,
    new: Iterable[str],
    task: str | Task | None,
    labels: int | Sequence[str] | None,
    problem: str | None,
    **options: Any,
) -> Model:
    """A model from its folder or file, without adapters."""
    new = tuple(new)
    if wrong := [n for n in new if n not in HEADS]:
        raise UsageError(f"no head is called {wrong[0]!r}; heads are {', '.join(HEADS)}{did_you_mean(wrong[0], HEADS)}")
    kind = None if dtype == "auto" else dtype_of(dtype)
    reader = _reader_of(folder, heads=task is not None or bool(new))
    if reader is not None:
        return reader(folder, device, dtype, **options)
    if folder.suffix == ".onnx" and folder.is_file():
        raise UsageError(f"{folder} is an ONNX file, which is written and not read: load what it was made of")
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the folder that holds config.json and the weights")
    count, names = _labels(labels)
    model = hf.load(folder, device, kind, new=new, task=task, labels=count, problem=problem, **options)
    model.labels = names or model.labels
    return model


def stream(path: str | Path, dtype: str | torch.dtype = "auto") -> Model:
    """The model of a checkpoint as `load` gives it, but on the device "meta": its weights stay in the file, and `save`
    (in the layouts hf and gguf) reads them one at a time. Only folders of config.json and GGUF files can be read so;
    of others the weights are loaded."""
    from stemma.formats import gguf

    kind = None if dtype == "auto" else dtype_of(dtype)
    folder = model_path(path) or fetch(str(path), None)
    if peft.is_adapter(folder):
        return load(folder, "cpu", dtype)
    reader = _reader_of(folder, heads=False)
    if reader is gguf.load:
        return gguf.load(folder, "meta", dtype, stream=True)
    if reader is not None or folder.is_file():
        return load(folder, "cpu", dtype)
    free: dict[str, Any] = {"new": (), "task": None, "labels": None, "problem": None}
    return hf.load(folder, "meta", kind, tokenizer=True, stream=True, **free)


def _reader_of(path: Path, heads: bool) -> Callable[..., Model] | None:
    """The loader of a path in another layout than folders of config.json; None for these. Raises UsageError if it
    cannot put new `heads` on a model."""
    if path.suffix == ".gguf":
        from stemma.formats import gguf

        return gguf.load
    if path.suffix == ".bin" and path.is_file():
        from stemma.formats import llama2c

        return llama2c.load
    if (path / "params.json").is_file() and not (path / "config.json").is_file():
        from stemma.formats import meta

        return meta.load
    if path.suffix == ".pt" or (path / "model.pt").is_file():
        from stemma.formats import fairseq

        if fairseq.found(path) is not None:
            if heads:
                raise UsageError(f"{path} is in fairseq's layout: save it in another before it takes a new head")
            return fairseq.load
    return None


def fetch(repo: str, revision: str | None) -> Path:
    """The local folder of a hub id, which is downloaded if need be. What the hub says of a name that it does not know
    has the nearest path here beside it."""
    from stemma.formats import hub

    try:
        return hub.fetch(repo, revision)
    except (UsageError, ResourceError) as error:
        raise type(error)(f"{error}{nearest_path(repo)}") from None


def _owner(name: str) -> Family | None:
    try:
        return families.family(name)
    except StemmaError:
        return None


# ---------------------------------------------------------------- saving


def save(
    model: Model,
    directory: str | Path,
    *,
    layout: str | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5 * 10**9,
    shards: int | None = None,
    split_bytes: int | None = None,
) -> Path:
    """Write a checkpoint: all of it, or nothing if anything fails. `layout` is one of `WRITTEN`; left out, the name
    tells: `.gguf`, `.onnx` and `.bin` (llama2.c) are files, anything else is a folder of config.json, safetensors,
    tokenizer and generation_config.json (`hf`). `peft` writes a model's adapter alone. `shards`: the files of Meta's
    layout; in GGUF `dtype` may be q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1 or q4_0, and `split_bytes` makes several
    files of it, with at most so many bytes of tensors each.

    Raises ResourceError if the disk is full or not writable, UsageError for what a layout cannot express.
    """
    directory = Path(directory)
    layout = layout_named(layout, directory)
    if shards is not None and layout != "meta":
        raise UsageError(f"shards={shards} is for layout='meta'; others are divided by size (shard_bytes)")
    if split_bytes is not None and layout != "gguf":
        raise UsageError(f"split_bytes={split_bytes} is for layout='gguf'; hf is divided by shard_bytes")
    match layout:
        case "meta":
            from stemma.formats import meta

            return meta.save(model, directory, dtype=dtype, shards=shards)
        case "llama2c" | "llama2c-v1":
            from stemma.formats import llama2c

            if dtype not in (None, "float32"):
                raise UsageError(f"llama2.c files hold float32, not {dtype!r}")
            return llama2c.save(model, directory, version=int(layout == "llama2c-v1"))
        case "fairseq":
            from stemma.formats import fairseq

            return fairseq.save(model, directory, dtype=dtype)
        case "peft":
            if dtype not in (None, "float32"):
                raise UsageError(f"adapters are written as float32, not {dtype!r}")
            return peft.save(model, directory, base=model.origin)
        case "gguf":
            from stemma.formats.gguf.write import save as save_gguf

            return save_gguf(model, directory, dtype=dtype, split_bytes=split_bytes)
        case "onnx":
            from stemma.formats import onnx

            return onnx.save(model, directory, dtype=dtype)
    return hf.save(model, directory, dtype=dtype, shard_bytes=shard_bytes)


def layout_named(layout: str | None, target: Path) -> str:
    """The layout asked for, or else the one that a name ends in. Raises UsageError for one that is not known."""
    if layout is None:
        return {".gguf": "gguf", ".bin": "llama2c", ".pt": "fairseq", ".onnx": "onnx"}.get(target.suffix, "hf")
    if layout not in WRITTEN:
        raise UsageError(f"layout {layout!r} is not known; use {', '.join(WRITTEN)}{did_you_mean(layout, WRITTEN)}")
    return layout


__all__ = [
    "LAYOUTS",
    "attach",
    "build",
    "check_weights",
    "device_of",
    "dtype_of",
    "layout_named",
    "layout_of",
    "load",
    "read_design",
    "save",
    "stream",
    "with_task",
]
