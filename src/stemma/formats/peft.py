"""Adapters in PEFT's directory format: adapter_config.json and adapter_model.safetensors, both ways.

The names in the file are those of the base model's publisher: `base_model.model.<module>.lora_A.weight`. Where the
publisher packs several of our matrices into one (GPT-2's and GLM's q, k, v), its one adapter is ours with a shared A;
an adapter with an A for each of them is written with the rank of all together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stemma import disk
from stemma.errors import CheckpointError, UsageError, brief, nearest
from stemma.formats import peft_prompts, safe, tensors
from stemma.formats.layouts import file_rows, layout_of
from stemma.formats.names import ByHead, Row
from stemma.formats.weights import design_of
from stemma.nn.model import Model
from stemma.nn.parts import Answer, Choose, Classify, Tag
from stemma.rewrites.adapters import layer_of, names
from stemma.rewrites.engine import apply
from stemma.rewrites.kinds import Adapter, LoRA, Rewrite, Trainable
from stemma.rewrites.lora import Down, LoRALinear
from stemma.rewrites.modules import load_tensor
from stemma.rewrites.paths import PlainTensors, matching_names, patterns, plain_modules, plain_type

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
BESIDE = ".base_layer."  # in the names of a bias whose matrix has an adapter
A, B, LENGTH = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
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
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
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


# ---------------------------------------------------------------- the publisher's modules


@dataclass(frozen=True)
class Packed:
    """A linear layer of the publisher: our modules whose matrices it holds, in the order in which it packs them."""

    ours: tuple[str, ...]
    rows: Row
    transposed: bool

    @property
    def share(self) -> tuple[str, ...]:
        """The last names of the modules, where there are several."""
        return tuple(path.rpartition(".")[2] for path in self.ours) if len(self.ours) > 1 else ()

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """A tensor over all outputs (E ...) as one for each of our modules."""
        shapes = [torch.Size((size, *tensor.shape[1:])) for size in sizes]
        if isinstance(self.rows.op, ByHead):
            return list(self.rows.op.read(tensor, shapes))
        return list(tensor.split(list(sizes)))

    def join(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return self.rows.op.write(parts) if isinstance(self.rows.op, ByHead) else torch.cat(parts)


@dataclass(frozen=True)
class Table:
    """The publisher's names of a model: `linear` layers by module, and the rows of all other tensors by name."""

    linear: dict[str, Packed]
    rows: dict[str, Row]


def table(model: Model) -> Table:
    """The publisher's names for the modules of a model."""
    design = design_of(model)
    layout, data, _ = layout_of(design, model.family)
    shapes = PlainTensors(model, slices=True)
    rows = file_rows(design, layout, data, shapes)
    linear = {}
    kinds = {path: plain_type(module) for path, module in plain_modules(model)}
    for name, r in rows.items():
        paths = tuple(o.removesuffix(".weight") for o in r.ours)
        both = zip(r.ours, paths, strict=True)
        plain = all(o.endswith(".weight") and issubclass(kinds.get(p, nn.Module), nn.Linear) for o, p in both)
        if plain and (r.op is None or isinstance(r.op, ByHead)):
            linear[name.removesuffix(".weight")] = Packed(paths, r, r.transposed)
    return Table(linear, rows)


# ---------------------------------------------------------------- reading


