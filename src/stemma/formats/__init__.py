"""Models in and out: `load` a checkpoint, `build` a design afresh, `save` either in its publisher's layout."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stemma import families, spec
from stemma.errors import CheckpointError, ResourceError, StemmaError, UsageError, did_you_mean, nearest
from stemma.families.declare import Design, Family
from stemma.formats import config as configs
from stemma.formats import own, sentences, tensors
from stemma.formats.config import Layout
from stemma.formats.names import Ledger, Row, expand, missing
from stemma.nn.init import initialise
from stemma.nn.model import Model
from stemma.nn.parts import Answer, Choose, Classify, Full, Heads, LMHead, Summary, Tag, Task


def _layouts() -> dict[str, Layout]:
    """Every layout of the modules beside this one that are named after the Hugging Face."""
    modules = [info.name for info in pkgutil.iter_modules(__path__) if info.name.startswith("hf_")]
    found = [v for name in modules for v in vars(importlib.import_module(f"{__name__}.{name}")).values()]
    return {layout.name: layout for layout in found if isinstance(layout, Layout)}


LAYOUTS = _layouts()
HEADS = ("lm", "pooler", "pair", "detect", "task")
CONFIGS = ("config.json", "generation_config.json")
VOCABULARY = (  # one makes a tokenizer
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
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
WRITTEN = ("hf", "meta", "gguf", "llama2c", "llama2c-v1", "fairseq")  # the layouts that `save` knows
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build(
    name: str | Design,
    overrides: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    dtype: str = "float32",
    task: str | Task | None = None,
    labels: int | None = None,
    problem: str | None = None,
    **dims: Any,
) -> Model:
    """A model of a family's size with fresh weights, in eval mode: `build("roberta-base", layers=2)`.

    `overrides` are paths into the design (`{"arch.norm.eps": 1e-6}`), keywords are dims. With a `task` (see `load`) its
    head stands on the body instead of the heads of pretraining. Raises UsageError for names and values that do not
    exist."""
    design = families.design(name) if isinstance(name, str) else name
    if task is not None:
        owner = _owner(design.name)
        design = _body_for(_with_heads(design, heads_for(task_of(owner, task, labels, problem), design, owner)))
    design = spec.edit(design, {**(overrides or {}), **{f"dims.{k}": v for k, v in dims.items()}})
    with torch.device("meta"):
        model = Model(design.arch, design.dims)
    model = model.to_empty(device="cpu").to(dtype_of(dtype)).initialise(seed)
    return attach(model, design, _owner(design.name)).eval()


def attach(model: Model, design: Design, family: Family | None, tokenizer: Any = None) -> Model:
    """Give a model what it is called and how its text is read."""
    model.family, model.name, model.text, model.tokenizer = family, design.name, design.text, tokenizer
    model.design = design
    return model


def device_of(name: str | torch.device) -> torch.device:
    """The torch device of a name. Raises UsageError for a name that torch does not know and ResourceError for a device
    that is not here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r} is not known; use cpu, cuda, cuda:1, mps or meta") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(f"device {name!s}: this torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """The torch type of a name. Raises UsageError for others than float32, bfloat16 and float16."""
    if isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r} is not known; use {', '.join(DTYPES)} or auto{did_you_mean(name, DTYPES)}")
    return DTYPES[name]


