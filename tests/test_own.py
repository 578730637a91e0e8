"""An objective or a head that a user's file declares is one like all others: in one place, found by being declared."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma import families, spec
from stemma.declare.objectives import Objective
from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.tasks import TaskHead, task_head
from stemma.objectives import objective_class, runnable
from test_cli import Call, call  # noqa: F401

FILE = Path(__file__).with_name("own_objective.py")
TINY = {"layers": 1, "d_model": 16, "heads": 2, "d_ff": 32, "vocab": 60, "context": 32}
SMALL = ("dims.layers=1", "dims.d_model=16", "dims.heads=2", "dims.d_ff=32", "dims.vocab=300", "dims.context=32")


@pytest.fixture
def declares(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Forget afterwards what the file declared."""
    monkeypatch.setattr(families, "_added", dict(families._added))
    monkeypatch.setattr(families, "_read", dict(families._read))
    monkeypatch.setattr(Objective, "KINDS", dict(Objective.KINDS))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"The king of {n} sees the queen of {n + 1}, and she sees him." for n in range(300)))
    return path


def test_the_file_is_short() -> None:
    assert len(FILE.read_text().splitlines()) < 40


@pytest.mark.usefixtures("declares")
def test_it_is_trained_resumed_planned_and_reported(call: Call, text: Path, tmp_path: Path) -> None:  # noqa: F811
    def ask(*words: object) -> str:
        code, out, err = call("--families", FILE, *words)
        assert code == 0, err
        return out

    sets = [word for change in (*SMALL, "recipe.batch=128") for word in ("--set", change)]
    run = tmp_path / "run"
    ask("pretrain", "glance", "--data", text, "--out", run, "--budget", "6 steps", *sets, "--quiet")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 6 and math.isfinite(summary["val"]["loss"])
    assert json.loads((run / "run.json").read_text())["plan"]["objective"] == {"kind": "Ahead", "places": 2}
    assert "identical" in ask("verify", "resume", run, "--steps", 4)
    assert "decoder, tokens ahead" in stemma_page(ask, run, tmp_path)
    own, usual = (json.loads(ask("plan", name, "--scale", "tiny", "--json")) for name in ("glance", "gpt2"))
    assert own["parameters"] == usual["parameters"]
    assert own["flops_per_step"] == pytest.approx(usual["flops_per_step"], rel=0.15)


def stemma_page(ask: Any, run: Path, folder: Path) -> str:
    ask("report", run, "--out", folder / "page.html")
    return (folder / "page.html").read_text()


@pytest.mark.usefixtures("declares")
def test_it_learns_what_it_declares(text: Path, tmp_path: Path) -> None:
    families.add(FILE)
    changes = dict(change.split("=") for change in SMALL) | {"recipe.batch": 256, "recipe.lr": 3e-3}
    run = stemma.pretrain(
        "glance", data=str(text), out=tmp_path / "run", budget="40 steps", overrides=changes, quiet=True
    )
    losses = [json.loads(line)["loss"] for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.usefixtures("declares")
def test_settings_and_mistakes_are_those_of_all_objectives() -> None:
    families.add(FILE)
    design = spec.edit(families.design("gpt2"), {"objective": "Ahead(places=3)"})
    assert spec.show(design.objective) == "places: 3"
    assert "structure decoder" in str(
        objective_class(design.objective).incompatible_reason(design.objective, families.design("bert").arch)
    )
    with pytest.raises(UsageError, match=r"objective\.places must be at least 1, not 0"):
        spec.edit(design, {"objective.places": 0})
    with pytest.raises(UsageError, match=r"no kind 'Ahed'.*did you mean 'Ahead'"):
        spec.edit(design, {"objective": "Ahed"})
    with pytest.raises(UsageError, match=r"no kind 'Qqq'; known: .*; if a file of yours declares it, name that by "):
        spec.edit(design, {"objective": "Qqq"})


@pytest.mark.usefixtures("declares")
def test_a_file_may_declare_an_objective_alone_and_must_say_what_runs_it(tmp_path: Path) -> None:
    path = tmp_path / "alone.py"
    path.write_text("from stemma.declare.objectives import Objective\nclass Idle(Objective): pass\n")
    assert families.add(path) == [] == families.add(path)
    with pytest.raises(UsageError, match="no class runs the objective Idle"):
        runnable(Objective.KINDS["Idle"]())
    path.write_text("x = 1\n")
    with pytest.raises(UsageError, match="declares no family"):
        families.add(path)


def test_a_task_head_is_declared_and_run_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.Task, "KINDS", dict(parts.Task.KINDS))

    @dataclass(frozen=True)
    class Grade(parts.Task):
        """One number for each token, from 0 to 1."""

        by_token = True

    with pytest.raises(UsageError, match="no class runs the task head Grade"):
        task_head(Grade(), families.design("gpt2").dims)

    class GradeHead(TaskHead, of=Grade):
        def __init__(self, spec: Grade, dims: parts.Dims) -> None:
            super().__init__(spec, dims)
            self.out = torch.nn.Sequential(torch.nn.Linear(dims.d_model, 1), torch.nn.Sigmoid())

        def loss(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return (scores.squeeze(-1) - labels).square().mean()

    model = stemma.build("bert", task=Grade(), **TINY).eval()
    ids = torch.arange(12).view(2, 6) + 5
    out = model(ids, labels=torch.ones(2, 6))
    assert out.logits.shape == (2, 6, 1) and 0 < out.loss < 1
    torch.testing.assert_close(out.loss, (out.logits.squeeze(-1) - 1).square().mean())
    with pytest.warns(UserWarning, match="Stemma's own layout"):
        model.save(tmp_path)
    again = stemma.load(tmp_path).eval()
    assert again.arch.heads.task == Grade() and torch.equal(again(ids).logits, out.logits)
    assert spec.edit(families.design("bert"), {"arch.heads.task": "Grade"}).arch.heads.task == Grade()
