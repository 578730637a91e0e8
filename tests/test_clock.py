"""Runs by the clock: they end in time on a machine whose speed changes, their schedule never leaps, and what was estimated
once stays as it was."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stemma import spec
from stemma.errors import UsageError
from stemma.runs import checkpoint, drive
from stemma.runs.clock import Clock
from stemma.train import Loop, Run, budgets, pretrain, read_metrics, resolve, resume
from test_sources import Records, curve, fine_tuning
from test_train import SMALL, loop_of, text  # noqa: F401


class Time:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Time]:
    time = Time()
    for module in (drive, budgets):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=time.perf_counter))
    yield time


# ---------------------------------------------------------------- in time

Pace = Callable[[float], float]  # seconds of a step that begins at a time


class Paced(Loop):
    """Steps that take time and do nothing."""

    pace: Pace
    clock: Time
    saving = 0.0
    saved: tuple[int, ...] = ()

    def advance(self) -> Any:
        self.clock.now += self.pace(self.clock.now)
        self.step, self.tokens = self.step + 1, self.tokens + 64
        return {"step": self.step, "loss": 1.0, "tokens": self.tokens}

    def save(self, run: Path) -> Path:
        self.clock.now += self.saving
        self.saved = (*self.saved, self.step)
        return run


def paced(clock: Time, pace: Pace, seconds: float, planned: int) -> Paced:
    loop = fine_tuning(train_save_every=None)
    loop.plan = replace(loop.plan, train=replace(loop.plan.train, seconds=seconds))
    loop.__class__ = Paced
    assert isinstance(loop, Paced)
    loop.pace, loop.clock, loop.length.planned = pace, clock, planned
    return loop


jitter = random.Random(1)
PACES: dict[str, Pace] = {  # of 100 seconds, where the first estimate is 900 steps of a tenth of a second
    "as estimated": lambda t: 0.1,
    "slower": lambda t: 0.2,
    "faster": lambda t: 0.03,
    "much slower from 12 s on": lambda t: 0.1 if t < 12 else 1.0,
    "much faster from 12 s on": lambda t: 0.1 if t < 12 else 0.01,
    "slower for a while": lambda t: 0.25 if 30 < t < 60 else 0.1,
    "slower at the end": lambda t: 0.1 if t < 92 else 0.3,
    "faster at the end": lambda t: 0.1 if t < 80 else 0.05,
    "slower and slower": lambda t: 0.05 + 0.0015 * t,
    "up and down": lambda t: 0.16 if int(t / 8) % 2 else 0.07,
    "by chance": lambda t: jitter.expovariate(10),
}


@pytest.mark.parametrize("name", PACES)
def test_a_run_ends_in_time(name: str, clock: Time, tmp_path: Path) -> None:
    """With its checkpoints, and with the evaluation after its last step, which takes as long as nine steps."""
    loop = paced(clock, PACES[name], 100, 900)
    loop.saving, loop.closing = 0.2, 9 * 64 * 3
    assert drive.drive(loop, tmp_path, quiet=True) and loop.step == loop.steps
    total = clock.now + 9 * PACES[name](clock.now) + loop.saving
    assert 95 <= total <= 105
    changes = loop.length.changes
    assert (name == "as estimated") <= (len(changes) <= 1) and len(changes) < 12
    assert {step for step, _ in changes} <= set(loop.saved)  # each is in a checkpoint
    places = [loop.length.place(step) for step in range(loop.steps + 1)]
    assert all(a < b for a, b in itertools.pairwise(places)) and places[-1] == pytest.approx(900)


def test_evaluations_on_the_way_are_counted(clock: Time, tmp_path: Path) -> None:
    loop = paced(clock, lambda t: 0.1, 100, 900)
    loop.plan = replace(loop.plan, train=replace(loop.plan.train, eval_every=100))

    def evaluate() -> dict[str, float]:
        clock.now += 4.0
        return {"loss": 1.0}

    drive.drive(loop, tmp_path, evaluate=evaluate, quiet=True)
    evaluate()
    assert 95 <= clock.now <= 105 and loop.steps < 700


def test_text_that_may_be_used_up_is_not_read_for_longer(
    clock: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Records, "limited", True)
    loop = paced(clock, lambda t: 0.25 if t < 20 else 0.05, 100, 900)
    drive.drive(loop, tmp_path, quiet=True)
    assert loop.length.changes[0][1] < 500 and loop.steps == 900


def test_all_ranks_follow_the_main_one(clock: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loop, "is_main", False)
    loop = paced(clock, lambda t: 0.5, 100, 900)
    said = iter([False] * 9 + [True] + [False] * 99)  # the sum over all ranks of whether it is time

    def any_rank(asked: Callable[[], bool]) -> Callable[[], bool]:
        if any_rank.calls == 4:  # type: ignore[attr-defined]  # that of the clock
            return lambda: not asked() and next(said)
        any_rank.calls += 1  # type: ignore[attr-defined]
        return asked

    any_rank.calls = 0  # type: ignore[attr-defined]
    loop.any_rank, loop.agreed = any_rank, lambda value: 37  # type: ignore[method-assign]
    drive.drive(loop, tmp_path, quiet=True)
    assert loop.length.changes == [(10, 37)] and loop.step == 37


def test_a_run_that_went_back_measures_its_speed_anew(clock: Time) -> None:
    loop = paced(clock, lambda t: 0.1, 100, 900)
    measured = Clock(loop, 100)
    loop.step, loop.tokens = 60, 60 * 64
    assert not measured.due(6.0)
    loop.step, loop.tokens = 40, 40 * 64  # behind a spike
    assert not measured.due(9.0)
    loop.step, loop.tokens = 100, 100 * 64
    assert measured.due(15.0) and measured.estimate(15.0) == pytest.approx(100 + 85 * 10, abs=1)


# ---------------------------------------------------------------- pretraining


def slow_then_fast(t: float) -> float:
    return 1.0 if t < 12 else 0.5


@pytest.fixture
def ticking(clock: Time, monkeypatch: pytest.MonkeyPatch) -> Time:
    good = Loop.advance

    def advance(self: Loop) -> Any:
        clock.now += slow_then_fast(clock.now)
        return good(self)

    monkeypatch.setattr(Loop, "advance", advance)
    return clock


def begin(out: Path, text: Path, stop: int | None = None, **changes: Any) -> Run:  # noqa: F811
    def on_step(record: Any) -> None:
        if record["step"] == stop:
            os.kill(os.getpid(), signal.SIGINT)

    settings = {**SMALL, "dims.d_model": 16, "train.eval_tokens": 50, **changes}
    return pretrain("gpt2", data=str(text), out=out, budget="40s", overrides=settings, quiet=True, on_step=on_step)


@pytest.fixture
def whole(ticking: Time, text: Path, tmp_path: Path) -> Run:  # noqa: F811
    run = begin(tmp_path / "whole", text)
    ticking.now = 0.0
    return run


def test_the_rate_never_leaps_and_ends_at_its_end(whole: Run) -> None:
    planned, steps = whole.plan.recipe.steps, whole.summary["steps"]
    assert whole.plan.train.seconds == 35 and planned == 31  # five steps were timed
    assert steps > 45 and whole.summary["lengths"][-1]["steps"] == steps
    assert 0.95 * 35 <= whole.summary["seconds"] <= 1.05 * 35
    rates = [record["lr"] for record in read_metrics(whole.directory)]
    peak, leaps = max(rates), [abs(a - b) for a, b in itertools.pairwise(rates)]
    assert max(leaps[1:]) < 0.08 * peak and rates[-1] < 0.01 * peak
    state = checkpoint.peek(checkpoint.latest(whole.directory))  # type: ignore[arg-type]
    assert state["lengths"] == whole.summary["lengths"]


@pytest.mark.parametrize("ahead", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_stop_changes_nothing(whole: Run, ticking: Time, text: Path, tmp_path: Path, ahead: int) -> None:  # noqa: F811
    """At a step at which the length changes: to the next one, or to the end. The batches grow, by the length too."""
    ramp = "Ramp(points=((0, 0.25), (0.6, 1)), between=line)"
    changes = {"train.ahead": ahead, "train.save_every": 7, "recipe.ramp": ramp}
    whole = begin(tmp_path / "other", text, **changes)
    told = whole.summary["lengths"]
    assert len(told) > 1
    for i in (0, len(told) - 1):
        stop = told[i]["step"]
        ticking.now, home = 0.0, tmp_path / f"{ahead}-{stop}"
        assert not begin(home, text, stop, **changes).finished
        run = resume(home, quiet=True)
        found = run.summary["lengths"]
        assert run.finished and found[: i + 1] == told[: i + 1]
        same = min(change["step"] for change in [*told[i + 1 :], *found[i + 1 :], {"step": whole.summary["steps"]}])
        assert same > stop + 2 and curve(home)[:same] == curve(whole.directory)[:same]
    assert found == told
    pairs = zip(run.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_batches_made_ahead_are_made_anew(whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As large as the new length wants them, from the step after the change on."""
    ramp = "Ramp(points=((0, 0.25), (0.9, 1)), between=line)"
    loop = loop_of(whole, **{"train.ahead": 2, "recipe.ramp": ramp, "recipe.batch": 1024})
    monkeypatch.setattr(Clock, "due", lambda self, elapsed: self.trainer.step == 2)
    monkeypatch.setattr(Clock, "estimate", lambda self, elapsed: 6)
    assert drive.drive(loop, tmp_path, quiet=True) and loop.step == 6
    assert loop.tokens == loop.source.total(6) == 32 * sum(loop.source.examples(step) for step in range(6))  # type: ignore[attr-defined]