# ---------------------------------------------------------------- loading


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    *,
    new: Iterable[str] = (),
    task: str | Task | None = None,
    labels: int | None = None,
    problem: str | None = None,
    revision: str | None = None,
    tokenizer: bool = True,
) -> Model:
    """The model of a checkpoint: a folder (of config.json and safetensors, or Meta's own layout), a GGUF file, a
    llama2.c file (`.bin`), or a hub id. In eval mode, its family found from what the files say.

    Strict: every tensor of the file and of the model is accounted for in `model.ledger`. A head that the file's own
    class needs and whose weights are not there is refused, unless `new` names it (`"lm"`, `"pooler"`, `"pair"`, ...):
    then it is drawn afresh (`"task"`: also where the file has one). `task` (`"classify"`, `"tag"`, `"answer"`,
    `"choose"`, with `labels` and for texts a `problem`: `"single"`, `"multi"` or `"regression"`) puts the family's head
    for it on the body, read where the file holds it and else drawn; the heads of pretraining are left behind.
    `dtype="auto"` keeps the file's; `device="meta"` reads shapes and no data. Raises CheckpointError naming the tensor,
    key or file."""
    folder = Path(path)
    new = tuple(new)
    if wrong := [n for n in new if n not in HEADS]:
        raise UsageError(f"no head is called {wrong[0]!r}; heads are {', '.join(HEADS)}{did_you_mean(wrong[0], HEADS)}")
    kind = None if dtype == "auto" else dtype_of(dtype)
    if folder.suffix == ".gguf":
        from stemma.formats import gguf

        return gguf.load(folder, device, dtype, tokenizer=tokenizer)
    if folder.suffix == ".bin" and folder.is_file():
        from stemma.formats import llama2c

        return llama2c.load(folder, device, dtype, tokenizer=tokenizer)
    if (folder / "params.json").is_file() and not (folder / "config.json").is_file():
        from stemma.formats import meta

        return meta.load(folder, device, dtype, tokenizer=tokenizer)
    if folder.suffix == ".pt" or (folder / "model.pt").is_file():
        from stemma.formats import fairseq

        if fairseq.found(folder) is not None:
            if task is not None or new:
                raise UsageError(f"{folder} is in fairseq's layout: save it in another before it takes a new head")
            return fairseq.load(folder, device, dtype, tokenizer=tokenizer)
    if not folder.is_dir():
        if folder.exists():
            raise CheckpointError(f"{folder} is a file; give the folder that holds config.json and the weights")
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)):
            hint = _weights_of(str(path))
            raise UsageError(f"{str(path)!r} is neither a folder nor a hub id of the form org/name{hint}")
        from stemma.formats import hub

        folder = hub.fetch(str(path), revision)
    folder, pooling = sentences.read(folder)
    if not (folder / "config.json").is_file() and (why := tensors.interrupted(folder)):
        raise CheckpointError(why)
    raw = tensors.read_json(folder / "config.json")
    source = tensors.Tensors(folder)
    if task is None and (asked := {"labels": labels, "problem": problem}) != {"labels": None, "problem": None}:
        field = next(k for k, v in asked.items() if v is not None)
        raise UsageError(f"{field}={asked[field]!r} is for the head of a task: give task= too, such as task='classify'")
    goal = None if task is None else (task, labels, problem)
    model = _assemble(raw, source, str(folder), new, device_of(device), kind, goal)
    model.extras, model.pooling = {"config": raw}, pooling
    model.labels = () if "task" in new else configs.label_names(raw, model.arch.heads)
    if (folder / "generation_config.json").is_file():
        model.extras["generation_config"] = tensors.read_json(folder / "generation_config.json")
    if tokenizer:
        model.tokenizer = _tokenizer(folder, model)
    return model.eval()


def _weights_of(name: str) -> str:
    """`; gpt2's weights are openai-community/gpt2` where a path that leads nowhere is a name of the tree."""
    try:
        owner, known = families.family(name), families.known_as(name)
    except UsageError:
        return ""
    size = owner.sizes.get(owner.names.get(known, known)) or next(iter(owner.sizes.values()), None)
    return f"; the weights of {known} are {size.hub!r}" if size is not None and size.hub else ""


def read_design(raw: Mapping[str, Any]) -> tuple[Design, Family | None, Layout | None, dict[str, str]]:
    """What a config.json describes: the design (with the heads of its class), its family, layout and unused keys."""
    if "model_type" not in raw:
        like = [k for k in raw if nearest("model_type", [k], 1) and k not in configs.GENERAL]
        hint = f"; is {like[0]!r} meant to be it?" if like else ""
        raise CheckpointError(f"config.json has no 'model_type', which says what model it describes{hint}")
    model_type = raw["model_type"]
    if model_type == own.MODEL_TYPE:
        design = own.read_config(raw)
        return design, families.tree().get(str(raw.get("family"))), None, {}
    layout = _layout_for(model_type, raw)
    base = _base(layout)
    design, unused = configs.read_config(layout, raw, base)
    owner, name = _nearest(design, layout, raw)
    design = replace(design, name=name, text=_text(design, owner), objective=owner.objective, recipe=owner.recipe)
    return design, owner, layout, unused


