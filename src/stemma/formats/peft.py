"""Adapters in PEFT's directory format: adapter_config.json and adapter_model.safetensors, both ways.

The names in the file are those of the base model's publisher: `base_model.model.<module>.lora_A.weight`. Where the
publisher packs several of our matrices into one (GPT-2's and GLM's q, k, v), its one adapter is ours with a shared A;
an adapter with an A for each of them is written with the rank of all together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma import disk
from stemma.errors import CheckpointError, UsageError, brief, nearest
from stemma.formats import adapter_heads, peft_experts, peft_prompts, safe, tensors
from stemma.formats.peft_names import (
    BESIDE,
    CONFIG,
    EXPERTS,
    LENGTH,
    PREFIX,
    ROWS,
    TABLE_A,
    TABLE_B,
    WEIGHTS,
    A,
    B,
    Packed,
    Table,
    embeddings,
    table,
)
from stemma.formats.peft_write import contents, save
from stemma.nn import vocabulary
from stemma.nn.model import Model
from stemma.rewrites.adapters import layer_of, names, rows_of
from stemma.rewrites.engine import apply
from stemma.rewrites.kinds import LoRA, Rewrite, Trainable, TrainableTokens
from stemma.rewrites.modules import load_tensor
from stemma.rewrites.paths import PlainTensors, patterns

__all__ = ["attach", "base_of", "contents", "is_adapter", "read_config", "save"]

# what adapter_config.json says of LoRA, and what a file without a key means
DEFAULTS: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 8.0,
    "lora_dropout": 0.0,
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "bias": "none",
}
# keys of adapter_config.json that change what is computed in a way that is not built here, with their harmless values
UNKNOWN: dict[str, tuple[Any, ...]] = {
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "megatron_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter in this format."""
    return (folder / CONFIG).is_file()


# ---------------------------------------------------------------- reading


def attach(model: Model, folder: str | Path, name: str | None = None) -> Model:
    """Put the adapter in `folder` beside the weights of `model`, in place, under `name` ("default"; where that is
    taken, the folder's). A head for a task that it was tuned with, and the model lacks, takes the place of the model's
    heads; new tokens whose rows learnt get rows. Raises CheckpointError for an adapter of another kind or for other
    shapes, UsageError for a name that is taken."""
    folder = Path(folder)
    name = name or ("default" if "default" not in names(model) else folder.resolve().name)
    if name in names(model):
        raise UsageError(f"the model has an adapter {name!r} already; give this one another name")
    config = read_config(folder)
    state = _state(folder)
    _grow(model, folder, config)
    adapter_heads.equip(model, folder, config, state)
    here, found = table(model), Contents()
    own = state.pop(peft_prompts.TENSOR, None)
    new: list[Rewrite] = []
    if config["peft_type"] in peft_prompts.KINDS:
        new.append(peft_prompts.rewrite_of(model, folder, config, own, name))
    _sort(folder, state, here, found)
    if config["peft_type"] == "LORA":
        new += peft_experts.rewrites_of(folder, config, found.experts, here, model, name)
        new += _adapters(_groups(folder, config, found.loras, here), config, here, model, name)
    tokens = _tokens(folder, config, found.rows, here)
    new += [TrainableTokens(ids, where=where, name=name) for ids, where in tokens.items()]
    apply(model, (*new, *_learning(found.rest, here)))
    if own is not None:
        peft_prompts.fill(model, name, own)
    for module, parts in found.loras.items():
        _fill(model, name, here.linear[module], parts)
    for module, nests in found.experts.items():
        peft_experts.fill(model, name, here.experts[module], nests)
    for module, rows in found.rows.items():
        _fill_rows(model, name, here.linear[module], rows)
    _put(model, found.rest | found.fixed, here)
    return model


@dataclass
class Contents:
    """The tensors of a directory by the publisher's names: parts of low-rank adapters by module, those of `experts` by
    module and by how they are nested, `rows` of tables by module, and whole tensors, of which those of `rest` learn and
    those of `fixed` stand beside an adapter."""

    loras: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    experts: dict[str, dict[str, dict[str, Tensor]]] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    rest: dict[str, Tensor] = field(default_factory=dict)
    fixed: dict[str, Tensor] = field(default_factory=dict)


