"""A chain of runs, each from what an earlier one came to: all stages of a published recipe, or what a feedback file
teaches.

OUT/chain.json     what was asked for: the steps, so that a chain that was stopped goes on wherever it was
OUT/stages/N       the run of step N; the last one is OUT itself
OUT/stages/ghost-N the conversations that step N learns, where it is Ghost Attention
OUT/outcome.json, OUT/outcome.html   how the models before and after answer held-out prompts
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stemma import disk, spec
from stemma.alignment import ghost_attention, outcome, plans, rounds
from stemma.alignment.best import prompts
from stemma.alignment.rounds import Rounds, Work
from stemma.alignment.scoring import scoring
from stemma.errors import CheckpointError, MalformedError, StemmaError, UsageError
from stemma.runs import folder
from stemma.runs.drive import OnStep
from stemma.train.config import Plan
from stemma.train.run import Run, begin, resume_run
from stemma.tuning import plans as tuning
from stemma.tuning import systems

# the model that a step made, by its number; 0 is the one that the chain begins from. In a list behind : or , too
MADE = re.compile(r"(?:(?<=[:,])|^)@(\d+)(?=,|$)")
LATER = "builtin:number"  # stands for a reward model that is not made yet, where a step is only planned
DRAWN = {"rs": Rounds(), "gatt": ghost_attention.Drawing()}  # steps that learn what the model so far answers
ASKED = {
    "format": int, "name": str, "start": str, "seed": int, "full": bool, "steps": [{str: Any}], "judged": {str: Any},
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A run of a chain. `what`: "sft", "rs", "gatt" or a method of `stemma align`; `word`: what it is called. Models
    (`start`, `base`, `reference`, `rewards`, values of `overrides`) may be `@N`: what step N made. `stage`: of the
    chain's family, whose recipe it has. `rounds`: how answers are drawn that are learnt (`rounds.Rounds`;
    `ghost_attention.Drawing`). The rest is as in `stemma.tune` and `stemma.align`."""

    what: str
    word: str
    start: str
    data: str
    budget: str | None = None
    stage: int | None = None
    rewards: tuple[str, ...] = ()
    reference: str | None = None
    base: str | None = None
    rounds: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    lora: int | None = None
    quantize: str | None = None


@dataclass(frozen=True)
class Judged:
    """How a chain is reported: `models` by name (`@N`), asked the first `count` prompts of `data`, scored by `rewards`,
    each by its name (the last one says who wins). `reference`: of these models, the one that the divergence is from."""

    models: Mapping[str, str]
    data: str
    rewards: Mapping[str, tuple[str, ...]]
    reference: str = ""
    count: int = 64
    tokens: int = 64
    template: str | None = None


def begun(out: str | Path) -> bool:
    """Whether a directory holds a chain."""
    return (Path(out) / folder.CHAIN).is_file()


def place_of(out: Path, number: int, many: int) -> Path:
    """The directory of the run of step `number`."""
    return out if number == many else out / "stages" / str(number)


def carry_out(
    name: str, start: str, steps: Sequence[Step], out: str | Path, *, judged: Judged | None = None, seed: int = 1,
    full: bool = False, files: Mapping[str, Sequence[Any]] | None = None, resume: bool = False,
    on_step: OnStep | None = None, quiet: bool = False, mesh: str | None = None,
) -> Run:  # fmt: skip
    """Carry out the steps of the chain `name` from the model `start`. `files`: rows that are kept in OUT/stages, by
    name, for steps that read them. Raises UsageError for a directory that holds something else."""
    out = Path(out)
    if begun(out):
        if not resume:
            raise UsageError(f"{out} holds a run already; resume it, or choose another directory")
        return go_on(out, on_step, quiet, mesh)
    folder.check_free(out, resume)
    asked = {
        "format": 1, "name": name, "start": start, "seed": seed, "full": full,
        "steps": [spec.to_dict(asdict(step)) for step in steps],
        "judged": {} if judged is None else spec.to_dict(asdict(judged)),
    }  # fmt: skip
    for file, held in (files or {}).items():
        if held:
            (out / "stages").mkdir(parents=True, exist_ok=True)
            with disk.write_jsonl(out / "stages" / file) as add:
                for row in held:
                    add(row)
    try:
        check(asked, out)
    except StemmaError:  # what cannot be planned leaves nothing behind
        for file in files or {}:
            (out / "stages" / file).unlink(missing_ok=True)
        raise
    out.mkdir(parents=True, exist_ok=True)
    disk.write_json(out / folder.CHAIN, asked)
    return go_on(out, on_step, quiet, mesh)


def check(asked: Mapping[str, Any], out: Path) -> None:
    """Plan every step before the first one runs, with the model that the chain begins from in place of models that are
    not made yet, so that no chain stops after hours at a setting of a later step. Raises as the plans do."""
    for held in asked["steps"]:
        step = Step(**held)
        rewards = tuple(LATER if MADE.search(one) else one for one in step.rewards)
        early = {key: MADE.sub("@0", value) if isinstance(value, str) else value for key, value in held.items()}
        trial = {**asked, "steps": [{**early, "rewards": rewards}]}
        if step.what in DRAWN:
            spec.edit(DRAWN[step.what], step.rounds)
            trial["steps"][0] |= {"what": "sft", "rewards": ()}
        planned(trial, out, 1, True)


def read(out: Path) -> dict[str, Any]:
    """What a chain was asked for. Raises CheckpointError."""
    path = out / folder.CHAIN
    try:
        found: dict[str, Any] = dict(disk.typed(path, disk.read_json(path), ASKED))
        for step in found["steps"]:
            Step(**step)
        Judged(**found["judged"]) if found["judged"] else None
    except (MalformedError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); begin in another directory") from None
    return found