def _layout_for(model_type: Any, raw: Mapping[str, Any]) -> Layout:
    """The layout of a model_type; where two publishers gave theirs the same one, that whose mark the config has."""
    found = [layout for layout in LAYOUTS.values() if layout.model_type == model_type]
    if not found:
        known = [*dict.fromkeys(layout.model_type for layout in LAYOUTS.values()), own.MODEL_TYPE]
        hint = did_you_mean(str(model_type), known)
        raise CheckpointError(f"config.json: model_type {model_type!r} is not known; known: {', '.join(known)}{hint}")
    marked = [layout for layout in found if len(found) == 1 or layout.mark in raw]
    if len(marked) != 1:
        ways = " or ".join(f"{layout.mark} ({layout.families[0]})" for layout in found)
        held = "both" if marked else "neither"
        raise CheckpointError(f"config.json: model_type {model_type!r} comes with {ways}, and this file has {held}")
    return marked[0]


def _base(layout: Layout) -> Design:
    """What a config of the layout changes: the first size of its first family, with all heads that keys speak of."""
    owner = families.family(layout.families[0])
    base = owner[next(iter(owner.sizes))]
    heads = base.arch.heads
    lm = heads.lm or next((h.lm for h in layout.classes.values() if h.lm is not None), None)
    detect = heads.detect or next((h.detect for h in layout.classes.values() if h.detect is not None), None)
    base = _with_heads(base, replace(heads, lm=lm, detect=detect))
    return spec.edit(base, {"text.bos_id": None, "text.eos_id": None, "text.pad_id": None})


def _nearest(design: Design, layout: Layout, raw: Mapping[str, Any]) -> tuple[Family, str]:
    """The family of the layout that the design differs least from, and the name of the size that it equals, if any.
    Among families of one network those count that have its size, then those whose heads and rates are its own."""
    listed = raw.get("architectures") or []
    known = [layout.classes[n] for n in listed if isinstance(n, str) and n in layout.classes]
    has = configs.present(known[0] if known else design.arch.heads)

    def body(owner: Family) -> int:
        same = {"dropout": design.arch.dropout, "heads": design.arch.heads}
        return len(spec.diff(spec.edit(owner.arch, same), design.arch))

    def rest(owner: Family) -> tuple[int, int]:
        theirs = configs.present(owner.arch.heads)
        return sum(a != b for a, b in zip(theirs, has, strict=True)), len(
            spec.diff(owner.arch.dropout, design.arch.dropout)
        )

    owners = sorted((families.family(f) for f in layout.families), key=rest)
    for owner in owners:
        for size, row in owner.sizes.items():
            if row.dims == design.dims and not _body_changes(owner[size], design):
                return owner, size
    owner = min(owners, key=body)
    return owner, owner.name


def _body_changes(a: Design, b: Design) -> list[spec.Change]:
    ignore = ("arch.heads", "arch.init", "arch.dropout")
    return [c for c in spec.diff(a, b) if c.path.startswith("arch.") and not c.path.startswith(ignore)]


def _text(design: Design, owner: Family) -> Any:
    kept = ("bos_id", "eos_id", "pad_id", "start_id", "mask_id", "languages", "blank_ids")
    ids = {f: getattr(design.text, f) for f in kept}
    return replace(owner.text, **ids)


