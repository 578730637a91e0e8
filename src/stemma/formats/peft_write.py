"""Adapters of a model written as PEFT's directories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma.errors import UsageError
from stemma.formats import peft_experts, peft_prompts, safe, tensors
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
from stemma.nn.model import Model
from stemma.nn.parts import Answer, Choose, Classify, Tag
from stemma.rewrites.adapters import layer_of, names, rows_of
from stemma.rewrites.kinds import Adapter, LoRA, Prefix, SoftPrompt, Trainable, TrainableTokens
from stemma.rewrites.lora import Down, LoRALinear
from stemma.rewrites.paths import PlainTensors, matching_names, plain_modules


def save(model: Model, directory: str | Path, *, base: str = "", name: str | None = None) -> Path:
    """Write an adapter of the model (the only one, or `name`), with what else learns beside it. `base`: what the file
    names as the model it belongs to. Raises UsageError where the format cannot say it."""
    directory = Path(directory)
    config, state = contents(model, base, name)
    with tensors.whole(directory, lambda file: file in (CONFIG, WEIGHTS, "adapter_model.bin")) as scratch:
        safe.write_shard(scratch / WEIGHTS, {key: _entry(tensor) for key, tensor in state.items()})
        if model.tokenizer is not None:
            model.tokenizer.save(scratch)
        tensors.write_json(scratch / CONFIG, config)
    return directory


def contents(model: Model, base: str = "", name: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save` writes: adapter_config.json, and the tensors by name."""
    known = names(model)
    if name is None and len(known) == 1:
        name = known[0]
    if name not in known:
        raise UsageError(
            f"the model has the adapters {', '.join(known)}: name one of them" if known else "the model has no adapter"
        )
    specs = [r for r in model.rewrites if isinstance(r, Adapter) and r.name == name]
    kinds = dict.fromkeys(type(r) for r in specs)
    if len(kinds) > 1 and (SoftPrompt in kinds or Prefix in kinds):
        words = " and ".join(kind.__name__ for kind in kinds)
        raise UsageError(f"PEFT's format keeps one kind of adapter, and {name!r} is {words}: name them apart")
    here = table(model)
    state: dict[str, Tensor] = {}
    if isinstance(specs[0], SoftPrompt | Prefix):
        config, own = peft_prompts.written(model, specs[0], base, _task(model))
        whole, _ = _beside(model, here, None, state)
        state = {peft_prompts.OUTER + key: tensor for key, tensor in state.items()}
        return config | {"modules_to_save": whole or None}, state | {peft_prompts.TENSOR: own}
    ranks: dict[str, tuple[int, float]] = {}
    for module, packed in here.linear.items():
        layers = [layer_of(model.get_submodule(path), name) for path in packed.ours]
        if any(layers):
            ranks[module] = _written(model, module, packed, layers, state)
    stacked = peft_experts.written(model, name, here, state)
    covered = {path for module in ranks for path in here.linear[module].ours}
    if missed := sorted(path for path in _every(model, name) if path not in covered):
        raise UsageError(f"PEFT's format has no name for the adapter at {missed[0]}; merge it instead")
    tokens = _rows(model, name, here, [r for r in specs if isinstance(r, TrainableTokens)], state)
    whole, bias = _beside(model, here, covered, state)
    if ranks or stacked:
        config = _config(model, name, base, ranks | stacked, here, whole, bias)
        config["trainable_token_indices"] = tokens or None
    else:
        config = _of_tokens(model, base, tokens, whole, bias)
        state = {key.replace(f".{ROWS}", f".{ROWS.rpartition('.')[2]}"): tensor for key, tensor in state.items()}
    return config, {PREFIX + key: tensor for key, tensor in state.items()}


def _rows(
    model: Model, name: str, here: Table, specs: Sequence[TrainableTokens], state: dict[str, Tensor]
) -> dict[str, list[int]]:
    """Put rows of tables that learn alone into `state`. Returns their ids by the publisher's module."""
    found: dict[str, list[int]] = {}
    for spec in specs:
        for path in (p for p, m in plain_modules(model) if any(p == w for w in spec.where)):
            module = here.module_of(path)
            assert module is not None
            state[f"{module}.{ROWS}"] = rows_of(model.get_submodule(path), name).own.detach().float().cpu()
            found[module] = list(spec.ids)
    return found


def _of_tokens(
    model: Model, base: str, tokens: Mapping[str, list[int]], whole: Sequence[str], bias: str
) -> dict[str, Any]:
    """adapter_config.json where rows of tables are all that learns."""
    distinct = {tuple(ids) for ids in tokens.values()}
    if whole or bias != "none" or len(distinct) > 1:
        raise UsageError(
            "PEFT keeps rows of tokens alone, and with them a LoRA adapter; what else learns here has no place"
        )
    return {
        "peft_type": "TRAINABLE_TOKENS",
        "task_type": _task(model),
        "base_model_name_or_path": base or None,
        "target_modules": list(tokens),
        "token_indices": list(next(iter(distinct))),
        "init_weights": True,
        "inference_mode": True,
    }


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
    for (out, _), layer in zip(packed.shapes, layers, strict=True):
        up = torch.zeros(out, rank)
        if layer is not None:
            at = places[id(layer.down)]
            up[:, at : at + layer.up.shape[1]] = layer.up.detach().float().cpu() * (layer.spec.scale / scale)
        ups.append(up)
    first, second = torch.cat([d.weight.detach().float().cpu() for d in downs.values()]), packed.join(ups).contiguous()
    if packed.looked_up:
        state[f"{module}.{TABLE_A}"], state[f"{module}.{TABLE_B}"] = second.t().contiguous(), first.t().contiguous()
        return rank, scale
    state[f"{module}.{A}"], state[f"{module}.{B}"] = first, second
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
            if here.tied is not None and module == embeddings(here.linear):  # PEFT would take them apart
                state[f"{here.tied}.weight"] = state[key].clone()
                whole.append(here.tied)
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
    stacked = [module for module in ranks if module in here.experts]
    if stacked and len(set(ranks.values())) > 1:
        raise UsageError("PEFT's format keeps one rank and scale where experts have an adapter")
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
        "target_parameters": list(EXPERTS) if stacked else None,
        "modules_to_save": list(whole) or None,
        "bias": bias,
        "fan_in_fan_out": any(here.linear[m].transposed for m in ranks if m in here.linear),
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
