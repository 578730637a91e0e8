"""Tiny models of the reference implementation (transformers) with every parameter jittered, norms and biases too."""

from __future__ import annotations

import atexit
import copy
import functools
import importlib
import pkgutil
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers as hf

import cases
import stemma
from oracle_types import Case

MODULES = [importlib.import_module(f"cases.{info.name}") for info in pkgutil.iter_modules(cases.__path__)]
CASES: dict[str, Case] = {name: case for m in MODULES for name, case in getattr(m, "CASES", {}).items()}
EXTRA = {name: getattr(m, "extra", None) for m in MODULES for name in getattr(m, "CASES", {})}
COUNTS: dict[str, int] = {name: n for m in MODULES for name, n in getattr(m, "COUNTS", {}).items()}
BODIES: dict[str, int] = {name: n for m in MODULES for name, n in getattr(m, "BODIES", {}).items()}


# heads for a task: their outputs are called `scores` here
TASKS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")


def task(case: str) -> str | None:
    """The task that a case has a head for (one of TASKS)."""
    return next((t for t in TASKS if t in CASES[case][0]), None)


def labels(case: str, batch: dict[str, torch.Tensor], seed: int = 7) -> dict[str, torch.Tensor]:
    """Targets of a task, by the names that the reference gives them."""
    generator = torch.Generator().manual_seed(seed)
    rows, length = batch["input_ids"].shape[0], batch["input_ids"].shape[-1]
    fields = CASES[case][2]
    number = fields.get("num_labels", 2)
    match task(case):
        case "QuestionAnswering":
            ends = torch.randint(0, length + 3, (2, rows), generator=generator)
            return {"start_positions": ends[0], "end_positions": ends[1]}
        case "TokenClassification":
            target = torch.randint(0, number, (rows, length), generator=generator)
            return {"labels": target.masked_fill(batch["attention_mask"] == 0, -100)}
        case "MultipleChoice":
            return {"labels": torch.randint(0, batch["input_ids"].shape[1], (rows,), generator=generator)}
    if fields.get("problem_type") == "multi_label_classification":
        return {"labels": torch.randint(0, 2, (rows, number), generator=generator).float()}
    if number == 1:
        return {"labels": torch.randn(rows, generator=generator)}
    return {"labels": torch.randint(0, number, (rows,), generator=generator)}


def jitter(model: torch.nn.Module, seed: int) -> None:
    """Move every parameter off its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)


@functools.cache
def _built(case: str, seed: int) -> Any:
    name, config, fields = CASES[case]
    torch.manual_seed(seed)
    model = getattr(hf, name)(config(**fields))
    jitter(model, seed + 1)
    return model.eval()


@functools.cache
def _folder(case: str, seed: int) -> Path:
    """Where a case's files are, written once a process."""
    folder = Path(tempfile.mkdtemp(prefix="stemma-reference-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _built(case, seed).save_pretrained(folder)
    return folder


def reference(case: str, seed: int = 0) -> Any:
    """The reference's tiny model of a case, in eval mode; a copy, to be changed freely."""
    return copy.deepcopy(_built(case, seed))


def saved(case: str, folder: Path, seed: int = 0) -> Any:
    """The reference's model, with its files in `folder` in its own layout."""
    shutil.copytree(_folder(case, seed), folder, dirs_exist_ok=True)
    return reference(case, seed)


@functools.cache
def shared(case: str) -> tuple[Any, Any]:
    """Our model and the reference's, loaded once a process: for tests that only run them."""
    return stemma.load(_folder(case, 0)), _built(case, 0)


def inputs(case: str, rows: int = 3, length: int = 17, seed: int = 3, left: bool = False) -> dict[str, torch.Tensor]:
    """A batch with padding on the right (or left), all that the structure reads."""
    _, config, fields = CASES[case]
    vocab = fields["vocab_size"]
    generator = torch.Generator().manual_seed(seed)
    pad = fields.get("pad_token_id", config().pad_token_id)
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[1, length - 4 :] = 0
    mask[2, length - 9 :] = 0
    mask = mask.flip(1) if left else mask
    ids = torch.randint(5, vocab, (rows, length), generator=generator)
    if pad is not None:
        ids = ids.masked_fill(mask == 0, pad)
    batch = {"input_ids": ids, "attention_mask": mask}
    if (extra := EXTRA[case]) is not None:
        batch = extra(case, batch, generator)
    if task(case) == "MultipleChoice":  # B C T: the other candidates are the same texts in another order
        batch = {name: torch.stack([x, x.roll(1, 0), x.roll(2, 0)], 1) for name, x in batch.items()}
    return batch
