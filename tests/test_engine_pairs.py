"""The engine's parts in pairs: mixtures with limits and what is measured, spikes and stops, averages and resumes."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stemma.declare.recipes import Schedule
from stemma.errors import CheckpointError, DataError, ResourceError, UsageError, VerifyError
from stemma.runs import checkpoint, drive
from stemma.runs.spikes import Spikes
from stemma.train import Diverged, Loop, Run, pretrain, read_metrics, resume, verify_resume
from stemma.train.average import Average
from test_accidents import call, refused
from test_kills import sets
from test_train import SMALL, loop_of, train, words


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows(tmp_path_factory.mktemp("text") / "rows.jsonl", words())


# ---------------------------------------------------------------- mixtures


@pytest.mark.parametrize(
    "name", ["gpt2", "bert", *(pytest.param(n, marks=pytest.mark.slow) for n in ("t5", "xlnet", "electra"))]
)
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
    assert loop_of(run).source.limited


def test_a_source_none_of_whose_documents_is_held_out_is_measured_without_it(tmp_path: Path) -> None:
    many, few = rows(tmp_path / "a.jsonl", words(120)), rows(tmp_path / "b.jsonl", words(125)[122:])
    mixed: Any = f"{many}@0.5,{few}@0.5"
    run = train("gpt2", tmp_path / "run", mixed, 4)
    assert run.finished and run.summary["val"]["bits_per_byte"] > 0 and not loop_of(run).source.limited


def test_a_source_all_of_whose_documents_are_held_out_leaves_no_run(tmp_path: Path) -> None:
    many, few = rows(tmp_path / "a.jsonl", words(120)), rows(tmp_path / "b.jsonl", words(125)[124:])
    mixed: Any = f"{many}@0.5,{few}@0.5"
    with pytest.raises(DataError, match="has no document left to train on: all of them are held out") as error:
        train("gpt2", tmp_path / "run", mixed, 2, seed=37)
    assert str(error.value).startswith(str(few)) and not (tmp_path / "run" / "run.json").exists()


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


QUICK = {("a stop between a rewind and the next spike", False), ("a kill right after a rewind's checkpoint", True)}


@pytest.mark.parametrize(
    ("case", "nan"),
    [
        pytest.param(case, nan, id=f"{case}-{'nan' if nan else 'leap'}", marks=() if quick else pytest.mark.slow)
        for case in CASES
        for nan in (False, True)
        for quick in [(case, nan) in QUICK]
    ],
)
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
    changes = SMALL | {"train.spikes": SPIKES, "train.save_every": 2}
    pretrain("gpt2", data=str(text), out=tmp_path / "run", budget="9 steps", overrides=changes)
    said = capsys.readouterr().err
    assert "the gradient norm inf; the gradient of " in said and "is not finite at step 7: back to step 2, on" in said
    rates = [float(w.replace(",", "")) for w in re.findall(r"([-\d,.]+) tokens/s", said)]
    assert len(rates) > 8 and min(rates) > 0


# ---------------------------------------------------------------- runs of which something is gone


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train("gpt2", out, text, 6, {"train.save_every": 2, "train.average": 0.9})
    return out


def files_of(run: Path) -> dict[str, bytes]:
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def test_a_finished_run_without_its_checkpoints_stays_finished(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = files_of(tmp_path / "run")
    run = resume(tmp_path / "run", quiet=True)
    assert run.finished and run.step == 6 and files_of(tmp_path / "run") == before
    again = resume(whole, quiet=True)
    theirs = again.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in run.model.state_dict().items())


@pytest.mark.parametrize(
    "gone", ["model/model.safetensors", "summary.json", "metrics.jsonl", "summary.json metrics.jsonl"]
)
@pytest.mark.filterwarnings("ignore:.*lacks 6 of the 6 steps")
def test_what_is_gone_of_a_finished_run_is_made_again(gone: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for name in gone.split():
        (tmp_path / "run" / name).unlink()
    run = resume(tmp_path / "run", quiet=True)
    assert run.finished and run.summary["val"] == json.loads((whole / "summary.json").read_text("utf-8"))["val"]
    name = "model/model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_a_damaged_summary_says_what_to_do(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "summary.json"
    for content in ("{", "[1]", "7"):
        path.write_text(content)
        with pytest.raises(
            CheckpointError, match=r"summary.json is damaged; delete it to have it written again with: s"
        ):
            resume(tmp_path / "run", quiet=True)
    path.unlink()
    assert resume(tmp_path / "run", quiet=True).finished


def test_a_run_that_lost_its_checkpoints_says_that_it_begins_again(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for name in ("checkpoints", "model"):
        shutil.rmtree(tmp_path / "run" / name)
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.warns(UserWarning, match="has no checkpoint; it begins again with its first step"):
        assert resume(tmp_path / "run", quiet=True).finished


def test_the_proof_of_a_resume_looks_at_all_that_a_checkpoint_keeps(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verify_resume(whole, 4)["identical"]
    good = Average.restore

    def forgetful(self: Average, tensors: Any, step: int) -> None:
        before = {name: mean.clone() for name, mean in self.mean.items()}
        good(self, tensors, step)
        self.mean = before

    monkeypatch.setattr(Average, "restore", forgetful)
    with pytest.raises(VerifyError, match=r"the optimiser's or the mean's .*:average differ after resuming"):
        verify_resume(whole, 4)


def test_no_thread_outlives_a_run_that_fails(text: Path, tmp_path: Path) -> None:
    before = set(threading.enumerate())

    def full(record: Any) -> None:
        raise ResourceError("the disk is full")

    with pytest.raises(ResourceError):
        train("gpt2", tmp_path / "run", text, 6, {"train.ahead": 2}, on_step=full)
    assert set(threading.enumerate()) == before


# ---------------------------------------------------------------- settings that meet


@pytest.mark.parametrize(
    "written", ["Schedule(shape=linear, warmup=3)", {"kind": "Schedule", "warmup": 3}, Schedule(warmup=3)]
)
def test_a_warmup_within_a_schedule_is_kept(written: Any, text: Path, tmp_path: Path) -> None:
    run = train("gpt2", tmp_path / "run", text, 6, {"recipe.schedule": written, "recipe.lr": 3e-3})
    assert [r["lr"] for r in read_metrics(run.directory)[:4]] == pytest.approx([1e-3, 2e-3, 3e-3, 2e-3])


def test_two_lengths_of_a_run_are_refused(text: Path, tmp_path: Path) -> None:
    told = ["pretrain", "gpt2", "--data", text, "--out", tmp_path / "run", *sets(SMALL), "--quiet"]
    for more in (["--budget", "9 steps"], ["--set", "train.budget=9 steps"]):
        refused(call(*told, "--set", "recipe.steps=3", *more), 2, "recipe.steps both say how long the run is")
    (tmp_path / "settings.yaml").write_text("train.budget: 9 steps\n")
    ended = call(*told, "--set", "recipe.steps=3", "--config", tmp_path / "settings.yaml")
    assert ended.code == 0 and len(read_metrics(tmp_path / "run")) == 3, ended  # what is typed wins


def test_settings_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(b"name: gpt2\n# caf\xe9\n")
    refused(call("pretrain", "--config", path), 2, f"{path} cannot be read", "utf-8")
    refused(call("pretrain", "gpt2", "--config", tmp_path), 2, f"{tmp_path} is a folder, not a file to read settings")
    refused(call("resume", path), 2, f"{path} is not a run: it is a file")


# ---------------------------------------------------------------- what is told, and what is kept in time


def test_the_largest_gradient_is_named_where_only_the_norm_overflows(text: Path, tmp_path: Path) -> None:
    with pytest.raises(
        Diverged, match=r"at step 1: the loss is [\d.e+]+, the gradient norm inf; the gradient of \S+ is"
    ):
        train("gpt2", tmp_path / "run", text, 4, {"recipe.z_loss": 1e30})


def test_a_checkpoint_is_written_when_the_last_is_old(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody says how often; and what is learned does not depend on it, nor where a spike leads back to."""
    leaping(monkeypatch, {0: 19})
    changes: dict[str, Any] = {"recipe.lr": 1e-4, "train.spikes": SPIKES}
    train("gpt2", tmp_path / "whole", text, 30, changes)
    expected = state(tmp_path / "whole")
    saved: list[int] = []
    good = Loop.save

    def save(self: Loop, run: Path) -> Path:
        saved.append(self.step)
        return good(self, run)

    monkeypatch.setattr(Loop, "save", save)
    monkeypatch.setattr(drive, "LATE", 0.0)
    train("gpt2", tmp_path / "late", text, 30, changes)
    assert saved[:21] == list(range(21)) and state(tmp_path / "late") == expected
    saved.clear()
    train("gpt2", tmp_path / "told", text, 30, changes | {"train.save_every": 10, "train.spikes": None})
    assert saved == [10, 20, 30]


