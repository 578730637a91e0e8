"""Runs that an older Stemma wrote are opened, resumed, loaded, converted and reported, with the numbers they had.

`data/runs.tar.xz` was made by `data/make.py` with the code of November 2026 (d75d13f): a finished GPT-2, and a LLaMA, a
BERT (its checkpoint in shards), an ELECTRA with its generator and a T5 that were stopped in their fifth step of six.
The machine and the folder that they were made on are gone.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma.cli import main
from stemma.runs import checkpoint
from stemma.train import read_metrics, resume, verify_resume

ARCHIVE = Path(__file__).parent / "data" / "runs.tar.xz"
UNFINISHED = ["unfinished", "shards", "beside", "seq2seq"]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "runs"


def wanted(old: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((old / "wanted.json").read_text("utf-8"))
    return found[name]


def command(*words: object) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert not left.value.code


def holds(run: Path, said: dict[str, Any]) -> None:
    """A finished run has the losses that the old code had, and leaves a model with its outputs."""
    assert [r["loss"] for r in read_metrics(run)] == pytest.approx(said["losses"], rel=1e-6)
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    assert summary["val"]["loss"] == pytest.approx(said["val"], rel=1e-6)
    model = stemma.load(run / "model").eval()
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        more = {"decoder_input_ids": ids + 20} if model.arch.structure == "encoder-decoder" else {}
        output = model(ids, **more).hidden[0].double()
    assert torch.allclose(output, torch.tensor(said["output"], dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize("name", UNFINISHED)
def test_a_stopped_run_goes_on_to_the_same_losses(name: str, old: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(old / name, run)
    assert [p.name for p in checkpoint.steps(run)] == ["step-000004"] and not (run / "summary.json").exists()
    assert resume(run, quiet=True).finished
    holds(run, wanted(old, name))
    assert verify_resume(run, 2)["identical"]
    assert (run / "generator").is_dir() == (name == "beside")


def test_a_finished_run_is_what_it_was(old: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(old / "finished", run)
    holds(run, wanted(old, "finished"))
    assert verify_resume(run, 2)["identical"]
    (run / "summary.json").unlink()  # as if it had ended in its fifth step
    checkpoint.remove(checkpoint.steps(run)[-1])
    assert resume(run, quiet=True).finished
    holds(run, wanted(old, "finished"))


@pytest.mark.parametrize("name", ["finished", *UNFINISHED])
def test_its_weights_are_loaded_and_converted(name: str, old: Path, tmp_path: Path) -> None:
    """The last checkpoint as a model, in the layout of its publisher and back."""
    place = checkpoint.steps(old / name)[-1]
    command("convert", place, tmp_path / "a")
    model = stemma.load(tmp_path / "a")
    held, _, _ = checkpoint.load(place)
    ours = dict(model.named_parameters())
    assert ours and all(torch.equal(p, held[key]) for key, p in ours.items() if key in held)
    assert sum(key in held for key in ours) > 0.9 * len(ours)
    assert model.tokenizer is not None and model.tokenizer.decode(model.tokenizer.encode("the cat")) == "the cat"


def test_it_is_reported(old: Path, tmp_path: Path) -> None:
    runs = [old / name for name in ("finished", *UNFINISHED)]
    command("report", *runs, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert all(name in page for name in ("gpt2", "llama", "bert", "electra", "t5"))