def _assemble(
    raw: Mapping[str, Any],
    source: tensors.Tensors,
    where: str,
    new: Collection[str],
    device: torch.device,
    dtype: torch.dtype | None,
    goal: tuple[str | Task, int | None, str | None] | None,
) -> Model:
    design, owner, layout, unused = read_design(raw)
    files = _names_in_file(source, layout, where)
    ledger = Ledger(config=unused)
    task = None if goal is None else _wanted_task(owner, layout, raw, goal, new)
    afresh = {"task"} & set(new) if task is not None else set()
    design, left = _heads_in_file(design, raw, layout, files, new, where, task, owner)
    if task is not None:
        new = {*new, "task", "pooler"}
        whole, design = design, _body_for(design)
        if layout is not None and design is not whole:
            left += [
                n for r in _expanded(whole, layout) if r.ours[0].startswith("decoder.") for n in (r.theirs, *r.aliases)
            ]
    design = _by_file(design, layout, source, files)
    with torch.device("meta"):
        model = Model(design.arch, design.dims)
    shapes = {name: p.shape for name, p in _named(model).items()}
    rows = _rows(design, layout, shapes)
    at = {r.theirs: _find(r, source, {} if _part(r) in afresh else files, shapes, ledger, new, where) for r in rows}
    found = {theirs: name for theirs, name in at.items() if name}
    _account_rest(files, {} if layout is None else layout.stray, ledger, where, left)
    # all names and shapes are right; only now is anything read
    _draw_new(model, design, ledger, device, dtype or source.blank(next(iter(found.values()))).dtype)
    for r in rows:
        if r.theirs in found:
            _read_row(r, found[r.theirs], model, shapes, source, ledger, where, device, dtype)
    model.ledger = ledger
    return attach(model, design, owner)


def _names_in_file(source: tensors.Tensors, layout: Layout | None, where: str) -> dict[str, str]:
    """The name by which the table knows each tensor -> the name that it has in the file."""
    if layout is None:
        return {name: name for name in source}
    current = {name: functools.reduce(lambda n, r: n.replace(*r), layout.renames.items(), name) for name in source}
    if layout.prefix and not any(n.startswith(layout.prefix) for n in current.values()):
        current = {f: n if _is_head(n, layout) else layout.prefix + n for f, n in current.items()}
    names: dict[str, str] = {}
    for file, name in current.items():
        if name in names:
            raise CheckpointError(f"{where} holds both {names[name]!r} and {file!r}, which mean the same tensor")
        names[name] = file
    return names


def _is_head(name: str, layout: Layout) -> bool:
    base = _base(layout)
    for heads in (base.arch.heads, *layout.classes.values()):
        rows = layout.rows(_with_heads(base, _every_head(base.arch.heads, heads)))
        if any(name in (r.theirs, *r.aliases) for r in rows if _part(r) in HEADS):
            return True
    return name.startswith(("cls.", "lm_head"))


def _part(r: Row) -> str:
    return r.ours[0].split(".")[0]


def _with_heads(design: Design, heads: Heads) -> Design:
    return replace(design, arch=replace(design.arch, heads=heads))


def _every_head(own: Heads, wanted: Heads) -> Heads:
    """All heads that a file might hold: those of the family, and those of its class."""
    pooler = wanted.pooler or own.pooler or Summary()
    return Heads(own.lm, pooler, pair=True, detect=own.detect or wanted.detect, task=wanted.task)