def test_a_closed_terminal_stops_a_run_with_a_checkpoint(text: Path, tmp_path: Path) -> None:
    def close(record: Any) -> None:
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGHUP)

    outer = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
    before = signal.getsignal(signal.SIGHUP)
    run = train("gpt2", tmp_path / "run", text, 6, {"train.save_every": 6}, on_step=close)
    after = signal.signal(signal.SIGHUP, outer)
    assert not run.finished and run.step == 3 and after is before
    assert [p.name for p in checkpoint.steps(tmp_path / "run")] == ["step-000003"]
    try:  # as under nohup
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert train("gpt2", tmp_path / "on", text, 6, on_step=close).finished
    finally:
        signal.signal(signal.SIGHUP, before)


class Deaf(io.StringIO):
    """A terminal that is gone after some lines."""

    def write(self, text: str) -> int:
        if self.tell() > 420:
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


def test_a_run_goes_on_though_nobody_hears_it(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ear = Deaf()
    monkeypatch.setattr("sys.stderr", ear)
    run = pretrain("gpt2", data=str(text), out=tmp_path / "run", budget="12 steps", overrides=SMALL)
    assert run.finished and "step 2/12" in ear.getvalue() and "step 12/12" not in ear.getvalue()
    assert re.search(r"tokens/s  \d+% of peak  \d+s left", ear.getvalue())
