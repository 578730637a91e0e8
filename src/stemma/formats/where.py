"""What a model may be called: a run, a folder, a file or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from stemma import families
from stemma.disk import nearest_path
from stemma.errors import CheckpointError, UsageError

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
RUNS = "runs"  # the folder that `stemma pretrain` writes runs to
FILES = (".bin", ".ckpt", ".json", ".model", ".pt", ".pth", ".safetensors")  # endings that no hub id is taken to have
STEP = re.compile(r"step-\d+(-\d+)?")  # a checkpoint of a run


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a run."""
    return (path / "run.json").is_file()


def model_path(name: str | Path) -> Path | None:
    """The folder or file of the model called `name`, of a run its `model`; None for a hub id.

    Raises UsageError, with the nearest path here, for a name that is neither, and for one beside runs of this folder:
    it is a mistyped run and not asked for at a hub. Raises CheckpointError for a run without a model yet."""
    path = Path(name)
    if is_run(path):
        if (path / "model").is_dir():
            return path / "model"
        raise UsageError(
            f"{path} is a run without a model yet: `stemma resume {path}` finishes it, or name one of its "
            f"checkpoints ({path}/checkpoints/step-...)"
        )
    if STEP.fullmatch(path.name) and is_run(path.parent.parent) and path.is_dir():
        raise CheckpointError(
            f"{path} is a checkpoint of a run: read it with stemma.train.midway.load_checkpoint, or write it as a "
            f"model with `stemma convert {path} DST`"
        )
    if path.exists() or path.suffix == ".gguf":
        return path
    if path.suffix.lower() in FILES:
        raise UsageError(f"there is no file {str(name)!r}{nearest_path(path)}")
    if not HUB_ID.fullmatch(str(name)):
        hint = nearest_path(path) or weights_of(str(name))
        raise UsageError(f"{str(name)!r} is neither a folder nor a hub id of the form org/name{hint}")
    if beside_runs(path):
        hint = nearest_path(path) or f"; `stemma pretrain ... --out {path}` makes a run"
        raise UsageError(f"there is no {str(name)!r} here{hint}")
    return None


def beside_runs(path: Path) -> bool:
    """Whether a missing path means a run: it would be in the folder of runs, or in one that holds some."""
    parent = path.parent
    return str(parent) == RUNS or (parent.is_dir() and any(is_run(p) for p in parent.iterdir()))


def weights_of(name: str) -> str:
    """`; the weights of gpt2 are 'openai-community/gpt2'` where a path that leads nowhere is a name of the tree."""
    try:
        owner, known = families.family(name), families.known_as(name)
    except UsageError:
        return ""
    size = owner.sizes.get(owner.names.get(known, known)) or next(iter(owner.sizes.values()), None)
    return f"; the weights of {known} are {size.hub!r}" if size is not None and size.hub else ""