def _heads_in_file(
    design: Design,
    raw: Mapping[str, Any],
    layout: Layout | None,
    files: Mapping[str, str],
    new: Collection[str],
    where: str,
    task: Task | None,
    owner: Family | None,
) -> tuple[Design, list[str]]:
    """The design with the heads that the file holds or the user wants drawn, and the names of tensors of heads that a
    wanted task leaves behind. Raises if the class needs a head more."""
    if layout is None:
        return (design if task is None else _with_heads(design, heads_for(task, design, owner))), []
    wanted = configs.heads_wanted(layout, raw)
    if task is not None:
        wanted = heads_for(task, design, owner) if type(wanted.task) is not type(task) else replace(wanted, task=task)
    every = _every_head(design.arch.heads, wanted)
    names: dict[str, list[str]] = {h: [] for h in HEADS}
    left: list[str] = []
    for r in layout.rows(_with_heads(design, every)):
        if _part(r) in names:
            names[_part(r)] += [r.theirs, *r.aliases]
            left += [n for n in (r.theirs, *r.aliases) if n in files]
    for other in layout.classes.values():  # of classes that hold other heads than are wanted
        rows = layout.rows(_with_heads(design, _every_head(design.arch.heads, other)))
        left += [n for r in rows if _part(r) in names for n in (r.theirs, *r.aliases) if n in files]
    has = {h: any(t in files for t in rows) or h in new for h, rows in names.items()}
    needs = {h: getattr(wanted, h) not in (None, False) for h in HEADS}
    if not names["lm"]:  # tied, and without parameters of its own: the class alone tells, where one is named
        has["lm"] = needs["lm"] or not raw.get("architectures") or "lm" in new
    for head in HEADS:
        if needs[head] and names[head] and not has[head] and (task is None or head not in ("task", "pooler")):
            raise CheckpointError(
                f"{where} should hold a {head!r} head (its config.json says so), but {names[head][0]!r} is not "
                f"in it; load(..., new=[{head!r}]) would draw one afresh"
            )
    if task is not None:
        return _with_heads(design, wanted), left
    pooler = every.pooler if has["pooler"] or "pair" in new else None
    return _with_heads(
        design,
        Heads(
            every.lm if has["lm"] else None,
            pooler,
            pair=has["pair"],
            detect=every.detect if has["detect"] else None,
            task=every.task if has["task"] else None,
        ),
    ), []


TASKS: dict[str, type[Task]] = {"classify": Classify, "tag": Tag, "answer": Answer, "choose": Choose}


def task_of(family: Family | None, task: str | Task, labels: int | None, problem: str | None = None) -> Task:
    """The task head of a family by its name (`classify`, `tag`, `answer`, `choose`), with so many labels. Raises
    UsageError for a task that the family does not have."""
    if isinstance(task, str):
        known = family.tasks if family is not None else {}
        if task not in known:
            name = family.name if family is not None else "this model"
            raise UsageError(
                f"{name} has no task head {task!r}; it has {', '.join(known) or 'none'}{did_you_mean(task, known)}"
            )
        found = known[task].task
        assert found is not None
        task = found
    fields = {k: v for k, v in (("labels", labels), ("problem", problem)) if v is not None}
    for name in fields:
        if not hasattr(task, name):
            raise UsageError(f"{name}={fields[name]!r} is for a head with classes, and {type(task).__name__} has none")
    return spec.edit(task, fields)


def _wanted_task(
    owner: Family | None,
    layout: Layout | None,
    raw: Mapping[str, Any],
    goal: tuple[str | Task, int | None, str | None],
    new: Collection[str],
) -> Task:
    """The task head that a call asks for; what it leaves open is as in the file, where that has a head of the kind."""
    name, labels, problem = goal
    task = task_of(owner, name, labels, problem)
    held = configs.heads_wanted(layout, raw).task if layout is not None else None
    if not isinstance(name, str) or type(held) is not type(task) or "task" in new:
        return task
    given = {"labels": labels, "problem": problem}
    return spec.edit(task, {k: getattr(held, k) for k, v in given.items() if v is None and hasattr(held, k)})


def with_task(design: Design, family: Family, task: str) -> Design:
    """The design with the family's head for a task in place of the heads of pretraining."""
    return _with_heads(design, heads_for(task_of(family, task, None), design, family))


def heads_for(task: Task, design: Design, family: Family | None = None) -> Heads:
    """The heads that a task needs on the body of a design: its own, the pooler if it reads that (the one that its
    family has for the task, where the body has none), and the language-model head where the family keeps it beside
    (GPT's choice)."""
    known = [h for h in (family.tasks.values() if family is not None else ()) if type(h.task) is type(task)]
    lm = design.arch.heads.lm if any(h.lm is not None for h in known) else None
    if not (isinstance(task, Classify | Choose) and task.summary is None):
        return Heads(lm, task=task)
    usual = next((h.pooler for h in known if h.pooler is not None), None)
    return Heads(lm, design.arch.heads.pooler or usual or Summary(), task=task)


def _body_for(design: Design) -> Design:
    """The body that a design's task head stands on: of an encoder-decoder, its encoder alone where every token has to
    be scored in sight of the whole text."""
    if design.arch.structure != "encoder-decoder" or not isinstance(design.arch.heads.task, Tag):
        return design
    return spec.edit(design, {"arch.structure": "encoder", "arch.mask": Full()})


