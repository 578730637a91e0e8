"""A folder that somebody else made: whatever opens a run, nothing in it is executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stemma import disk
from stemma.cli import main
from stemma.errors import CheckpointError
from stemma.parallel import checkpoint as shards
from stemma.runs import checkpoint
from stemma.train import pretrain
from test_train import SMALL, words


class Payload:
    """An object whose unpickling leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of BERT that stopped before its end, whose one checkpoint lies in shards, as several processes write it."""
    folder = tmp_path_factory.mktemp("hostile")
    text = folder / "rows.jsonl"
    text.write_text("".join(json.dumps({"text": t}) + "\n" for t in words()), "utf-8")
    run = folder / "run"
    pretrain("bert", data=str(text), out=run, budget="2 steps", overrides={**SMALL, "train.save_every": 1}, quiet=True)
    checkpoint.remove(checkpoint.steps(run)[-1])
    (run / "summary.json").unlink()
    shutil.rmtree(run / "model")
    (place,) = checkpoint.steps(run)
    model, optimizer, state = checkpoint.load(place)
    checkpoint.remove(place)
    shards.write(run / "checkpoints" / ".shards", {"model": model, "optimizer": optimizer}, {})
    state = {k: v for k, v in state.items() if k not in (checkpoint.SUMS, checkpoint.OWN)}
    place = checkpoint.save(run, (0, 1), {}, {}, state, 2, shards=run / "checkpoints" / ".shards")
    read = checkpoint.load(place)
    assert all(torch.equal(read[0][k], model[k]) for k in model)
    assert all(torch.equal(read[1][k], optimizer[k]) for k in optimizer)
    return run


def signed(place: Path) -> None:
    """Make the checksums of a checkpoint those of its files, as whoever prepares one would."""
    state = disk.read_json(place / checkpoint.STATE)
    state[checkpoint.SUMS] = {name: checkpoint._sum(place / name) for name in state[checkpoint.SUMS]}
    state[checkpoint.OWN] = checkpoint._own(state)
    (place / checkpoint.STATE).write_text(json.dumps(state))


def poisoned(run: Path, mark: Path, how: str) -> Path:
    """Put a payload into the metadata of the run's checkpoint."""
    (place,) = checkpoint.steps(run)
    file = place / "shards" / ".metadata"
    found = pickle.loads(file.read_bytes())
    match how:
        case "whole":
            found = Payload(mark)
        case "within":
            found.planner_data = {"x": Payload(mark)}
        case "key":
            found.state_dict_metadata["model/x"] = Payload(mark)
    file.write_bytes(pickle.dumps(found))
    signed(place)
    return place


COMMANDS = {
    "resume": lambda run, place: ["resume", run],
    "verify": lambda run, place: ["resume", run, "--verify"],
    "generate": lambda run, place: ["generate", place, "The cat"],
    "fill": lambda run, place: ["fill", place, "The cat [MASK]"],
    "embed": lambda run, place: ["embed", place, "The cat"],
    "convert": lambda run, place: ["convert", place, run / "out"],
    "report": lambda run, place: ["report", run, "--out", run / "report.html"],
    "begin from it": lambda run, place: ["pretrain", "bert", "--from", place, "--data", "x", "--out", run / "new"],
}


@pytest.mark.parametrize("how", ["whole", "within", "key"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_a_checkpoint_holds(
    command: str, how: str, sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, mark = tmp_path / "run", tmp_path / "mark"
    shutil.copytree(sharded, run)
    place = poisoned(run, mark, how)
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in COMMANDS[command](run, place)])
    code = int(left.value.code or 0)
    told = " ".join(capsys.readouterr().err.split())
    assert not mark.exists(), "the payload ran"
    assert code != 70 and "Traceback" not in told
    if command in ("resume", "generate", "embed", "convert"):
        assert code == 4 and "mkdir, which no checkpoint needs" in told


def test_shards_outside_of_their_folder_are_not_read(sharded: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(sharded, run)
    (place,) = checkpoint.steps(run)
    file = place / "shards" / ".metadata"
    found = pickle.loads(file.read_bytes())
    for part in found.storage_data.values():
        part.relative_path = f"../../{part.relative_path}"
    file.write_bytes(pickle.dumps(found))
    signed(place)
    with pytest.raises(CheckpointError, match="files of its folder"):
        checkpoint.load(place)


@pytest.mark.parametrize("content", [b"", b"\x80", pickle.dumps([1, 2]), pickle.dumps({"a": 1}), os.urandom(200)])
def test_metadata_of_another_shape_is_told(content: bytes, sharded: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(sharded, run)
    (place,) = checkpoint.steps(run)
    (place / "shards" / ".metadata").write_bytes(content)
    signed(place)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(place)
