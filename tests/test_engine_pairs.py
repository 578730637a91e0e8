"""The engine's parts in pairs: mixtures with limits and what is measured, spikes and stops, averages and resumes."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stemma.errors import DataError, UsageError
from stemma.train import Loop, Run, checkpoint, read_metrics, resume
from stemma.train.spikes import Spikes
from test_train import text, train, words  # noqa: F401


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    return path


# ---------------------------------------------------------------- mixtures


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "xlnet", "electra"])
def test_a_mixture_is_read_to_its_limit_and_no_further(name: str, tmp_path: Path) -> None:
    """A run that takes all that a mixture may give is finished; one that takes more is refused before it begins."""
    one, two = rows(tmp_path / "a.jsonl", words(40)), rows(tmp_path / "b.jsonl", words(60)[45:])
    data: Any = f"{one}#epochs=1,{two}#epochs=2"
    own = {"objective.reuse": 8} if name == "xlnet" else {}
    with pytest.raises(DataError, match=r"has text for \d+ steps, as often as each part may be read, and the run") as e:
        train(name, tmp_path / "long", data, 500, own)
    assert not (tmp_path / "long" / "run.json").exists()
    steps = int(str(e.value).partition("has text for ")[2].partition(" steps")[0])
    assert steps > 2
    with pytest.raises(DataError, match=f"has text for {steps} steps"):
        train(name, tmp_path / "more", data, steps + 1, own)
    run = train(name, tmp_path / "all", data, steps, own | {"train.save_every": steps - 1})
    assert run.finished and len(read_metrics(tmp_path / "all")) == steps


def test_a_source_none_of_whose_documents_is_held_out_is_measured_without_it(tmp_path: Path) -> None:
    many, few = rows(tmp_path / "a.jsonl", words(120)), rows(tmp_path / "b.jsonl", words(125)[122:])
    mixed: Any = f"{many}@0.5,{few}@0.5"
    run = train("gpt2", tmp_path / "run", mixed, 4)
    assert run.finished and run.summary["val"]["bits_per_byte"] > 0


def test_a_source_all_of_whose_documents_are_held_out_leaves_no_run(tmp_path: Path) -> None:
    many, few = rows(tmp_path / "a.jsonl", words(120)), rows(tmp_path / "b.jsonl", words(125)[124:])
    mixed: Any = f"{many}@0.5,{few}@0.5"
    found = []
    for seed in range(40):
        try:
            train("gpt2", tmp_path / str(seed), mixed, 2, seed=seed)
        except DataError as error:
            found.append(str(error))
            assert not (tmp_path / str(seed) / "run.json").exists()
            break
    assert found == [f"{few} has no document left to train on: all of them are held out"]


# ---------------------------------------------------------------- spikes


SPIKES = Spikes(window=8, patience=2, back=4, skip=2, above=8.0)


def leaping(monkeypatch: pytest.MonkeyPatch, at: dict[int, int], *, nan: bool = False) -> None:
    """Make the loss of the step after `step` steps look ten times as high (or the gradient not finite) in the timeline
    after so many times of going back, and in the one after: `at` has {times: step}."""
    good = Loop.gradient

    def gradient(self: Loop, batches: Any) -> Any:
        total, sums, counts = good(self, batches)
        begin = at.get(self.rewinds)
        if begin is None or self.step < begin:
            return total, sums, counts
        return total * (math.nan if nan else 10.0), sums, counts

    monkeypatch.setattr(Loop, "gradient", gradient)


def state(run: Path) -> tuple[Any, ...]:
    """All that a run learned: its curve, its last checkpoint, and what it left behind."""
    curve = [{k: v for k, v in record.items() if k != "seconds"} for record in read_metrics(run)]
    newest = checkpoint.latest(run)
    assert newest is not None
    files = {name: (newest / name).read_bytes() for name in checkpoint.TENSORS}
    told = [json.loads(line) for line in (run / "rewinds.jsonl").read_text("utf-8").splitlines()]
    for entry in told:
        entry["lost"] = [{k: v for k, v in record.items() if k != "seconds"} for record in entry["lost"]]
    return newest.name, curve, files, told


def stopping(step: int, rewinds: int) -> Callable[[Loop], bool]:
    """Whether a loop stands there."""
    return lambda loop: (loop.step, loop.rewinds) == (step, rewinds)


class Killed(BaseException):
    """What stands for the end of a process."""


def broken(
    text: Path, out: Path, changes: dict[str, Any], where: Callable[[Loop], bool], how: str, steps: int = 30
) -> Run:
    """A run that is stopped (`stop`: with a checkpoint, `kill`: without, `late`: after a rewind's checkpoint) once."""
    with pytest.MonkeyPatch.context() as patch:
        good, save, hit = Loop.advance, Loop.save, [False]

        def advance(self: Loop) -> Any:
            if where(self) and not hit[0]:
                hit[0] = True
                if how == "kill":
                    raise Killed
                os.kill(os.getpid(), signal.SIGTERM)
            return good(self)

        def saved(self: Loop, run: Path) -> Path:
            path = save(self, run)
            if how == "late" and self.rewinds and not hit[0]:
                hit[0] = True
                raise Killed
            return path

        patch.setattr(Loop, "advance", advance)
        patch.setattr(Loop, "save", saved)
        try:
            run = train("gpt2", out, text, steps, changes)
            assert not run.finished
        except Killed:
            pass
        assert hit[0]
    return resume(out, quiet=True)


CASES = {
    "a stop before the spike": (stopping(16, 0), "stop"),
    "a stop between a rewind and the next spike": (stopping(22, 1), "stop"),
    "a kill before the spike": (stopping(16, 0), "kill"),
    "a kill after a rewind": (stopping(22, 1), "kill"),
    "a kill right after a rewind's checkpoint": (stopping(-1, 0), "late"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("nan", [False, True], ids=["leap", "nan"])
def test_a_run_that_was_stopped_goes_back_to_the_same_place(
    case: str, nan: bool, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spikes, a mean of the weights, batches made ahead and a stop together: bit for bit the unbroken run."""
    leaping(monkeypatch, {0: 19, 1: 26}, nan=nan)
    changes = {"train.spikes": SPIKES, "train.save_every": 5, "train.average": 0.9, "recipe.lr": 1e-4, "train.keep": 1}
    changes |= {"train.ahead": 1}
    whole = train("gpt2", tmp_path / "whole", text, 30, changes)
    assert whole.finished
    expected = state(tmp_path / "whole")
    at = [20, 27] if nan else [21, 28]
    assert [(t["number"], t["at"], t["to"]) for t in expected[3]] == [(1, at[0], 15), (2, at[1], 20)]
    where, how = CASES[case]
    run = broken(text, tmp_path / "broken", changes, where, how)
    assert run.finished and run.summary["val"] == whole.summary["val"]
    assert state(tmp_path / "broken") == expected


def test_a_second_spike_leads_back_and_not_to_what_was_left_behind(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoints of steps 10 to 20 are of the way that led to the first spike; the second one lies before them."""
    leaping(monkeypatch, {0: 19, 1: 14})
    changes = {"train.spikes": replace(SPIKES, back=12), "train.save_every": 5, "recipe.lr": 1e-4, "train.keep": 1}
    train("gpt2", tmp_path / "run", text, 30, changes)
    told = [json.loads(line) for line in (tmp_path / "run" / "rewinds.jsonl").read_text("utf-8").splitlines()]
    assert [(t["at"], t["to"]) for t in told] == [(21, 5), (16, 5)]
    assert [t["why"] for t in told] == ["the loss leapt up"] * 2


def test_what_a_run_goes_back_to_cannot_change(text: Path, tmp_path: Path) -> None:
    train("gpt2", tmp_path / "run", text, 4, {"train.spikes": SPIKES})
    with pytest.raises(UsageError, match=r"train.save_every cannot change, since with train.spikes .*; what can is"):
        resume(tmp_path / "run", overrides={"train.save_every": 3}, quiet=True)


def test_what_is_not_finite_is_told_when_the_run_goes_back(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Loop.gradient

    def gradient(self: Loop, batches: Any) -> Any:
        found = good(self, batches)
        if self.step == 6 and not self.rewinds:
            next(p for n, p in self.learners.named() if n.endswith("mlp.up.weight")).grad[0] = math.inf
        return found

    monkeypatch.setattr(Loop, "gradient", gradient)
    from stemma.train import pretrain
    from test_train import SMALL

    changes = SMALL | {"train.spikes": SPIKES, "train.save_every": 2}
    pretrain("gpt2", data=str(text), out=tmp_path / "run", budget="9 steps", overrides=changes)
    said = capsys.readouterr().err
    assert "the gradient norm inf; the gradient of " in said and "is not finite at step 7: back to step 2, on" in said
    rates = [float(w.replace(",", "")) for w in re.findall(r"([-\d,.]+) tokens/s", said)]
    assert len(rates) > 8 and min(rates) > 0
