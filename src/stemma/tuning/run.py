"""Tuning, carried out as a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stemma.errors import UsageError
from stemma.rewrites import Rewrite
from stemma.runs.drive import OnStep
from stemma.train.run import Run, begin
from stemma.tuning import plans, preview, stages, systems
from stemma.tuning.plans import words


def tune(
    what: str,
    *,
    start: str,
    data: str | Sequence[str] | None = None,
    out: str | Path,
    budget: str | None = None,
    seed: int = 1,
    settings: Mapping[str, Any] | None = None,
    lora: int | None = None,
    quantize: str | None = None,
    rewrites: tuple[Rewrite, ...] = (),
    stage: int | None = None,
    full: bool = False,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
    quiet: bool = False,
    mesh: str | None = None,
) -> Run:
    """Tune a model to a task on rows of data, and leave a complete run in the directory `out`.

    `what`: a task (`chat`, `write`, ...), or a tuned family of the tree (`alpaca`, `qlora`, ...): then the template,
    what is learnt and the recipe are those of its `stage` (None: all of them, each a run of its own, the last one in
    `out`), scaled unless `full`. `start`: a run, a folder, a GGUF file or a hub id; `data`: rows with fields (JSON
    lines, CSV, Parquet, ...), of a tuned family also one source for each stage, or none: what stands in for its data;
    `settings`: fields of the task, such as `{"template": "alpaca"}`. `lora`: the rank of adapters beside the linear
    layers of all blocks, which learn in place of the weights; `quantize`: "nf4" or "int8", in which these are kept
    then; `rewrites`: what else replaces modules, such as other adapters. The rest is as in `stemma.pretrain`.

    Raises UsageError for arguments that do not fit, DataError for rows that cannot be learnt from."""
    more: dict[str, Any] = {
        "settings": settings, "lora": lora, "quantize": quantize, "rewrites": rewrites, "overrides": overrides,
    }  # fmt: skip
    sources = (data,) if isinstance(data, str) else tuple(data or ())
    if what in (*words(), "complete"):
        if stage is not None or full:
            raise UsageError(f"{what} is a task; a stage and published numbers (--stage, --full) are of tuned families")
        if len(sources) != 1:
            raise UsageError(f"{what} learns from one source of data: give --data FILE once")
        plan = plans.resolve(what, start, sources[0], budget or "3 epochs", seed, quiet=quiet, **more)
    else:
        many = len(systems.stages_of(what))
        if many > 1 and stage is None:
            return stages.carry_out(
                what, start, sources, out, seed, resume, on_step, quiet, mesh, budget=budget, full=full, **more
            )
        source = stages.data_of(sources, stage or 1, many)
        plan = systems.resolve(what, start, source, budget, seed, stage=stage, full=full, quiet=quiet, **more)
        if not quiet:
            preview.tell_plan(plan)
    return begin(plan, out, overrides or {}, resume, on_step, None, quiet, mesh)