def _by_file(design: Design, layout: Layout | None, source: tensors.Tensors, files: Mapping[str, str]) -> Design:
    """The design with what the layout leaves to the file: a head of its own where the file's two tensors differ, and a
    bias of the head where that of the file is not zero everywhere."""
    head = design.arch.heads.lm
    if layout is None or head is None:
        return design
    if layout.bias_by_file and isinstance(head, LMHead):
        biased = spec.edit(design, {"arch.heads.lm.bias": True})
        names = [files[r.theirs] for r in layout.rows(biased) if r.ours == ("lm.bias",) and r.theirs in files]
        if any(bool(source.get(name).any()) for name in names):
            design = biased
    if not layout.tied_by_file or not head.tied:
        return design
    for r in layout.rows(design):
        for alias in r.aliases:
            if alias == "lm_head.weight" and {alias, r.theirs} <= set(files):
                a, b = source.get(files[alias]), source.get(files[r.theirs])
                if not torch.equal(a, b):
                    return spec.edit(design, {"arch.heads.lm.tied": False})
    return design


def _expanded(design: Design, layout: Layout) -> list[Row]:
    """The layout's rows, one for each layer."""
    layers = {"encoder": design.dims.layers, "decoder": design.dims.layers}
    if design.arch.structure == "encoder-decoder":
        layers["decoder"] = design.dims.depth
    return expand(layout.rows(design), layers)


def _rows(design: Design, layout: Layout | None, shapes: Mapping[str, Any]) -> list[Row]:
    """The names table for this model, each row once; every parameter of the model must be in it."""
    if layout is None:
        return own.rows(shapes)
    rows = [r for r in _expanded(design, layout) if all(o in shapes for o in r.ours)]
    unnamed = sorted(set(shapes) - {o for r in rows for o in r.ours})
    if unnamed:
        raise UsageError(f"the {layout.model_type!r} layout has no name for the parameter {unnamed[0]!r}")
    return rows


def _find(
    r: Row,
    source: tensors.Tensors,
    files: Mapping[str, str],
    shapes: Mapping[str, torch.Size],
    ledger: Ledger,
    new: Collection[str],
    where: str,
) -> str | None:
    """The tensor of the file that a row reads, checked; None if the row is to be drawn afresh."""
    found = next((n for n in (r.theirs, *r.aliases) if n in files), None)
    if found is None:
        if r.ours[0].split(".")[0] in new:
            ledger.new += r.ours
            return None
        raise missing(r.theirs, source, where)
    try:
        r.read(source.blank(files[found]), shapes)
    except CheckpointError as error:
        if _part(r) == "task" in new:
            raise CheckpointError(
                f"{error}; leave labels out to read the head that is there, or draw another with new=['task']"
            ) from None
        raise
    ledger.loaded |= dict.fromkeys(r.ours, files[found])
    ledger.tied |= {files[alias]: files[found] for alias in r.aliases if alias in files and alias != found}
    return files[found]


def _account_rest(
    files: Mapping[str, str], stray: Mapping[str, str], ledger: Ledger, where: str, left: Collection[str]
) -> None:
    """Every tensor of the file that no row reads is ignored by a rule of `stray`, or an error. `left`: of parts that a
    task does without."""
    used = set(ledger.loaded.values()) | set(ledger.tied)
    for known, name in files.items():
        if name in used:
            continue
        reason = "of a part that the task leaves behind" if known in left else None
        reason = reason or next((why for pattern, why in stray.items() if re.search(pattern, known)), None)
        if reason is None:
            raise CheckpointError(f"{where} holds a tensor {name!r} for which this model has no place")
        ledger.ignored[name] = reason


