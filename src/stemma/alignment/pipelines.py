"""Methods of `stemma align` that are several runs: rejection sampling in rounds, what a feedback file teaches, and
the recipes of published models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stemma import disk, spec
from stemma.alignment import chains, loop, recipes, rounds
from stemma.alignment.best import prompts
from stemma.alignment.rounds import Rounds, Work
from stemma.alignment.scoring import scoring
from stemma.errors import UsageError
from stemma.runs.drive import OnStep
from stemma.train.run import Run


@dataclass(frozen=True)
class Arguments:
    """What is asked for: the arguments of `stemma.align`."""

    what: str
    start: str
    data: str | None
    out: Path
    budget: str | None = None
    seed: int = 1
    rewards: Sequence[str] = ()
    base: str | None = None
    template: str | None = None
    lora: int | None = None
    quantize: str | None = None
    full: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
    on_step: OnStep | None = None
    quiet: bool = False
    mesh: str | None = None

    @property
    def life(self) -> dict[str, Any]:
        """How runs are carried out."""
        return {"resume": self.resume, "on_step": self.on_step, "quiet": self.quiet, "mesh": self.mesh}


def rejection_sampling(asked: Arguments) -> Run:
    """The best answers of the model as demonstrations, in rounds, whose settings are overrides `rounds.PATH`."""
    if asked.data is None:
        raise UsageError("rs samples answers to prompts: give --data FILE")
    own = {path.partition(".")[2]: v for path, v in asked.overrides.items() if path.startswith("rounds.")}
    changes = {path: v for path, v in asked.overrides.items() if not path.startswith("rounds.")}
    how = spec.edit(Rounds(), own)
    with scoring(asked.rewards) as score:
        work = Work(prompts(asked.data), score, asked.on_step, asked.quiet, asked.mesh)
        return rounds.carry_out(
            work, asked.out, how, start=asked.start, base=asked.base, data=asked.data, rewards=asked.rewards,
            budget=asked.budget or "3 epochs", seed=asked.seed, settings={"template": asked.template}, lora=asked.lora,
            quantize=asked.quantize, overrides=changes, resume=asked.resume,
        )  # fmt: skip


def feedback(asked: Arguments) -> Run:
    """What people said of answers. Changes are of a step: `dpo.objective.beta`."""
    if asked.data is None:
        raise UsageError("loop learns what people said: give --feedback FILE")
    if asked.rewards or asked.base is not None:
        raise UsageError("loop learns what people said of answers, so it takes no reward and no base")
    said, changes = loop.read(asked.data), by_step(asked.overrides, list(loop.WORDS))
    if not asked.quiet:
        disk.tell(f"{asked.data}: {said}")
    steps = loop.steps(said, asked.out / "stages", asked.template, changes, asked.budget)
    if (asked.lora is not None or asked.quantize is not None) and len(steps) > 1:
        names = ", ".join(step.what for step in steps)
        raise UsageError(
            f"the feedback is learnt in {len(steps)} runs ({names}), and an adapter of one is no model that the next "
            "could begin from: leave --lora and --quantize out"
        )
    steps = [replace(step, lora=asked.lora, quantize=asked.quantize) for step in steps]
    files = loop.rows(said)
    return chains.carry_out(asked.what, asked.start, steps, asked.out, seed=asked.seed, files=files, **asked.life)


def published(asked: Arguments) -> Run:
    """All stages of a published recipe. Changes are of a stage: `ppo.objective.kl`, `reward.data`, `sft.budget`."""
    name = asked.what
    if asked.data is not None or asked.budget is not None:
        raise UsageError(
            f"{name} has several stages, each with data of its own: give them as --set STAGE.data=FILE and --set "
            f"STAGE.budget=LENGTH; the stages are {', '.join(recipes.words(name))}"
        )
    if asked.rewards or asked.base is not None:
        raise UsageError(f"the rewards of {name} are what it learns, and its rounds begin from the model itself")
    if asked.lora is not None or asked.quantize is not None:
        raise UsageError(
            f"{name} has several stages, and an adapter of one is no model that the next could begin from: leave "
            "--lora and --quantize out"
        )
    if chains.begun(asked.out):
        return chains.carry_out(name, asked.start, (), asked.out, **asked.life)
    changes = by_step(asked.overrides, recipes.words(name))
    steps, judged = recipes.steps(name, asked.start, asked.template, asked.full, changes)
    if not asked.quiet:
        disk.tell(f"{name}: {recipes.listed(steps)}; what stands in for unpublished data is made by rules")
    return chains.carry_out(
        name, asked.start, steps, asked.out, judged=judged, seed=asked.seed, full=asked.full, **asked.life
    )


METHODS: dict[str, Callable[[Arguments], Run]] = {
    "rs": rejection_sampling, "loop": feedback, **dict.fromkeys(recipes.NAMES, published),
}  # fmt: skip


def go_on(out: str | Path, on_step: OnStep | None = None, quiet: bool = False, mesh: str | None = None) -> Run:
    """Go on with what a directory holds: rounds of rejection sampling or a chain."""
    if chains.begun(out):
        return chains.go_on(out, on_step, quiet, mesh)
    asked = rounds.read(Path(out))
    with scoring(asked["rewards"]) as score:
        return rounds.go_on(Work(prompts(asked["data"]), score, on_step, quiet, mesh), out)


def by_step(changes: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Changes by the step that they are of, the first part of a path (`dpo.objective.beta`). Raises UsageError for a
    path of no step."""
    found: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        name, dot, rest = path.partition(".")
        if name not in names or not dot:
            known = ", ".join(names)
            raise UsageError(f"{path} is a setting of no stage; the stages are {known}, so write {names[-1]}.{path}")
        found.setdefault(name, {})[rest] = value
    return found