def _adapters(
    groups: Mapping[tuple[int, float, tuple[str, ...]], list[str]],
    config: Mapping[str, Any],
    here: Table,
    model: Model,
    name: str,
) -> Iterator[LoRA]:
    """The rewrites of low-rank adapters, one for each rank and scale."""
    alone = {path for packed in here.linear.values() for path in packed.ours if packed.looked_up or path == "lm"}
    for (rank, alpha, share), paths in groups.items():
        where = (*patterns(model, [p for p in paths if p not in alone]), *(p for p in paths if p in alone))
        rest = config["lora_dropout"], config["use_rslora"], config["use_dora"]
        yield LoRA(where, rank, alpha, *rest, share, name)


def _grow(model: Model, folder: Path, config: Mapping[str, Any]) -> None:
    """Give a model the rows of tokens that it lacks and an adapter has. Raises CheckpointError where the adapter leaves
    out some of those between."""
    given = _token_ids(config)
    lists = list(given.values()) if isinstance(given, dict) else [given]
    named = {i for ids in lists if isinstance(ids, list) for i in ids if type(i) is int and i >= model.dims.vocab}
    if not named:
        return
    if len(named) < (many := max(named) + 1 - model.dims.vocab):
        raise CheckpointError(
            f"{folder} has rows of {len(named):,} tokens that the model lacks, up to {max(named)}, and those of the "
            f"model go from 0 to {model.dims.vocab - 1}, so {many:,} are missing: it is not the adapter's base"
        )
    vocabulary.widen(model, model.dims.vocab + many, model.dims.vocab)


def _token_ids(config: Mapping[str, Any]) -> Any:
    """The ids of tokens whose rows learn, as adapter_config.json has them: a list, or one by module."""
    return config.get("trainable_token_indices") or config.get("token_indices") or []


def _tokens(
    folder: Path, config: Mapping[str, Any], rows: Mapping[str, Tensor], here: Table
) -> dict[tuple[int, ...], tuple[str, ...]]:
    """The tokens whose rows learn, and in which tables."""
    given = _token_ids(config)
    found: dict[tuple[int, ...], tuple[str, ...]] = {}
    if given and not rows:
        raise CheckpointError(f"{folder}: trainable_token_indices={brief(given)}, and the file holds no rows of tokens")
    for module in rows:
        ends = [k for k in given if module == k or module.endswith(f".{k}")] if isinstance(given, dict) else []
        ids = given[ends[0]] if ends else given
        if type(ids) is not list or any(type(i) is not int for i in ids) or list(rows[module].shape[:1]) != [len(ids)]:
            raise CheckpointError(
                f"{folder}: {len(rows[module])} rows of {module} and trainable_token_indices={brief(given)} "
                "do not agree"
            )
        found[tuple(ids)] = (*found.get(tuple(ids), ()), *here.linear[module].ours)
    return found


def _learning(rest: Mapping[str, Tensor], here: Table) -> tuple[Rewrite, ...]:
    """What says that the plain parameters of a file learn."""
    learns = tuple(sorted({ours for name in rest for ours in here.rows[name].ours}))
    return (Trainable(learns),) if learns else ()


def _put(model: Model, rest: Mapping[str, Tensor], here: Table) -> None:
    """Give plain parameters the tensors of a file."""
    shapes = PlainTensors(model).shapes
    for name, tensor in rest.items():
        for ours, value in here.rows[name].read(tensor, shapes):
            load_tensor(model, ours, value, model.device, model.dtype)


