"""Soft prompts and prefixes in PEFT's directory format: PROMPT_TUNING and PREFIX_TUNING.

The file holds one tensor, `prompt_embeddings`: the vectors themselves (N E), or for each of N places the keys and
values of all layers side by side. What made a prefix of narrower vectors is not kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma.errors import CheckpointError, brief
from stemma.nn.front import Past
from stemma.nn.model import Model
from stemma.rewrites.kinds import Prefix, SoftPrompt
from stemma.rewrites.prompts import Ahead
from stemma.rewrites.prompts import Prefix as PrefixModule

TENSOR = "prompt_embeddings"
KINDS: dict[str, type[SoftPrompt | Prefix]] = {"PROMPT_TUNING": SoftPrompt, "PREFIX_TUNING": Prefix}
OUTER = "base_model."  # before the names of modules that are kept whole; LoRA's files have "base_model.model."


def rewrite_of(model: Model, folder: Path, config: Mapping[str, Any], tensor: Tensor | None, name: str) -> Any:
    """The rewrite that a directory describes. Raises CheckpointError where its tensor does not fit."""
    if tensor is None:
        raise CheckpointError(f"{folder} holds no {TENSOR}, which an adapter of {config['peft_type']} has")
    n = config.get("num_virtual_tokens")
    if type(n) is not int or n < 1:
        raise CheckpointError(f"{folder}: num_virtual_tokens={brief(n)} must be a number of tokens such as 20")
    shape, kind = list(tensor.shape), KINDS[config["peft_type"]]
    if kind is SoftPrompt:
        both = model.arch.structure == "encoder-decoder"  # PEFT keeps as many for the decoder, and does not read them
        right = [[n, model.dims.embed_width], *([[2 * n, model.dims.embed_width]] if both else [])]
    else:
        right = [[n, _place(model).layers * 2 * _place(model).heads * _place(model).width]]
    if shape not in right:
        raise CheckpointError(f"{folder}: {TENSOR} has shape {shape}, and this model needs {right[0]}")
    return kind(length=n, name=name)


def fill(model: Model, name: str, tensor: Tensor) -> None:
    """Give the soft prompt or prefix `name` its numbers."""
    own = part_of(model, name).own
    with torch.no_grad():
        own.copy_(tensor[: len(own)])


def part_of(model: Model, name: str) -> Any:
    """The module of the soft prompt or prefix `name`."""
    return next(m for m in model.modules() if isinstance(m, Ahead) and m.spec.name == name)


def written(model: Model, spec: SoftPrompt | Prefix, base: str, task: str | None) -> tuple[dict[str, Any], Tensor]:
    """adapter_config.json, and the tensor."""
    part = part_of(model, spec.name)
    both = model.arch.structure == "encoder-decoder"
    place = _place(model)
    config = {
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        "modules_to_save": None,
        "num_attention_heads": place.heads,
        "num_layers": place.layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": spec.length,
        "peft_type": next(key for key, kind in KINDS.items() if kind is type(spec)),
        "task_type": task or "FEATURE_EXTRACTION",  # without a task, PEFT computes without the prompt
    }
    if isinstance(spec, SoftPrompt):
        config |= {"prompt_tuning_init": "RANDOM", "token_dim": part.width}
        return config, part.own.detach().float().cpu()
    config["num_transformer_submodules"] = 2 if both else 1
    wide = place.heads * place.width
    config |= {
        "encoder_hidden_size": spec.projection or wide,
        "init_weights": None,
        "prefix_projection": bool(spec.projection),
        "token_dim": wide,
    }
    return config, part.flat().detach().float().cpu()


def _place(model: Model) -> Past | PrefixModule:
    place = model.prefix
    assert isinstance(place, Past | PrefixModule)
    return place
