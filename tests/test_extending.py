"""The examples of docs/extending.md, as a user has them: files of less than 40 lines that the program takes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma import families, spec
from stemma.declare.objectives import Objective
from stemma.formats import layouts
from stemma.nn.parts import CustomPosition
from test_cli import Call, block, call  # noqa: F401
from test_train import words

PAGE = "docs/extending.md"
WIDTHS = {"layers": 2, "d_model": 32, "heads": 4, "d_ff": 48, "vocab": 500, "context": 32}
SMALL = [w for k, v in WIDTHS.items() for w in ("--set", f"dims.{k}={v}")] + ["--set", "recipe.batch=128"]


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget afterwards what the files declared."""
    for owner, name in [(families, "_added"), (families, "_read"), (families, "_modules"), (layouts, "LAYOUTS")]:
        monkeypatch.setattr(owner, name, dict(getattr(owner, name)))
    for base in (Objective, CustomPosition):
        monkeypatch.setattr(base, "KINDS", dict(base.KINDS))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in words()), "utf-8")
    return path


def file(name: str, folder: Path) -> Path:
    """An example as a file."""
    code = block(PAGE, name)
    assert len(code.splitlines()) < 40
    (folder / f"{name}.py").write_text(code, "utf-8")
    return folder / f"{name}.py"


def test_a_component(tmp_path: Path, text: Path, call: Call) -> None:  # noqa: F811
    own = ("--families", file("heron", tmp_path))
    code, out, err = call(*own, "diff", "llama", "heron")
    assert code == 0 and "LogDistance" in out, err
    run = tmp_path / "run"
    begin = ("pretrain", "heron", "--data", text, "--out", run, "--budget", "4 steps", *SMALL, "--quiet")
    code, _, err = call(*own, *begin, "--set", "arch.position=LogDistance(steepest=0.25)")
    assert code == 0, err
    assert call(*own, "verify", "resume", run, "--steps", 2)[0] == 0
    model = stemma.load(run / "model")
    assert model.arch.position.steepest == 0.25
    ids = torch.randint(5, 100, (2, 9))
    far, near = model(ids).logits, model(ids[:, 1:]).logits
    assert not torch.allclose(far[:, 1:], near, atol=1e-4)  # the first token is seen
    slow = torch.stack([model(ids[:, : i + 1]).logits[:, -1] for i in range(9)], 1)
    assert torch.allclose(far, slow, atol=1e-5)
    (first,) = stemma.generate(model, ["The cat"], max_new_tokens=5, temperature=0)
    assert len(first.ids) <= 5


def test_a_component_named_as_one_of_the_package_takes_its_place(tmp_path: Path) -> None:
    """Files written before the package had an ALiBi of its own."""
    code = block(PAGE, "heron").replace("LogDistance", "ALiBi").replace("heron", "egret")
    (tmp_path / "egret.py").write_text(code, "utf-8")
    families.add(tmp_path / "egret.py")
    design = spec.edit(families.design("egret-7b"), {"arch.position": "ALiBi(steepest=0.25)"})
    assert isinstance(design.arch.position, CustomPosition)
    assert spec.from_dict(type(design), spec.to_dict(design)) == design


def test_the_objective_is_the_one_that_is_tested() -> None:
    """tests/test_own.py trains, resumes, plans and reports it."""
    assert block(PAGE, "objective") == (Path(__file__).parent / "own_objective.py").read_text("utf-8")


def test_a_layout(tmp_path: Path) -> None:
    families.add(file("heron", tmp_path))
    families.add(file("layout", tmp_path))
    sizes: dict[str, Any] = {**WIDTHS, "vocab": 90}
    model = stemma.build("heron-7b", **sizes)
    model.save(str(tmp_path / "model"))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model_type"] == "heron" and config["steepest_slope"] == 0.5
    again = stemma.load(tmp_path / "model")
    assert "layers.1.qkv.weight" in again.ledger.loaded.values()
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    with pytest.raises(stemma.errors.UsageError, match="is known already"):
        layouts.add(layouts.LAYOUTS["bert"].__class__("bert", (), {}, (), lambda design: ()))


def test_a_command(tmp_path: Path, text: Path, call: Call) -> None:  # noqa: F811
    own, run = ("--families", file("command", tmp_path)), tmp_path / "run"
    stemma.pretrain(
        "llama", data=str(text), out=run, budget="2 steps", quiet=True,
        overrides={f"dims.{k}": v for k, v in WIDTHS.items()} | {"recipe.batch": 128},
    )  # fmt: skip
    code, out, err = call(*own, "perplexity", run / "model", "The cat sees the dog.")
    assert code == 0 and json.loads(out)["perplexity"] > 1, err
    code, _, err = call(*own, "perplexity", run / "model", "")
    assert code == 2 and "less than two tokens" in err
    assert call("perplexity", "x", "y")[0] == 2  # without the file there is no such command


def test_what_declares_nothing_is_refused(tmp_path: Path, call: Call) -> None:  # noqa: F811
    (tmp_path / "none.py").write_text("x = 1\n")
    code, _, err = call("--families", tmp_path / "none.py", "tree")
    assert code == 2 and "declares no family" in err
