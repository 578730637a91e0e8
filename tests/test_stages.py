"""Tuned families of several stages in one command, and data that stand in where none are named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma import families, samples
from stemma.cli import main
from stemma.data import read
from stemma.declare.family import Family
from stemma.declare.tuning import SFT, Pretraining, Tuning
from stemma.errors import CheckpointError, UsageError
from stemma.runs.metrics import read_metrics
from stemma.tuning import stages, systems, tune
from test_tune import PAIRS, both, decoder, tokenizer, written  # noqa: F401

NAME = "two-stages"


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Family:
    """A tuned family of two stages: text at longer rows and another base of positions, then conversations."""
    more = Pretraining("text", changes=(("arch.position.base", 5e5),), longer=2.0, lr=1e-3, stand_in="builtin:captain")
    told = SFT("conversations", epochs=1, examples=4, lr=1e-3, loss_on="answers", stand_in="builtin:dialogues")
    made = families.family("vicuna")
    child = dataclasses.replace(made, name=NAME, tuning=Tuning((more, told), "two sets"))
    monkeypatch.setitem(families._added, NAME, child)
    return child


def files(tmp_path: Path) -> list[str]:
    text = [{"text": f"{p['text']} {p['target']} " * 6} for p in PAIRS]
    talks = [{"instruction": p["text"], "output": p["target"]} for p in PAIRS]
    return [written(tmp_path / "text.jsonl", text), written(tmp_path / "talks.jsonl", talks)]


def asked(tmp_path: Path, start: Path) -> dict[str, Any]:
    settings = {"template": "plain"}
    return {"start": str(start), "data": files(tmp_path), "budget": "4 steps", "quiet": True, "settings": settings}


def test_stages_follow_each_other(tmp_path: Path, decoder: Path, two: Family) -> None:  # noqa: F811
    run = tune(NAME, out=tmp_path / "run", **asked(tmp_path, decoder))
    assert run.finished and run.directory == tmp_path / "run"
    first = json.loads((tmp_path / "run" / "stages" / "1" / "run.json").read_text())["plan"]
    assert first["arch"]["position"]["base"] == 5e5 and first["dims"]["context"] == 128
    there = stemma.load(tmp_path / "run")
    assert there.arch.position.base == 5e5 and there.dims.context == 128
    before = stemma.load(tmp_path / "run" / "stages" / "1").state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in there.state_dict().items())
    assert run.plan.train.start == str(tmp_path / "run" / "stages" / "1" / "model")
    told = json.loads((tmp_path / "run" / "stages" / "1" / "summary.json").read_text())
    assert told["before"]["loss"] > told["val"]["loss"]  # of text too, what the base knew is told


@pytest.mark.parametrize("stop", [2, 6])
def test_a_stop_in_any_stage_changes_nothing(tmp_path: Path, decoder: Path, two: Family, stop: int) -> None:  # noqa: F811
    whole = tune(NAME, out=tmp_path / "whole", **asked(tmp_path, decoder))
    steps = 0

    def step(_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(NAME, out=tmp_path / "run", on_step=step, **asked(tmp_path, decoder))
    assert stages.begun(tmp_path / "run")
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["resume", str(tmp_path / "run"), "--quiet"])
    for place in ("", "stages/1"):
        old, new = (read_metrics(tmp_path / name / place) for name in ("whole", "run"))
        assert [r["loss"] for r in old if "loss" in r] == [r["loss"] for r in new if "loss" in r]
    one, two_ = whole.model.state_dict(), stemma.load(tmp_path / "run").state_dict()
    assert all(torch.equal(value, two_[name]) for name, value in one.items())


def test_what_does_not_fit_leaves_nothing(tmp_path: Path, decoder: Path, two: Family) -> None:  # noqa: F811
    more = asked(tmp_path, decoder)
    for changed, why in [
        ({"data": ["a", "b", "c"]}, "3 sources of data for 2 stages"),
        ({"overrides": {"recipe.lrr": 1}}, "lrr"),
        ({"start": str(tmp_path / "none")}, "none"),
    ]:
        with pytest.raises(Exception, match=why):
            tune(NAME, out=tmp_path / "run", **{**more, **changed})
        assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stages.json").write_text('{"format": 1, "name": 7}')
    with pytest.raises(UsageError, match="holds a run already"):
        tune(NAME, out=tmp_path / "run", **more)
    with pytest.raises(CheckpointError, match=r"stages\.json is damaged"):
        stages.go_on(tmp_path / "run")
    with pytest.raises(UsageError, match="give --data FILE once"):
        tune("chat", start=str(decoder), data=["a", "b"], out=tmp_path / "other")


def test_data_stand_in(decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    plan = systems.resolve("alpaca", str(decoder), quiet=False)
    assert plan.data == "builtin:instructions" and "stands in for the data of alpaca" in capsys.readouterr().err
    assert systems.resolve("alpaca", str(decoder), "mine.jsonl").data == "mine.jsonl"
    with pytest.raises(UsageError, match="give --data FILE"):
        systems.resolve("webgpt", str(decoder))


@pytest.mark.parametrize("name", samples.NAMES)
def test_samples_are_the_same_each_time(name: str) -> None:
    rows = [*samples.rows(name)]
    assert rows == [*samples.rows(name)] and len(rows) >= 50
    held = [json.loads(d.text) for d in read(f"builtin:{name}#field=*").documents()]
    assert held == rows and samples.licence(name) and samples.stamp(name) == samples.stamp(name)


@pytest.mark.parametrize("name", [n for n, f in families.tree().items() if f.tuning and f.edge != "unpublished"])
def test_what_stands_in_is_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of every stage: data that exist, and in `stemma show` the result, what stands in, and the command."""
    family = families.family(name)
    assert family.tuning is not None
    sources = [s.stand_in for s in systems.runnable(family.tuning.stages) if s.stand_in]
    assert all(next(iter(read(source).documents())) for source in sources if source.startswith("builtin:"))
    if sources:
        assert family.tuning.stand_ins
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["show", name])
        shown = capsys.readouterr().out
        assert f"stemma tune {name} --from MODEL" in " ".join(shown.split()) and "stands in" in shown


def test_a_first_transformer_answers(tmp_path: Path) -> None:
    """It has no start token of its own: decoding begins with padding, as its objective does."""
    small = {"dims.d_model": 16, "dims.layers": 1, "dims.heads": 2, "dims.d_ff": 16, "dims.vocab": 400}
    more: dict[str, Any] = {"budget": "1 steps", "quiet": True, "data": "builtin:parallel:en-de"}
    run = stemma.pretrain("transformer", out=tmp_path / "run", overrides={**small, "recipe.batch": 64}, **more)
    model = stemma.load(tmp_path / "run")
    start = model.text.pad_id
    ours, told = (
        stemma.generate(model, ["and it was so"], max_new_tokens=4, **named)[0].ids
        for named in ({}, {"decoder_start_token_id": start})
    )
    assert run.finished and ours == told


def test_examples_are_shown_first(tmp_path: Path, decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    data = files(tmp_path)[1]
    tune("qlora", start=str(decoder), data=data, out=tmp_path / "run", budget="1 steps")
    told = capsys.readouterr().err
    assert "3 examples as the model sees them" in told and "«" in told and "## Human: " in told