def base_of(folder: Path) -> str:
    """The path or hub id of the model that an adapter belongs to. Raises CheckpointError where it names none, or one
    that is gone."""
    base = disk.read_object(folder / CONFIG).get("base_model_name_or_path")
    how = f"give it: stemma.load(MODEL, adapter={str(folder)!r})"
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{folder} is an adapter and does not name the model it belongs to; {how}")
    if Path(base).is_absolute() and not Path(base).exists():
        raise CheckpointError(f"{folder} is an adapter of {base}, which is not there any more; {how}")
    return base


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json, with defaults filled in. Raises CheckpointError for a kind that is not read."""
    path = folder / CONFIG
    config = disk.read_object(path)
    kind = config.get("peft_type")
    if isinstance(kind, str) and (kind in peft_prompts.KINDS or kind == "TRAINABLE_TOKENS"):
        return config
    if kind != "LORA":
        known = ", ".join(("TRAINABLE_TOKENS", *peft_prompts.KINDS))
        raise CheckpointError(f"{path}: peft_type={brief(kind)} is no adapter that is read here; LORA, {known} are")
    for key, harmless in UNKNOWN.items():
        if config.get(key) not in harmless:
            raise CheckpointError(f"{path}: {key}={brief(config[key])} is not supported")
    stacked = config.get("target_parameters") or []
    if type(stacked) is not list or any(type(p) is not str or not p.endswith(EXPERTS) for p in stacked):
        raise CheckpointError(f"{path}: target_parameters={brief(stacked)} is not supported; {', '.join(EXPERTS)} are")
    for key, default in DEFAULTS.items():
        value = config.get(key)
        value = config[key] = default if value is None else value
        number = isinstance(default, float) and isinstance(value, int | float) and not isinstance(value, bool)
        if not (number or type(value) is type(default)):
            raise CheckpointError(f"{path}: {key}={brief(value)} is of a wrong type; one such as {default!r} is right")
    return config


def _state(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter by the names of the base model's modules."""
    path = folder / WEIGHTS
    if path.is_file():
        file = safe.SafeFile(path)
        if odd := [name for name, place in file.places.items() if place.kind not in safe.TYPES]:
            raise CheckpointError(f"{path}: {odd[0]!r} is of type {file.places[odd[0]].kind}, which no adapter has")
        found = {name: file.get(name) for name in file.places}
    elif (old := folder / "adapter_model.bin").is_file():
        found = tensors.plain(old)
    else:
        raise CheckpointError(f"{folder} holds {CONFIG} and no {WEIGHTS}")
    return {name.removeprefix(PREFIX).removeprefix(peft_prompts.OUTER): tensor for name, tensor in found.items()}


PART = re.compile(
    rf"(.+?)\.({re.escape(A)}|{re.escape(B)}|{LENGTH}|{TABLE_A}|{TABLE_B}|{re.escape(ROWS)}|{ROWS.rpartition('.')[2]})(?:\.weight)?"
)


def _sort(folder: Path, state: Mapping[str, Tensor], here: Table, found: Contents) -> None:
    """Put the tensors of a directory in their places. Raises CheckpointError for what has none."""
    plain = {name.replace(BESIDE, "."): tensor for name, tensor in state.items() if PART.fullmatch(name) is None}
    beside = {name.replace(BESIDE, ".") for name in state if BESIDE in name and name.endswith(".weight")}
    for name, tensor in plain.items():
        if name in here.rows:
            (found.fixed if name in beside else found.rest)[name] = tensor
        elif not _repeats(name, tensor, plain, here):
            raise _misplaced(folder, name, here)
    for name, tensor in state.items():
        if (match := PART.fullmatch(name)) is None:
            continue
        module, part = match[1], match[2]
        if (stacked := module.removesuffix(BESIDE.rstrip("."))) in here.experts:
            found.experts.setdefault(stacked, {}).setdefault(module, {})[part] = tensor
            continue
        if module not in here.linear:
            raise _misplaced(folder, name, here)
        if part.endswith(ROWS.rpartition(".")[2]):
            found.rows[module] = tensor
        else:  # of a table that is looked up, A and B lie across
            across = part in (TABLE_A, TABLE_B)
            part = {TABLE_A: B, TABLE_B: A}.get(part, part)
            found.loras.setdefault(module, {})[part] = tensor.t() if across else tensor
    for module, parts in found.loras.items():
        if missing := {A, B} - parts.keys():
            raise CheckpointError(f"{folder}: {module} lacks {sorted(missing)[0]}")
    if here.tied is not None:
        _check_tied(folder, here, found, plain)


