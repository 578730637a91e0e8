"""The best checkpoint: which number decides, what is kept of it, when a run ends early, and that a stop changes none of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import stemma
from stemma.errors import CheckpointError, UsageError
from stemma.runs import best, checkpoint, folder
from stemma.runs.best import Best
from stemma.runs.length import Length
from stemma.runs.life import Outcome, carry_on
from stemma.runs.prove import prove
from stemma.train import Loop, prepare, pretrain, resolve, resume, run, verify_resume
from stemma.train.evaluation import evaluate, sample
from test_sources import Kind, curve, fine_tuning
from test_train import SMALL, text  # noqa: F401

# ---------------------------------------------------------------- which number


@pytest.mark.parametrize(
    ("written", "name", "more"),
    [
        ("bits_per_byte", "bits_per_byte", False),
        ("loss", "loss", False),
        ("loss_pair", "loss_pair", False),
        ("accuracy", "accuracy", True),
        ("macro_f1", "macro_f1", True),
        ("rougeL", "rougeL", True),
        ("rouge2", "rouge2", True),
        ("replaced_right", "replaced_right", True),
        ("+loss", "loss", True),
        ("-mine", "mine", False),
    ],
)
def test_a_name_or_its_sign_tells_what_is_better(written: str, name: str, more: bool) -> None:
    assert best.parse(written) == (name, more)
    plan = resolve("gpt2", overrides={"train.best": written})
    assert plan.train.best == written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.best": "glossy"}, r"is more of it better, or less\? Write \+glossy or -glossy"),
        ({"train.best": "bits per byte"}, "'bits per byte' is no name of a number"),
        ({"train.best": "-"}, "'-' is no name"),
        ({"train.patience": 2}, "train.patience counts evaluations of train.best; set it too"),
        ({"train.best": "loss", "train.patience": 0}, "train.patience must be at least 1"),
    ],
)
def test_what_decides_nothing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve("gpt2", overrides=changes)


def test_only_a_better_number_is_better() -> None:
    first = best.judged("acc_f1", None, 4, "step-000004", {"acc_f1": 0.5, "odd": float("nan")})
    assert first == Best(4, "step-000004", {"acc_f1": 0.5}, 0, 4)
    equal = best.judged("acc_f1", first, 6, "x", {"acc_f1": 0.5})
    assert equal == dataclasses.replace(first, waited=1, seen=6)  # type: ignore[type-var]
    lost = best.judged("acc_f1", equal, 8, "x", {"acc_f1": float("nan")})
    assert lost is not None and (lost.waited, lost.step) == (2, 4)
    more = best.judged("acc_f1", lost, 9, "y", {"acc_f1": 0.51})
    assert more == Best(9, "y", {"acc_f1": 0.51}, 0, 9)
    assert best.judged("loss", None, 1, "x", {"loss": float("inf")}) is None


# ---------------------------------------------------------------- the length of a run


def test_a_changed_length_moves_on_from_where_the_schedule_was() -> None:
    length = Length(100)
    assert [length.place(step) for step in (0, 7, 100)] == [0, 7, 100]
    length.change(20, 60)
    length.change(40, 140)
    assert length.steps == 140 and length.place(20) == 20
    places = [length.place(step) for step in range(141)]
    assert places[30] - places[29] == pytest.approx(2) and places[100] - places[99] == pytest.approx(0.4)
    assert places[40] == pytest.approx(60) and places[140] == pytest.approx(100)
    assert all(0 < b - a < 2.1 for a, b in itertools.pairwise(places))
    again = Length(100)
    again.load(json.loads(json.dumps(length.save())))
    assert again == length
    again.change(140, 140)
    assert again.place(140) == pytest.approx(100)


def test_a_resume_with_a_changed_length_is_proved() -> None:
    """The rate of each step, and so every number, is that of the run that did not stop."""

    class Shorter(Loop):
        def advance(self) -> Any:
            record = super().advance()
            if self.step == 2:
                self.length.change(2, 5)
            return record

    def fresh() -> Loop:
        loop = fine_tuning(**falling)
        loop.__class__ = Shorter
        return loop

    falling = {"recipe_schedule.warmup": 1}
    loop, plain = fresh(), fine_tuning(**falling)
    rates = [[each.advance()["lr"] for _ in range(5)] for each in (loop, plain)]
    assert loop.steps == 5 and rates[0][:2] == rates[1][:2] and rates[0][2] < rates[1][2]
    assert rates[0][-1] < 1e-9 < rates[1][-1]
    assert prove(fresh, 5)["identical"]


# ---------------------------------------------------------------- a run by a script


class Scored(Kind):
    """Its number is written down for each step."""

    script: Mapping[int, float] = {}

    def evaluate(self) -> dict[str, float]:
        return {"mark_f1": self.script[self.loop.step], **super().evaluate()}


def begun(run: Path, **changes: Any) -> Callable[[], Loop]:
    run.mkdir(parents=True)
    settings = {"train_best": "mark_f1", "train_eval_every": 1, "train_keep": 1, **changes}
    loop = fine_tuning(**settings)
    folder.begin(run, {}, loop.device, {})
    return lambda: fine_tuning(**settings)


class Killed(Exception):
    pass


def going_on(
    run: Path, loop: Loop, script: Mapping[int, float], stop: int | None = None, kill: int | None = None
) -> Outcome:
    def on_step(record: Any) -> None:
        if record["step"] == kill:
            raise Killed
        if record["step"] == stop:
            os.kill(os.getpid(), signal.SIGINT)

    kind = Scored(run, loop)
    kind.script = script
    return carry_on(run, loop, kind, on_step, quiet=True)


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def told(run: Path) -> dict[str, Any]:
    """The summary without what the clock says."""
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    return {k: v for k, v in summary.items() if k not in ("seconds", "tokens_per_second", "peak_share")}


MIDDLE = {1: 0.1, 2: 0.4, 3: 0.7, 4: 0.2, 5: 0.7, 6: 0.3, 7: 0.5}
WAITS = {1: 0.1, 2: 0.4, 3: 0.3, 4: 0.4, 5: 0.2, 6: 0.9, 7: 0.9}


def test_the_best_weights_are_kept_and_saved(tmp_path: Path) -> None:
    home = tmp_path / "run"
    fresh = begun(home)
    loop = fresh()
    outcome = going_on(home, loop, MIDDLE)
    assert outcome.finished and loop.step == 7 and outcome.summary["steps"] == 7
    assert outcome.summary["best"]["step"] == 3 and outcome.summary["best"]["values"]["mark_f1"] == 0.7
    assert outcome.summary["val"]["norm"] == outcome.summary["best"]["values"]["norm"]  # of these weights
    assert [p.name for p in checkpoint.steps(home)] == ["step-000003", "step-000007"]  # of which `keep` is one
    held, _, _ = checkpoint.load(home / "checkpoints" / "step-000003")
    saved = load_file(home / "model" / "model.safetensors")
    assert held and all(torch.equal(saved[k.removeprefix("model:")], v) for k, v in held.items() if k in saved)
    whole = going_on(home, again := fresh(), MIDDLE)  # nothing is left to do
    assert whole.finished and not whole.restored and again.step == 7 and whole.summary == outcome.summary


def test_the_last_weights_may_be_the_best(tmp_path: Path) -> None:
    home = tmp_path / "run"
    fresh = begun(home, train_eval_every=2)
    outcome = going_on(home, fresh(), {2: 0.3, 4: 0.1, 6: 0.2, 7: 0.4})
    assert outcome.summary["best"]["step"] == 7 and outcome.restored
    last, _, _ = checkpoint.load(home / "checkpoints" / "step-000007")
    saved = load_file(home / "model" / "model.safetensors")
    assert all(torch.equal(saved[k], v) for k, v in last.items() if k in saved)


@pytest.mark.parametrize("script", [MIDDLE, WAITS], ids=["to the end", "until it waits"])
def test_a_stop_anywhere_changes_nothing(tmp_path: Path, script: dict[int, float]) -> None:
    """By a signal, with a checkpoint, and by a death, without one."""
    patience = {"train_patience": 3} if script is WAITS else {}
    begun(tmp_path / "whole", **patience)
    fresh = begun(tmp_path / "other", **patience)
    whole = going_on(tmp_path / "whole", fresh(), script)
    steps = 5 if script is WAITS else 7
    assert whole.summary["steps"] == steps and whole.summary["best"]["step"] == (2 if script is WAITS else 3)
    for step in range(1, steps):
        for how in ("stop", "kill") if step in (2, 4) else ("stop",):
            home = tmp_path / f"{how}-{step}"
            begun(home, **patience)
            if how == "kill":
                with pytest.raises(Killed):
                    going_on(home, fresh(), script, kill=step)
            else:
                assert not going_on(home, fresh(), script, stop=step).finished
            assert going_on(home, fresh(), script).finished
            assert told(home) == told(tmp_path / "whole") and weights(home) == weights(tmp_path / "whole")
            assert curve(home) == curve(tmp_path / "whole")
            assert [p.name for p in checkpoint.steps(home)] == [p.name for p in checkpoint.steps(tmp_path / "whole")]


def test_a_run_that_ended_early_stays_ended(tmp_path: Path) -> None:
    """Also where its summary is lost, or where numbers would look otherwise now."""
    home = tmp_path / "run"
    fresh = begun(home, train_patience=3)
    before = going_on(home, fresh(), WAITS).summary
    (home / "summary.json").unlink()
    loop = fresh()
    again = going_on(home, loop, {2: 0.4, 5: 9.0, 6: 9.0})
    assert again.finished and loop.steps == 5 and again.summary["best"] == before["best"]


def test_a_best_checkpoint_that_is_gone_is_named(tmp_path: Path) -> None:
    home = tmp_path / "run"
    fresh = begun(home)
    going_on(home, fresh(), MIDDLE)
    (home / "summary.json").unlink()
    checkpoint.remove(home / "checkpoints" / "step-000003")
    with pytest.raises(CheckpointError, match=r"the best checkpoint of the run, .*step-000003, is gone; put it back"):
        going_on(home, fresh(), MIDDLE)


def test_a_checkpoint_names_no_other_folder_as_the_best(tmp_path: Path) -> None:
    loop = fine_tuning(train_best="loss")
    loop.best = Best(1, "../../x", {"loss": 1.0}, 0, 1)
    loop.advance()
    with pytest.raises(CheckpointError, match="its best checkpoint has no name of one"):
        fine_tuning(train_best="loss").restore(loop.save(tmp_path))


# ---------------------------------------------------------------- pretraining


def begin(home: Path, text: Path, steps: int = 8, **changes: Any) -> run.Run:  # noqa: F811
    settings = {**SMALL, **changes}
    return pretrain("gpt2", data=str(text), out=home, budget=f"{steps} steps", overrides=settings, quiet=True)


def test_a_pretrained_model_is_the_best_of_those_evaluated(text: Path, tmp_path: Path) -> None:  # noqa: F811
    """Told that more bits are better, it is that of the first evaluation."""
    done = begin(tmp_path / "run", text, **{"train.best": "+bits_per_byte", "train.average": 0.5})
    records = stemma.train.read_metrics(done.directory)
    curve_of = {r["step"]: r["val_bits_per_byte"] for r in records if "val_bits_per_byte" in r}
    assert sorted(curve_of) == list(range(1, 8))  # ten a run, at least one step apart
    step = max(curve_of, key=curve_of.__getitem__)
    assert step < 7 and done.summary["best"]["step"] == step
    assert verify_resume(done.directory, 2)["identical"]
    plan, tokenizer, store = prepare.reopen(done.directory)
    held = sample(prepare.split(plan, store)[1], plan.train.eval_tokens)
    goal = stemma.train.assemble.objective_of(plan, tokenizer)
    for model in (done.model, stemma.load(done.directory / "model"), resume(done.directory, quiet=True).model):
        assert evaluate(model, goal, held)["bits_per_byte"] == pytest.approx(curve_of[step], rel=1e-6)
    assert done.summary["val"]["bits_per_byte"] == curve_of[step]


def test_a_number_that_is_not_evaluated_leaves_no_run(text: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(
        UsageError, match="accuracy is not evaluated in this run; what is: bits_per_byte, loss, targets"
    ):
        begin(tmp_path / "run", text, **{"train.best": "accuracy"})
    assert not (tmp_path / "run" / "run.json").exists()
    with pytest.raises(UsageError, match="mark_f1"):  # another kind of run is told at its first evaluation
        home = tmp_path / "other"
        fresh = begun(home)
        loop = fresh()
        carry_on(home, loop, Kind(home, loop), quiet=True)


def test_runs_without_it_say_nothing_of_it(tmp_path: Path) -> None:
    plan = stemma.spec.to_dict(resolve("gpt2"))
    assert not {"best", "patience"} & plan["train"].keys()
    loop = fine_tuning()
    loop.advance()
    assert not {"best", "lengths"} & checkpoint.peek(loop.save(tmp_path)).keys()