def _read_row(
    r: Row,
    name: str,
    model: nn.Module,
    shapes: Mapping[str, torch.Size],
    source: tensors.Tensors,
    ledger: Ledger,
    where: str,
    device: torch.device,
    dtype: torch.dtype | None,
) -> None:
    tensor = source.blank(name) if device.type == "meta" else source.get(name)
    for ours, part in r.read(tensor, shapes):
        # a copy of its own: a slice must not keep the whole packed tensor alive, nor a file stay mapped
        value = torch.empty(part.shape, dtype=dtype or part.dtype, device=device).copy_(part)
        _set(model, ours, value)
    for alias, repeated in ledger.tied.items():
        if repeated == name and device.type != "meta" and not torch.equal(source.get(alias), tensor):
            raise CheckpointError(
                f"{where}: {alias!r} should repeat {name!r} (the config ties them) but differs from it"
            )


def _named(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by the names that tables know them by: of those that are stacked (experts), each slice has its own."""
    stacks = {
        f"{path}.{name}": getattr(module, name)
        for path, module in model.named_modules()
        for name in getattr(module, "stacked", ())
    }
    found: dict[str, Tensor] = {}
    for name, p in model.named_parameters():
        found |= {f"{name}.{i}": p[i] for i in range(len(p))} if name in stacks else {name: p}
    return found


def _set(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    if not leaf.isdigit():
        setattr(model.get_submodule(owner), leaf, nn.Parameter(value))
        return
    path, _, stack = owner.rpartition(".")
    module = model.get_submodule(path)
    whole = getattr(module, stack)
    if (whole.device, whole.dtype) != (value.device, value.dtype):  # the first of its slices
        whole = nn.Parameter(torch.empty(whole.shape, dtype=value.dtype, device=value.device))
        setattr(module, stack, whole)
    with torch.no_grad():
        whole[int(leaf)].copy_(value)


def _draw_new(model: Model, design: Design, ledger: Ledger, device: torch.device, dtype: torch.dtype) -> None:
    """Draw the heads that the user asked for; what the file holds of them is read over it."""
    heads = {name.split(".")[0] for name in ledger.new}
    parts = nn.ModuleDict({head: getattr(model, head).to_empty(device="cpu") for head in sorted(heads)})
    initialise(parts, design.arch, design.dims, 0)
    parts.to(device=device, dtype=dtype)


def _tokenizer(folder: Path, model: Model) -> Any:
    if not any((folder / n).is_file() for n in VOCABULARY):
        return None
    from stemma.text import Tokenizer

    tokenizer = Tokenizer.load(folder)
    tokenizer.check(model.dims.vocab)
    ends = model.text.eos_ids
    if tokenizer.eos_id is not None and ends and tokenizer.eos_id not in ends:
        warnings.warn(
            f"the tokenizer in {folder} ends a text with id {tokenizer.eos_id}, config.json with "
            f"{', '.join(map(str, ends))}: is it the one that the model was trained with?",
            stacklevel=3,
        )
    return tokenizer


def _owner(name: str) -> Family | None:
    try:
        return families.family(name)
    except StemmaError:
        return None


# ---------------------------------------------------------------- saving


def layout_of(design: Design, family: Family | None) -> tuple[Layout | None, dict[str, Any], str]:
    """The layout in which a design is saved, and its config.json: the family's own, else its nearest ancestor's that
    can say all of it, else Stemma's own (None), with the reason."""
    why = ""  # why the nearest layout will not do
    for relative in family.lineage if family is not None else []:
        for layout in LAYOUTS.values():
            if relative.name in layout.families:
                try:
                    data = configs.write_config(layout, design, design.arch.heads, _base(layout))
                    with torch.device("meta"):
                        _rows(design, layout, _named(Model(design.arch, design.dims)))
                    return layout, data, ""
                except (UsageError, CheckpointError) as error:
                    why = why or str(error)
    return None, own.write_config(design, family.name if family else None), why or "its family has no other"


def save(
    model: Model,
    directory: str | Path,
    *,
    layout: str | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5 * 10**9,
    shards: int | None = None,
) -> Path:
    """Write a checkpoint: all of it, or nothing if anything fails. `layout` is one of `WRITTEN`; left out, the name
    tells: `.gguf` and `.bin` (llama2.c) are files, anything else is a folder of config.json, safetensors, tokenizer
    and generation_config.json (`hf`). `shards`: the files of Meta's layout; `dtype` may be q8_0 in GGUF.

    Raises ResourceError if the disk is full or not writable, UsageError for what a layout cannot say.
    """
    directory = Path(directory)
    layout = layout_named(layout, directory)
    if shards is not None and layout != "meta":
        raise UsageError(f"shards={shards} is for layout='meta'; others are divided by size (shard_bytes)")
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
        case "gguf":
            from stemma.formats.gguf.write import save as save_gguf

            return save_gguf(model, directory, dtype=dtype)
    return _save_hf(model, directory, dtype, shard_bytes)


def layout_named(layout: str | None, target: Path) -> str:
    """The layout asked for, or else the one that a name ends in. Raises UsageError for one that is not known."""
    if layout is None:
        return {".gguf": "gguf", ".bin": "llama2c", ".pt": "fairseq"}.get(target.suffix, "hf")
    if layout not in WRITTEN:
        raise UsageError(f"layout {layout!r} is not known; use {', '.join(WRITTEN)}{did_you_mean(layout, WRITTEN)}")
    return layout


def check_weights(model: Model) -> None:
    """Raises UsageError if a model has none."""
    if model.device.type == "meta":
        raise UsageError("this model has shapes and no weights (it is on the device 'meta'): there is nothing to save")


def check_target(model: Model, directory: Path) -> None:
    """Raises UsageError if a model cannot be saved to a folder."""
    if directory.is_file():
        raise UsageError(f"{directory} is a file; a checkpoint is a folder")
    check_weights(model)
    if model.tokenizer is None and (old := next((n for n in VOCABULARY if (directory / n).is_file()), None)):
        raise UsageError(f"{directory} holds a tokenizer ({old}) and this model has none; save it to another folder")


def _save_hf(model: Model, directory: Path, dtype: str | None, shard_bytes: int) -> Path:
    check_target(model, directory)
    design: Design = replace(model.design, arch=model.arch, dims=model.dims, text=model.text)
    table, data, why = layout_of(design, model.family)
    if table is None:
        warnings.warn(f"{directory} is in Stemma's own layout, which other libraries cannot read: {why}", stacklevel=2)
    state = {k: v.detach() for k, v in _named(model).items()}
    kind = next(iter(state.values())).dtype if dtype is None else dtype_of(dtype)
    data["dtype"] = str(kind).removeprefix("torch.")
    extras = getattr(model, "extras", {})
    before = extras.get("config", {})
    if table is not None and before.get("model_type") == table.model_type:  # keys that say nothing here are kept
        respelled = {"torch_dtype", *(older for k in table.keys for older in k.older)}
        data = {k: v for k, v in before.items() if k not in respelled} | data
    if table is not None:
        data |= configs.write_labels(design.arch.heads, model.labels)
    names: dict[str, Any] = {}
    heads = design.arch.heads
    bare = table is not None and not any((heads.lm, heads.pair, heads.detect, heads.task))
    for r in _rows(design, table, state):
        size = sum(state[o].numel() for o in r.ours) * kind.itemsize
        name = r.theirs
        if table is not None and name.startswith(table.prefix):
            body = "" if bare else table.bodies.get(data["architectures"][0], table.prefix)
            name = body + name.removeprefix(table.prefix)
        names[name] = (size, lambda r=r: _on_cpu(r.write(state), kind))
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


def _replaced(name: str) -> bool:
    """Whether a file is part of a checkpoint, which a new one replaces as a whole: a shard or a token list of the old
    one among the new files would be read as theirs."""
    return name in (*CONFIGS, *TOKENIZER, *sentences.FILES) or WEIGHTS.fullmatch(name) is not None


def _on_cpu(tensor: Tensor, kind: torch.dtype) -> Tensor:
    return tensor.to(device="cpu", dtype=kind)


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
    return {k: v for k, v in (ids | {k: before.get(k) for k in configs.GENERATION}).items() if v is not None}


__all__ = ["LAYOUTS", "attach", "build", "layout_of", "load", "read_design", "save", "with_task"]