def _misplaced(folder: Path, name: str, here: Table) -> CheckpointError:
    like = nearest(name, [*here.linear, *here.rows])
    return CheckpointError(
        f"{folder}: the model has no place for {name!r}" + (f"; the nearest is {like[0]!r}" if like else "")
    )


def _check_tied(folder: Path, here: Table, found: Contents, plain: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError where embeddings learnt apart from the head that is tied to them."""
    table, head = embeddings(here.linear), here.tied
    rows = found.rows.pop(head, None) if head is not None else None
    apart = f"{table}.weight" in found.rest and f"{head}.weight" not in plain
    if apart or (rows is not None and not (table in found.rows and torch.equal(rows, found.rows[table]))):
        raise CheckpointError(
            f"{folder}: {table} learnt apart from {head}, and in this model the two are one matrix; its adapters keep "
            "both (ensure_weight_tying)"
        )


def _repeats(name: str, tensor: Tensor, state: Mapping[str, Tensor], here: Table) -> bool:
    """Whether a tensor is another one of the file under a second name that the publisher has for it."""
    first = next((main for main, r in here.rows.items() if name in r.aliases), None)
    return first is not None and first in state and torch.equal(state[first], tensor)


def _groups(
    folder: Path, config: Mapping[str, Any], loras: Mapping[str, Mapping[str, Tensor]], here: Table
) -> dict[tuple[int, float, tuple[str, ...]], list[str]]:
    """Our modules by (rank, alpha, share). Raises CheckpointError for shapes that do not fit."""
    groups: dict[tuple[int, float, tuple[str, ...]], list[str]] = {}
    for module, parts in loras.items():
        packed = here.linear[module]
        own = packed.shapes
        rank = parts[A].shape[0]
        for part, want in (
            (A, [rank, own[0][1]]),
            (B, [sum(s[0] for s in own), rank]),
            (LENGTH, [sum(s[0] for s in own)]),
        ):
            if part in parts and list(parts[part].shape) != want:
                raise CheckpointError(
                    f"{folder}: {module}.{part} has shape {list(parts[part].shape)}, and this model needs {want}"
                )
        if config["use_dora"] and (packed.looked_up or module == here.tied):
            raise CheckpointError(f"{folder}: use_dora={config['use_dora']} is not supported for {module}")
        if (LENGTH in parts) != config["use_dora"]:
            raise CheckpointError(f"{folder}: use_dora={config['use_dora']} and the tensors of {module} do not agree")
        alpha = _of_pattern(config["alpha_pattern"], module, config["lora_alpha"])
        groups.setdefault((rank, float(alpha), packed.share), []).extend(packed.ours)
    return groups


def _of_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value that PEFT gives a module: of the first pattern that its name ends in."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern.removeprefix('^')})" if not pattern.startswith("^") else pattern, module):
            return value
    return default


def _fill(model: Model, name: str, packed: Packed, parts: Mapping[str, Tensor]) -> None:
    """Give our modules the tensors of one of the publisher's."""
    sizes = [size for size, _ in packed.shapes]
    lengths = packed.split(parts[LENGTH], sizes) if LENGTH in parts else [None] * len(sizes)
    for path, up, length in zip(packed.ours, packed.split(parts[B], sizes), lengths, strict=True):
        layer = layer_of(model.get_submodule(path), name)
        assert layer is not None
        with torch.no_grad():
            layer.down.weight.copy_(parts[A])
            layer.up.copy_(up)
            if layer.length is not None and length is not None:
                layer.length.copy_(length)


def _fill_rows(model: Model, name: str, packed: Packed, rows: Tensor) -> None:
    part = rows_of(model.get_submodule(packed.ours[0]), name)
    with torch.no_grad():
        part.own.copy_(rows)