def attach(model: Model, folder: str | Path, name: str | None = None) -> Model:
    """Put the adapter in `folder` beside the weights of `model`, in place, under `name` ("default"; where that is
    taken, the folder's). Raises CheckpointError for an adapter of another kind or for other shapes, UsageError for a
    name that is taken."""
    folder = Path(folder)
    name = name or ("default" if "default" not in names(model) else folder.resolve().name)
    if name in names(model):
        raise UsageError(f"the model has an adapter {name!r} already; give this one another name")
    config = read_config(folder)
    state = _state(folder)
    here = table(model)
    if config["peft_type"] in peft_prompts.KINDS:
        new: Rewrite = peft_prompts.rewrite_of(model, folder, config, state, name)
        own = state.pop(peft_prompts.TENSOR)
        state = {key.removeprefix(peft_prompts.OUTER): tensor for key, tensor in state.items()}
        _, rest = _sorted(folder, state, here)
        apply(model, (new, *_learning(rest, here)))
        peft_prompts.fill(model, name, own)
        _put(model, rest, here)
        return model
    loras, rest = _sorted(folder, state, here)
    groups = _groups(folder, config, loras, here, model)
    adapters = [
        LoRA(
            patterns(model, paths),
            r,
            alpha,
            config["lora_dropout"],
            config["use_rslora"],
            config["use_dora"],
            share,
            name,
        )
        for (r, alpha, share), paths in groups.items()
    ]
    apply(model, (*adapters, *_learning(rest, here)))
    for module, parts in loras.items():
        _fill(model, here.linear[module], parts)
    _put(model, rest, here)
    return model


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
    if isinstance(kind, str) and kind in peft_prompts.KINDS:
        return config
    if kind != "LORA":
        known = ", ".join(peft_prompts.KINDS)
        raise CheckpointError(f"{path}: peft_type={brief(kind)} is no adapter that is read here; LORA, {known} are")
    for key, harmless in UNKNOWN.items():
        if config.get(key) not in harmless:
            raise CheckpointError(f"{path}: {key}={brief(config[key])} is not supported")
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
    return {name.removeprefix(PREFIX).replace(BESIDE, "."): tensor for name, tensor in found.items()}


