"""Runs in which a part of the model does not learn: checkpoints hold what learns, and the rest comes from where the run
began."""

# ruff: noqa: F811

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stemma.errors import CheckpointError
from stemma.nn.model import Model
from stemma.runs import checkpoint
from stemma.train import Run, assemble, midway, read_metrics, resume
from test_train import text, train  # noqa: F401

CHANGES = {"dims.layers": 2, "train.average": 0.9, "train.save_every": 2, "train.keep": 9, "recipe.lr": 1e-2}


def frozen(name: str) -> bool:
    """The embeddings and the first block."""
    return name.startswith(("embed.", "lm.", "decoder.blocks.0."))


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within this, runs are begun and resumed with half of their model frozen."""
    whole = assemble.model_of

    def model_of(plan: Any, tokenizer: Any, started: bool = True) -> Model:
        model = whole(plan, tokenizer, started)
        for name, p in model.named_parameters():
            p.requires_grad_(not frozen(name))
        return model

    monkeypatch.setattr(assemble, "model_of", model_of)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Run:
    return train("gpt2", tmp_path_factory.mktemp("first") / "run", text, 2, {"dims.layers": 2, "recipe.lr": 1e-2})


def begun(first: Run, out: Path, text: Path, stop: int | None = None) -> Run:
    """A run of six steps from the model of `first`; with `stop`, to a signal after that step."""

    def on_step(record: Any) -> None:
        if record["step"] == stop:
            os.kill(os.getpid(), signal.SIGINT)

    return train("gpt2", out, text, 6, CHANGES | {"train.start": str(first.directory)}, on_step=on_step)


def place(run: Path, step: int) -> Path:
    return next(path for path in checkpoint.steps(run) if checkpoint.step_of(path) == step)


def size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.glob("*.safetensors"))


def test_checkpoints_and_memory_hold_what_learns(
    first: Run,
    tmp_path: Path,
    text: Path,
    half: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = begun(first, tmp_path / "half", text)
    learn = {name for name, _ in run.model.named_parameters() if not frozen(name)}
    weights, slots, state = checkpoint.load(place(run.directory, 4))
    assert weights.keys() == learn and {key.rpartition(":")[0] for key in slots} == learn
    names = {name for name, _ in run.model.named_parameters()}
    assert set(state["frozen"]["names"]) == names - learn
    loop = assemble.loop_of(run.plan, run.tokenizer, [])
    loop.restore(place(run.directory, 4))
    held = {id(p) for group in loop.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for n, p in loop.model.named_parameters() if n in learn} == set(map(id, loop.optimizer.state))
    assert loop.average is not None and loop.average.mean.keys() == learn
    kept, theirs = run.model.state_dict(), first.model.state_dict()
    assert all(torch.equal(kept[n][: len(theirs[n])], theirs[n]) for n in names - learn)
    assert not any(torch.equal(kept[n], theirs[n]) for n in learn)
    monkeypatch.undo()
    whole = begun(first, tmp_path / "whole", text)
    assert "frozen" not in checkpoint.verify(place(whole.directory, 4))
    share = sum(run.model.get_parameter(n).numel() for n in learn) / sum(p.numel() for p in run.model.parameters())
    assert share < 0.5 and size(place(run.directory, 4)) < 1.2 * share * size(place(whole.directory, 4))


def test_a_run_goes_on_bit_for_bit(first: Run, tmp_path: Path, text: Path, half: None) -> None:
    whole = begun(first, tmp_path / "whole", text)
    assert not begun(first, tmp_path / "broken", text, stop=3).finished
    again = resume(tmp_path / "broken", quiet=True)
    assert [r["loss"] for r in read_metrics(tmp_path / "broken")] == [r["loss"] for r in read_metrics(whole.directory)]
    ours, theirs = again.model.state_dict(), whole.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_checkpoint_is_the_whole_model(
    first: Run,
    tmp_path: Path,
    text: Path,
    half: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = begun(first, tmp_path / "run", text)
    monkeypatch.undo()  # what does not learn is known from the checkpoint
    found = midway.load_checkpoint(place(run.directory, 6)).state_dict()
    kept = run.model.state_dict()
    assert found.keys() == kept.keys() and all(torch.equal(found[k], kept[k]) for k in kept)


def test_other_frozen_weights_are_noticed(first: Run, tmp_path: Path, text: Path, half: None) -> None:
    base = tmp_path / "base"
    shutil.copytree(first.directory, base)
    run = begun(Run(base, *list(vars(first).values())[1:]), tmp_path / "run", text, stop=4)
    file = base / "model" / "model.safetensors"
    tensors = {name: t + 0.01 for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    for attempt in (lambda: resume(run.directory, quiet=True), lambda: midway.load_checkpoint(place(run.directory, 4))):
        with pytest.raises(CheckpointError, match=r"the frozen weights .* put back .*base/model as it was"):
            attempt()


def rewritten(folder: Path, change: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None]) -> None:
    """A checkpoint as `change` leaves its weights, slots and state, with checksums that fit."""
    weights, slots, state = checkpoint.load(folder)
    change(weights, slots, state)
    for name, tensors in zip(checkpoint.TENSORS, (weights, slots), strict=True):
        save_file(tensors, folder / name)
    state[checkpoint.SUMS] = {name: checkpoint._sum(folder / name) for name in checkpoint.TENSORS}
    state[checkpoint.OWN] = checkpoint._own(state)
    (folder / checkpoint.STATE).write_text(json.dumps(state), "utf-8")


def test_a_checkpoint_of_before_that_holds_all_is_read(
    first: Run,
    tmp_path: Path,
    text: Path,
    half: None,
) -> None:
    """Frozen weights in it are passed over."""
    whole = begun(first, tmp_path / "whole", text)
    begun(first, tmp_path / "old", text, stop=4)

    def older(weights: dict[str, Any], slots: dict[str, Any], state: dict[str, Any]) -> None:
        for name in state.pop("frozen")["names"]:
            weights[name] = whole.model.get_parameter(name).detach() + 1.0
            slots[f"{name}:average"] = weights[name].clone()

    rewritten(place(tmp_path / "old", 4), older)
    again = resume(tmp_path / "old", quiet=True)
    ours, theirs = again.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
