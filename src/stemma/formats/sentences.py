"""The files of sentence-transformers: how a checkpoint pools token states into a text's vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stemma import disk
from stemma.errors import CheckpointError, brief
from stemma.formats import tensors

MODULES, SETTINGS, POOLING = "modules.json", "sentence_bert_config.json", "1_Pooling"
PROMPTS = "config_sentence_transformers.json"
FILES = (MODULES, SETTINGS, PROMPTS)
WORDS = {"mean_tokens": "mean", "cls_token": "first", "max_tokens": "max", "lasttoken": "last"}
KINDS = "sentence_transformers.models."


@dataclass(frozen=True)
class Pooling:
    """How the vector of a text is made. `pool`: as in `stemma.embed`; None: it is not supported, for the reason `why`.
    `normalize`: to length 1; `limit`: the most tokens that are read; `lower`: texts are lower-cased first; `prompts`:
    named texts that are put before others, `prompt` the name of the usual one; `pool_prompt`: their tokens are pooled
    too."""

    pool: str | None = "mean"
    normalize: bool = False
    limit: int | None = None
    lower: bool = False
    why: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None
    pool_prompt: bool = True


def _inside(folder: Path, name: str) -> bool:
    """Whether a name that a file gives is one of something in the folder."""
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (ValueError, OSError):  # a zero byte, half of a surrogate pair, links in a circle, a name that is too long
        return False


def read(folder: Path) -> tuple[Path, Pooling | None]:
    """The folder of the model itself and its pooling (None if no file gives one). Raises CheckpointError for a damaged
    file."""
    if not (folder / MODULES).is_file():
        return folder, None
    listed = disk.read_json(folder / MODULES)

    def named(module: Any) -> bool:
        return isinstance(module, Mapping) and all(isinstance(module.get(k), str) for k in ("type", "path"))

    if not isinstance(listed, list) or not all(named(m) for m in listed):
        raise CheckpointError(f"{folder / MODULES} should list modules, each with a type and a path")
    for module in listed:
        if not _inside(folder, module["path"]):
            raise CheckpointError(f"{folder / MODULES}: the path {brief(module['path'])} leads out of the folder")
    kinds = [(m["type"].rpartition(".")[2], folder / m["path"]) for m in listed]
    body = next((path for kind, path in kinds if kind == "Transformer"), folder)
    pool, why, normalize, with_prompt = None, "it lists no pooling", False, True
    for kind, path in kinds:
        match kind:
            case "Transformer":
                pass
            case "Pooling":
                config = disk.read_object(path / "config.json")
                pool, why = _mode(config, path)
                with_prompt = bool(config.get("include_prompt", True))
            case "Normalize":
                normalize = True
            case _:
                pool, why = None, f"its module {kind} is not supported"
                break
    settings = disk.read_object(body / SETTINGS) if (body / SETTINGS).is_file() else {}
    limit = settings.get("max_seq_length")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise CheckpointError(f"{body / SETTINGS}: max_seq_length={limit!r} should be a number of tokens")
    prompts, name = _prompts(folder)
    lower = bool(settings.get("do_lower_case", False))
    return body, Pooling(pool, normalize, limit, lower, why, prompts, name, with_prompt)


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    """The prompts by name, and the name of the one that is put before every text. Raises CheckpointError."""
    config = disk.read_object(folder / PROMPTS) if (folder / PROMPTS).is_file() else {}
    prompts, name = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, Mapping) or not all(isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(f"{folder / PROMPTS}: prompts should give a text for every name")
    if name is not None and (not isinstance(name, str) or name not in prompts):
        raise CheckpointError(f"{folder / PROMPTS}: default_prompt_name={brief(name)} is none of {', '.join(prompts)}")
    return dict(prompts), name


def _mode(config: Mapping[str, Any], path: Path) -> tuple[str | None, str]:
    """The pooling of a module, or None and the reason."""
    modes = [name.removeprefix("pooling_mode_") for name, on in config.items()
             if name.startswith("pooling_mode_") and on]  # fmt: skip
    if isinstance(named := config.get("pooling_mode"), str):
        modes = [named]
    words = WORDS | {"mean": "mean", "cls": "first", "max": "max"}
    if len(modes) != 1 or modes[0] not in words:
        return None, f"its pooling ({' and '.join(modes) or 'none'} in {path / 'config.json'}) is not supported"
    return words[modes[0]], ""


def write(folder: Path, pooling: Pooling) -> None:
    """Write the files beside the model's own. A pooling that is not supported is not written."""
    if pooling.pool is None:
        return
    kinds = [("", "Transformer"), (POOLING, "Pooling"), *([("2_Normalize", "Normalize")] if pooling.normalize else [])]
    modules = [{"idx": i, "name": str(i), "path": p, "type": KINDS + kind} for i, (p, kind) in enumerate(kinds)]
    tensors.write_json(folder / MODULES, modules)
    tensors.write_json(folder / SETTINGS, {"max_seq_length": pooling.limit, "do_lower_case": pooling.lower})
    if pooling.prompts:
        tensors.write_json(folder / PROMPTS, {"prompts": pooling.prompts, "default_prompt_name": pooling.prompt})


def write_pooling(folder: Path, pooling: Pooling, width: int) -> None:
    """Write the pooling module's own folder. Raises ResourceError if the disk refuses."""
    if pooling.pool is None:
        return
    modes = {f"pooling_mode_{theirs}": ours == pooling.pool for theirs, ours in WORDS.items()}
    config: dict[str, Any] = {"word_embedding_dimension": width} | modes
    if not pooling.pool_prompt:
        config["include_prompt"] = False
    with disk.writing(folder / POOLING):
        (folder / POOLING).mkdir(exist_ok=True)
        tensors.write_json(folder / POOLING / "config.json", config)
