"""Alignment, carried out as a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stemma.alignment import pipelines, plans, recipes
from stemma.errors import UsageError
from stemma.rewrites import Rewrite
from stemma.runs.drive import OnStep
from stemma.train.run import Run, begin


def align(
    what: str,
    *,
    start: str,
    data: str | None = None,
    out: str | Path,
    budget: str | None = None,
    seed: int = 1,
    rewards: Sequence[str] = (),
    reference: str | None = None,
    template: str | None = None,
    lora: int | None = None,
    quantize: str | None = None,
    rewrites: tuple[Rewrite, ...] = (),
    base: str | None = None,
    full: bool = False,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
    quiet: bool = False,
    mesh: str | None = None,
) -> Run:
    """Align a model by the method `what` (`reward`, `dpo`, `kto`, `ppo`, `grpo`, `gkd`, `rs`, `loop`) on rows of
    data, and leave a complete run in the directory `out`.

    `start`: a run, a folder, a GGUF file or a hub id; `data`: rows with compared answers, liked ones, or prompts.
    `rewards`: what judges sampled answers, each `FILE.py:name`, a reward model, or `builtin:NAME`. `reference`: the
    frozen model that the policy is held to; left out, what the run begins from. `template`: the chat template, where
    not the tokenizer's own. `base`: of rejection sampling (`rs`), what each round begins from; left out, `start`; its
    settings are overrides such as `rounds.samples`. `full`: of a published recipe (`instructgpt`, `chatgpt`,
    `llama2-chat`, `tulu2`), its numbers as they are, not scaled; its changes begin with a stage, `ppo.objective.kl`.
    `lora`, `quantize`, `rewrites` and the rest: as in `stemma.tune`.

    Raises UsageError for arguments that do not fit, DataError for rows that cannot be learnt from."""
    more: dict[str, Any] = {"lora": lora, "quantize": quantize}
    if what in pipelines.METHODS:
        if reference is not None or rewrites:
            raise UsageError(f"{what} is several runs, so it takes no reference and no rewrites")
        asked = pipelines.Arguments(
            what, start, data, Path(out), budget, seed, rewards, base, template, full=full, overrides=overrides or {},
            resume=resume, on_step=on_step, quiet=quiet, mesh=mesh, **more,
        )  # fmt: skip
        return pipelines.METHODS[what](asked)
    plans.method(what, pipelines.METHODS)
    if full:
        raise UsageError(f"{what} is a method; published numbers (full) are of the recipes {', '.join(recipes.NAMES)}")
    if base is not None:
        raise UsageError(f"{what} begins from the model itself; a base is of rejection sampling (rs)")
    if data is None:
        raise UsageError(f"{what} learns from rows: give --data FILE")
    plan = plans.resolve(
        what, start, data, budget, seed, rewards=rewards, reference=reference, template=template,
        rewrites=rewrites, overrides=overrides, **more,
    )  # fmt: skip
    return begin(plan, out, overrides or {}, resume, on_step, None, quiet, mesh)