def _sorted(
    folder: Path, state: Mapping[str, Tensor], here: Table
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The parts of adapters by module, and whole tensors by name. Raises CheckpointError for what has no place."""
    loras: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found = re.fullmatch(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector(?:\.weight)?)", name)
        if found is None and (name in here.rows or _repeats(name, tensor, state, here)):
            rest |= {name: tensor} if name in here.rows else {}
            continue
        module = found[1] if found is not None else name
        if found is None or module not in here.linear:
            like = nearest(module, [*here.linear, *here.rows])
            raise CheckpointError(
                f"{folder}: the model has no place for {name!r}" + (f"; the nearest is {like[0]!r}" if like else "")
            )
        loras.setdefault(module, {})[found[2].removesuffix(".weight") if found[2].startswith(LENGTH) else found[2]] = (
            tensor
        )
    for module, parts in loras.items():
        if missing := {A, B} - parts.keys():
            raise CheckpointError(f"{folder}: {module} lacks {sorted(missing)[0]}")
    return loras, rest


def _repeats(name: str, tensor: Tensor, state: Mapping[str, Tensor], here: Table) -> bool:
    """Whether a tensor is another one of the file under a second name that the publisher has for it."""
    first = next((main for main, r in here.rows.items() if name in r.aliases), None)
    return first is not None and first in state and torch.equal(state[first], tensor)


def _groups(
    folder: Path, config: Mapping[str, Any], loras: Mapping[str, Mapping[str, Tensor]], here: Table, model: Model
) -> dict[tuple[int, float, tuple[str, ...]], list[str]]:
    """Our modules by (rank, alpha, share). Raises CheckpointError for shapes that do not fit."""
    groups: dict[tuple[int, float, tuple[str, ...]], list[str]] = {}
    shapes = PlainTensors(model).shapes
    for module, parts in loras.items():
        packed = here.linear[module]
        own = [shapes[f"{path}.weight"] for path in packed.ours]
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


def _fill(model: Model, packed: Packed, parts: Mapping[str, Tensor]) -> None:
    """Give our modules the tensors of one of the publisher's."""
    modules = [model.get_submodule(path) for path in packed.ours]
    sizes = [m.shapes["weight"][0] for m in modules if isinstance(m, LoRALinear)]
    lengths = packed.split(parts[LENGTH], sizes) if LENGTH in parts else [None] * len(sizes)
    for module, up, length in zip(modules, packed.split(parts[B], sizes), lengths, strict=True):
        assert isinstance(module, LoRALinear)
        with torch.no_grad():
            module.down.weight.copy_(parts[A])
            module.up.copy_(up)
            if module.length is not None and length is not None:
                module.length.copy_(length)


# ---------------------------------------------------------------- writing


def save(model: Model, directory: str | Path, *, base: str = "", name: str | None = None) -> Path:
    """Write an adapter of the model (the only one, or `name`), with what else learns beside it. `base`: what the file
    names as the model it belongs to. Raises UsageError where the format cannot say it."""
    directory = Path(directory)
    known = names(model)
    if name is None and len(known) == 1:
        name = known[0]
    if name not in known:
        raise UsageError(
            f"the model has the adapters {', '.join(known)}: name one of them" if known else "the model has no adapter"
        )
    kinds = {type(r): r for r in model.rewrites if isinstance(r, Adapter) and r.name == name}
    if len(kinds) > 1:
        words = " and ".join(kind.__name__ for kind in kinds)
        raise UsageError(f"PEFT's format keeps one kind of adapter, and {name!r} is {words}: name them apart")
    here = table(model)
    state: dict[str, Tensor] = {}
    spec = next(iter(kinds.values()))
    if not isinstance(spec, LoRA):
        config, own = peft_prompts.written(model, spec, base, _task(model))
        whole, _ = _beside(model, here, None, state)
        state = {peft_prompts.OUTER + key: tensor for key, tensor in state.items()}
        _write(model, directory, config | {"modules_to_save": whole or None}, state | {peft_prompts.TENSOR: own})
        return directory
    ranks: dict[str, tuple[int, float]] = {}
    for module, packed in here.linear.items():
        layers = [layer_of(model.get_submodule(path), name) for path in packed.ours]
        if any(layers):
            ranks[module] = _written(model, module, packed, layers, state)
    covered = {path for module in ranks for path in here.linear[module].ours}
    if missed := sorted(path for path in _every(model, name) if path not in covered):
        raise UsageError(f"PEFT's format has no name for the adapter at {missed[0]}; merge it instead")
    whole, bias = _beside(model, here, covered, state)
    config = _config(model, name, base, ranks, here, whole, bias)
    _write(model, directory, config, {PREFIX + key: tensor for key, tensor in state.items()})
    return directory


def _write(model: Model, directory: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    with tensors.whole(directory, lambda file: file in (CONFIG, WEIGHTS, "adapter_model.bin")) as scratch:
        safe.write_shard(scratch / WEIGHTS, {name: _entry(tensor) for name, tensor in state.items()})
        if model.tokenizer is not None:
            model.tokenizer.save(scratch)
        tensors.write_json(scratch / CONFIG, config)


def _entry(tensor: Tensor) -> safe.Entry:
    return safe.Entry(tensor.shape, tensor.dtype, lambda: tensor)


def _every(model: Model, name: str) -> list[str]:
    return [path for path, module in plain_modules(model) if layer_of(module, name) is not None]


def _written(
    model: Model, module: str, packed: Packed, layers: Sequence[LoRALinear | None], state: dict[str, Tensor]
) -> tuple[int, float]:
    """Put the tensors of one of the publisher's modules into `state`. Returns its rank and scale."""
    own = [layer for layer in layers if layer is not None]
    downs: dict[int, Down] = {id(layer.down): layer.down for layer in own}
    places, rank = {}, 0
    for key, down in downs.items():
        places[key], rank = rank, rank + down.weight.shape[0]
    scale = own[0].spec.scale
    ups = []
    for path, layer in zip(packed.ours, layers, strict=True):
        out = PlainTensors(model).shapes[f"{path}.weight"][0]
        up = torch.zeros(out, rank)
        if layer is not None:
            at = places[id(layer.down)]
            up[:, at : at + layer.up.shape[1]] = layer.up.detach().float().cpu() * (layer.spec.scale / scale)
        ups.append(up)
    state[f"{module}.{A}"] = torch.cat([down.weight.detach().float().cpu() for down in downs.values()])
    state[f"{module}.{B}"] = packed.join(ups).contiguous()
    if any(layer.length is not None for layer in own):
        state[f"{module}.{LENGTH}"] = packed.join(
            [_length(model, p, x) for p, x in zip(packed.ours, layers, strict=True)]
        )
    return rank, scale


def _length(model: Model, path: str, layer: LoRALinear | None) -> Tensor:
    """DoRA's lengths of a module's outputs; those of its plain weight where it has no adapter."""
    if layer is not None and layer.length is not None:
        return layer.length.detach().float().cpu()
    weight = model.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    return weight.detach().float().norm(dim=1).cpu()


def _beside(model: Model, here: Table, covered: set[str] | None, state: dict[str, Tensor]) -> tuple[list[str], str]:
    """Put the plain parameters that learn into `state`. Returns the publisher's modules that are whole in it, and what
    PEFT calls the choice of biases. `covered`: our modules with a LoRA adapter; None: the file is of a kind without
    such a choice."""
    learns = {
        name for r in model.rewrites if isinstance(r, Trainable) for name in matching_names(model, "Trainable", r.where)
    }
    if not learns:
        return [], "none"
    plain = PlainTensors(model, slices=True)
    biases = {name for name in plain if name.endswith(".bias")}
    bias = "none"
    if covered is None:
        wanted, covered = set(), set()
    elif learns >= biases:
        bias, wanted = "all", biases
    elif (own := {f"{path}.bias" for path in covered} & biases) and learns >= own:
        bias, wanted = "lora_only", own
    else:
        wanted = set()
    whole: list[str] = []
    for name, r in here.rows.items():
        if not (set(r.ours) & learns):
            continue
        if not set(r.ours) <= learns:
            raise UsageError(f"PEFT's format keeps {name} whole, and only a part of it learns")
        module, _, kind = name.rpartition(".")
        key = f"{module}{BESIDE}{kind}" if set(r.ours) <= {f"{path}.bias" for path in covered} else name
        state[key] = r.write(plain).detach().float().cpu().contiguous()
        if not set(r.ours) <= wanted:
            whole.append(module)
            state |= {alias: state[key].clone() for alias in r.aliases if alias.startswith(f"{module}.")}
    outer = [m for m in dict.fromkeys(whole) if not any(m.startswith(f"{other}.") for other in whole)]
    return outer, bias


def _config(
    model: Model,
    name: str,
    base: str,
    ranks: Mapping[str, tuple[int, float]],
    here: Table,
    whole: Sequence[str],
    bias: str,
) -> dict[str, Any]:
    """adapter_config.json."""
    spec = next(r for r in model.rewrites if isinstance(r, LoRA) and r.name == name)
    alphas = {m: scale * (rank**0.5 if spec.rslora else rank) for m, (rank, scale) in ranks.items()}
    rank = Counter(r for r, _ in ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": _task(model),
        "base_model_name_or_path": base or None,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": spec.dropout,
        "target_modules": list(_targets(ranks, here)),
        "modules_to_save": list(whole) or None,
        "bias": bias,
        "fan_in_fan_out": any(here.linear[m].transposed for m in ranks),
        "use_rslora": spec.rslora,
        "use_dora": spec.dora,
        "rank_pattern": {m: r for m, (r, _) in ranks.items() if r != rank},
        "alpha_pattern": {m: a for m, a in alphas.items() if a != alpha},
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _targets(ranks: Mapping[str, Any], here: Table) -> Iterator[str]:
    """Names of modules as PEFT matches them: the last part where all modules of that name have an adapter."""
    ends: dict[str, list[str]] = {}
    for module in here.linear:
        ends.setdefault(module.rpartition(".")[2], []).append(module)
    for end, modules in ends.items():
        own = [m for m in modules if m in ranks]
        yield from [end] if own and len(own) == len(modules) and not end.isdigit() else own


def _task(model: Model) -> str | None:
    match model.arch.heads.task:
        case Classify():
            return "SEQ_CLS"
        case Tag():
            return "TOKEN_CLS"
        case Answer():
            return "QUESTION_ANS"
        case Choose():
            return None
    if model.arch.heads.lm is None:
        return "FEATURE_EXTRACTION"
    return {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}.get(model.arch.structure)
