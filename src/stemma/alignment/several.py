"""Methods of `stemma align` that are several runs: rejection sampling in rounds, what a feedback file teaches, and the
whole recipes of published models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stemma import spec
from stemma.alignment import chains, rounds
from stemma.alignment.best import prompts
from stemma.alignment.rounds import Rounds, Work
from stemma.alignment.scoring import scoring
from stemma.errors import UsageError
from stemma.runs.drive import OnStep
from stemma.train.run import Run

RS = "rs"
NAMES = (RS,)


def go_on(out: str | Path, on_step: OnStep | None = None, quiet: bool = False, mesh: str | None = None) -> Run:
    """Go on with what a directory holds: rounds of rejection sampling or a chain."""
    if chains.begun(out):
        return chains.go_on(out, on_step, quiet, mesh)
    asked = rounds.read(Path(out))
    with scoring(asked["rewards"]) as score:
        return rounds.go_on(Work(prompts(asked["data"]), score, on_step, quiet, mesh), out)


def carry_out(
    what: str, start: str, data: str | None, out: str | Path, *, budget: str | None = None, seed: int = 1,
    rewards: Sequence[str] = (), base: str | None = None, template: str | None = None, lora: int | None = None,
    quantize: str | None = None, overrides: Mapping[str, Any] | None = None, resume: bool = False,
    on_step: OnStep | None = None, quiet: bool = False, mesh: str | None = None,
) -> Run:  # fmt: skip
    """Carry out the method `what` of several runs; the arguments are those of `align`. Settings of the rounds are
    overrides `rounds.PATH`."""
    if data is None:
        raise UsageError(f"{what} samples answers to prompts: give --data FILE")
    changes = dict(overrides or {})
    own = {path.partition(".")[2]: value for path, value in changes.items() if path.startswith("rounds.")}
    changes = {path: value for path, value in changes.items() if not path.startswith("rounds.")}
    how = spec.edit(Rounds(), own)
    with scoring(rewards) as score:
        return rounds.carry_out(
            Work(prompts(data), score, on_step, quiet, mesh), out, how, start=start, base=base, data=data,
            rewards=rewards, budget=budget or "3 epochs", seed=seed, settings={"template": template},
            lora=lora, quantize=quantize, overrides=changes, resume=resume,
        )  # fmt: skip
