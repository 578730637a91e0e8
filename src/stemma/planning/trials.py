"""Steps of a run that learns from rows, timed on this machine with its own weights, rows and rewards."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from stemma.planning.probe import MOST, WARM, timed
from stemma.train.assemble import fit_to_tokenizer, loop_of, with_steps
from stemma.train.config import Plan
from stemma.train.prepare import prepare, split
from stemma.train.start import inspect


def timed_run(plan: Plan) -> tuple[float, int]:
    """(the seconds of a step, how many were timed)."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        tokenizer, least = inspect(plan)
        store, tokenizer = prepare(plan, place, tokenizer, True)
        plan = fit_to_tokenizer(plan, tokenizer, store.languages)
        plan = replace(plan, dims=replace(plan.dims, vocab=max(plan.dims.vocab, least)))
        plan = with_steps(plan, WARM + MOST, True)
        trial = loop_of(plan, tokenizer, split(plan, store)[0], folder=place)
        found = timed(plan, trial=trial)
        trial.close()
        return found.seconds, found.steps