def test_what_was_estimated_is_not_estimated_again(
    whole: Run,
    ticking: Time,
    text: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at, asked = whole.summary["lengths"][-1], []
    assert not begin(tmp_path / "run", text, at["step"] + 1).finished
    good = Clock.estimate
    monkeypatch.setattr(Clock, "estimate", lambda self, t: asked.append(self.trainer.step) or good(self, t))
    run = resume(tmp_path / "run", quiet=True)
    assert all(step > at["step"] for step in asked) and run.summary["steps"] == at["steps"]


def test_runs_that_were_begun_before_keep_their_length(ticking: Time, text: Path, tmp_path: Path) -> None:  # noqa: F811
    run = begin(tmp_path / "run", text, stop=3)
    path = run.directory / "run.json"
    about = json.loads(path.read_text("utf-8"))
    assert about["plan"]["train"].pop("seconds") == 35
    path.write_text(json.dumps(about), "utf-8")
    done = resume(run.directory, quiet=True)
    assert done.summary["steps"] == about["plan"]["recipe"]["steps"] == 31 and "lengths" not in done.summary


def test_other_budgets_go_by_no_clock(ticking: Time, text: Path, tmp_path: Path) -> None:  # noqa: F811
    settings = {**SMALL, "train.eval_tokens": 50}
    for budget in ("12 steps", "1500 tokens"):
        run = pretrain("gpt2", data=str(text), out=tmp_path / budget, budget=budget, overrides=settings, quiet=True)
        assert run.plan.train.seconds is None and run.summary["steps"] == run.plan.recipe.steps == 12
        assert "seconds" not in spec.to_dict(run.plan)["train"]
    with pytest.raises(UsageError, match=r"train.seconds follows from a budget of time; give the time as --budget"):
        resolve("gpt2", overrides={"train.seconds": 5})
    shutil.rmtree(tmp_path / "12 steps")


def test_a_change_is_told(ticking: Time, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    settings = {**SMALL, "train.eval_tokens": 50}
    run = pretrain("gpt2", data=str(text), out=tmp_path / "run", budget="40s", overrides=settings)
    said, last = capsys.readouterr().err, run.summary["steps"]
    before = run.summary["lengths"][-2]["steps"] if len(run.summary["lengths"]) > 1 else run.plan.recipe.steps
    assert f"to end in time, the run takes {last} steps and not {before}" in said
    assert f"step {last}/{last}" in said and " 0s left" in said.splitlines()[-1]