def go_on(out: str | Path, on_step: OnStep | None = None, quiet: bool = False, mesh: str | None = None) -> Run:
    """Carry a chain to its end from wherever it is, and write its report."""
    out = Path(out)
    asked = read(out)
    many = len(asked["steps"])
    for number, held in enumerate(asked["steps"], 1):
        step, place = Step(**held), place_of(out, number, many)
        if not quiet and not folder.exists(place):
            disk.tell(f"stage {number} of {many}: {step.word}")
        if step.what == "rs":
            run = sampled(asked, out, number, on_step, quiet, mesh)
        elif folder.exists(place):
            run = resume_run(place, on_step=on_step, quiet=quiet, mesh=mesh)
        else:
            if step.what == "gatt":
                ghosts(asked, out, number, quiet)
            plan = planned(asked, out, number, quiet)
            run = begin(plan, place, placed(step.overrides, asked, out), True, on_step, None, quiet, mesh)
        if not run.finished:
            return run
    if asked["judged"] and not (out / "outcome.json").is_file():
        report(asked, out, quiet)
    return run


def placed(value: Any, asked: Mapping[str, Any], out: Path) -> Any:
    """`value` with the models of earlier steps in place of `@N`."""
    if isinstance(value, str):
        many = len(asked["steps"])
        return MADE.sub(
            lambda found: str(place_of(out, int(found[1]), many)) if int(found[1]) else asked["start"], value
        )
    if isinstance(value, Mapping):
        return {key: placed(one, asked, out) for key, one in value.items()}
    return [placed(one, asked, out) for one in value] if isinstance(value, list | tuple) else value


def planned(asked: Mapping[str, Any], out: Path, number: int, quiet: bool) -> Plan:
    """The plan of step `number`."""
    step = Step(**placed(asked["steps"][number - 1], asked, out))
    more: dict[str, Any] = {"lora": step.lora, "quantize": step.quantize, "overrides": step.overrides}
    if step.stage is not None:
        return systems.resolve(
            asked["name"], step.start, step.data, step.budget, asked["seed"], stage=step.stage, full=asked["full"],
            settings=step.settings, quiet=quiet, **more,
        )  # fmt: skip
    if step.what in ("sft", "gatt"):
        budget, ghost = step.budget or "3 epochs", step.what == "gatt"
        data = str(ghosts_of(out, number) / "rows.jsonl") if ghost else step.data
        settings = {**step.settings, **(ghost_attention.LEARNT if ghost else {})}
        return tuning.resolve("chat", step.start, data, budget, asked["seed"], settings=settings, quiet=quiet, **more)
    return plans.resolve(
        step.what, step.start, step.data, step.budget, asked["seed"], rewards=step.rewards, reference=step.reference,
        template=step.settings.get("template"), **more,
    )  # fmt: skip


def ghosts_of(out: Path, number: int) -> Path:
    """The directory of the conversations that Ghost Attention as step `number` learns."""
    return out / "stages" / f"ghost-{number}"


def ghosts(asked: Mapping[str, Any], out: Path, number: int, quiet: bool) -> None:
    """Draw the conversations that Ghost Attention as step `number` learns."""
    step = Step(**placed(asked["steps"][number - 1], asked, out))
    how = spec.edit(ghost_attention.Drawing(), step.rounds)
    template = step.settings.get("template")
    ghost_attention.drawn(step.start, step.data, how, ghosts_of(out, number), asked["seed"], template, quiet)


def sampled(
    asked: Mapping[str, Any], out: Path, number: int, on_step: OnStep | None, quiet: bool, mesh: str | None
) -> Run:
    """Rejection sampling as step `number`."""
    step = Step(**placed(asked["steps"][number - 1], asked, out))
    place = place_of(out, number, len(asked["steps"]))
    with scoring(step.rewards) as score:
        return rounds.carry_out(
            Work(prompts(step.data), score, on_step, quiet, mesh), place, spec.edit(Rounds(), step.rounds),
            start=step.start, base=step.base, data=step.data, rewards=step.rewards, budget=step.budget or "3 epochs",
            seed=asked["seed"], settings=step.settings, lora=step.lora, quantize=step.quantize,
            overrides=step.overrides, resume=True,
        )  # fmt: skip


def report(asked: Mapping[str, Any], out: Path, quiet: bool) -> None:
    """Ask the models of a chain its held-out prompts, and write what came of it."""
    how = Judged(**placed(asked["judged"], asked, out))
    found = prompts(how.data)[: how.count]
    many = len(asked["steps"])
    if not quiet:
        disk.tell(f"{len(how.models)} models answer {len(found)} held-out prompts")
    with contextlib.ExitStack() as stack:
        rewards = {name: stack.enter_context(scoring(own)) for name, own in how.rewards.items()}
        numbers = outcome.compared(
            how.models, found, rewards, reference=how.reference, tokens=how.tokens, seed=asked["seed"],
            template=how.template,
        )  # fmt: skip
    numbers["stages"] = [step["word"] for step in asked["steps"]]
    numbers["runs"] = [str(place_of(out, n, many)) for n in range(1, many + 1)]
    outcome.save(numbers, out, f"{asked['name']}, stage by stage")
    if not quiet:
        for name, one in numbers["models"].items():
            disk.tell(outcome.line_of(name, one, numbers["rewards"]))
        disk.tell(f"side by side: {out / 'outcome.html'}")
