"""Several processes train what one would: the same gradients, losses and checkpoints, on gloo."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from scale_worker import gradients
from stemma import families, spec
from stemma.errors import CheckpointError, UsageError
from stemma.nn.model import Model
from stemma.nn.parts import Dropout
from stemma.parallel import mesh
from stemma.train import checkpoint, pretrain, resume
from stemma.train import run as runs
from test_train import SMALL, words

STEPS = 6
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"dims.layers": 2},
    "llama": {"dims.layers": 2, "dims.heads": 4, "dims.kv_heads": 2},
    "t5": {"dims.layers": 2, "recipe.optimizer": "AdamW()", "recipe.lr": 1e-3},
    "qwen3": {"dims.layers": 2},  # norms of queries and keys
}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}


def start(command: list[str], processes: int, limit: float = 300) -> list[str]:
    """Start a command as so many processes of one group; what each said on stderr. Fails if one did."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    base = os.environ | ENVIRONMENT | {"MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    started = [
        subprocess.Popen(
            command,
            env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        said = [p.communicate(timeout=limit) for p in started]
    finally:
        for p in started:
            p.kill()
    for p, (_, errors) in zip(started, said, strict=True):
        assert p.returncode == 0, errors[-3000:]
    return [errors for _, errors in said]


def changes(name: str) -> dict[str, Any]:
    own = {"train.save_every": STEPS // 2, "train.micro": 2, "recipe.batch": 256, "arch.dropout": Dropout()}
    return SMALL | own | FAMILIES[name]


TWO = [(n, m) for m in ("dp=2", "fsdp=2", "tp=2") for n in ("bert", "llama", "t5")] + [("qwen3", "tp=2")]
FOUR = [(n, "fsdp=2,tp=2") for n in ("bert", "llama", "t5")] + [("llama", "dp=2,fsdp=2")]


@dataclass
class Bench:
    """Runs of one process, and what meshes made of them."""

    folder: Path
    data: Path

    def run(self, name: str) -> Path:
        out = self.folder / name
        if not (out / "summary.json").exists():
            pretrain(name, data=str(self.data), out=out, budget=f"{STEPS} steps", overrides=changes(name), quiet=True)
        return out

    def trained(self, cases: list[tuple[str, str]]) -> None:
        """Let meshes of one size train; leaves a folder `NAME-AXES` of each."""
        job = self.folder / "job.json"
        rows = [[str(self.run(name)), axes, str(self.folder / f"{name}-{axes}")] for name, axes in cases]
        job.write_text(json.dumps({"cases": rows}), "utf-8")
        worker = str(Path(__file__).with_name("scale_worker.py"))
        start([sys.executable, worker, str(job)], mesh(cases[0][1]).size)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("scale")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in words()), "utf-8")
    return Bench(folder, folder / "rows.jsonl")


def close(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    assert [r["step"] for r in a] == [r["step"] for r in b]
    for x, y in zip(a, b, strict=True):
        assert x["targets"] == y["targets"]
        assert x["loss"] == pytest.approx(y["loss"], rel=2e-5), x["step"]
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-4), x["step"]


# one test, so that the processes start once
@pytest.mark.parametrize("cases", [TWO, pytest.param(FOUR, marks=pytest.mark.slow)], ids=["two", "four"])
def test_a_mesh_trains_what_one_process_does(bench: Bench, cases: list[tuple[str, str]]) -> None:
    bench.trained(cases)
    for name, axes in cases:
        same(bench.run(name), bench.folder / f"{name}-{axes}", axes)
    damage(bench.folder / f"llama-{cases[-2][1]}")


def same(run: Path, out: Path, axes: str) -> None:
    found = json.loads((out / "found-0.json").read_text("utf-8"))
    expected = runs.read_metrics(run)
    close(found["records"], expected)
    close(found["resumed"], expected[STEPS // 2 :])  # from what one process wrote
    assert found["again"] == found["records"][STEPS // 2 :]  # from what the mesh wrote

    plan, tokenizer, store = runs.reopen(run)
    view, _ = store.split(plan.train.val_fraction, plan.seed)
    alone = runs.loop_of(plan, tokenizer, view)
    ours, theirs = gradients(alone), torch.load(out / "gradient.pt")
    assert ours.keys() == theirs.keys()
    scale = max(float(g.abs().max()) for g in ours.values())
    for key, g in ours.items():
        assert float((g - theirs[key]).abs().max()) <= 1e-6 * scale, key

    assert alone.files.load(checkpoint.latest(out))[2]["mesh"] == str(mesh(axes))
    alone.restore(checkpoint.latest(out))  # one process goes on with what several wrote
    close([alone.advance() for _ in range(STEPS - alone.step)], expected[STEPS // 2 :])
    whole = sum(p.numel() for p in alone.learners.parameters())
    share = found["held"] / whole
    assert share == 1 if axes == "dp=2" else share < 0.65, out.name


def test_a_run_of_two_processes_is_a_run(bench: Bench, tmp_path: Path) -> None:
    """From the command line: begun by two processes, gone on with by one, the model in its publisher's layout."""
    out, sets = tmp_path / "run", []
    for path, value in changes("llama").items():
        if path != "arch.dropout" and value is not None:
            sets += ["--set", f"{path}={value}"]
    program = [sys.executable, "-m", "stemma"]
    begin = [*program, "pretrain", "llama", "--data", str(bench.data), "--budget", f"{STEPS} steps", *sets]
    said = start([*begin, "--out", str(out), "--mesh", "fsdp=2"], 2)
    assert "held-out text" in said[0] and "held-out text" not in said[1]
    alone = runs.read_metrics(bench.run("llama"))
    close(runs.read_metrics(out), alone)
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert summary["val"]["bits_per_byte"] == pytest.approx(
        json.loads((bench.run("llama") / "summary.json").read_text("utf-8"))["val"]["bits_per_byte"], rel=1e-4
    )
    ours = torch.cat([p.detach().flatten() for p in stemma.load(str(out / "model")).parameters()])
    theirs = torch.cat([p.detach().flatten() for p in stemma.load(str(bench.run("llama") / "model")).parameters()])
    assert float((ours - theirs).abs().max()) < 1e-4

    shutil.rmtree(checkpoint.latest(out))  # type: ignore[arg-type]
    (out / "summary.json").unlink()
    (out / "checkpoints" / ".shards").mkdir()  # of processes that were killed while writing
    assert checkpoint.latest(out) == out / "checkpoints" / f"step-{STEPS // 2:06d}"
    resumed = resume(out, quiet=True)
    assert resumed.finished
    close(runs.read_metrics(out), alone)


def damage(out: Path) -> None:
    """Shards that are cut short are told, whoever reads them."""
    newest = checkpoint.latest(out)
    assert newest is not None
    for file in (newest / "shards").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(newest)


def test_meshes_are_read() -> None:
    assert mesh("fsdp=4, tp=2").size == 8 and str(mesh("dp=1,fsdp=2")) == "fsdp=2"
    for wrong in ("fdsp=2", "dp", "dp=0", "dp=2,dp=2", "tp=two", ""):
        with pytest.raises(UsageError, match="such as fsdp=4,tp=2"):
            mesh(wrong)


def test_what_cannot_be_meant_is_refused(tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="needs 2 processes and there are 1"):
        pretrain("bert", data=str(bench.data), out=tmp_path / "a", mesh="dp=2", quiet=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="there are 2 processes and no mesh"):
        pretrain("bert", data=str(bench.data), out=tmp_path / "a", quiet=True)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("name", "edits", "why"),
    [
        ("llama", {"dims.kv_heads": 1}, "tp=2 does not divide dims.kv_heads=1"),
        ("mixtral", {}, "Experts"),
        ("deberta", {}, "DisentangledLayer"),
    ],
)
def test_what_cannot_be_sliced_is_told(name: str, edits: dict[str, Any], why: str) -> None:
    from stemma.parallel.tables import unsliceable

    design = families.design(name)
    small = {"dims.d_model": 32, "dims.heads": 2, "dims.layers": 1, "dims.d_ff": 64, "dims.vocab": 50}
    more = {"dims.kv_heads": None, "dims.head_dim": None, "dims.embed": None} | edits
    design = spec.edit(design, {k: v for k, v in (small | more).items()})
    with torch.device("meta"):
        assert why in (unsliceable(Model(design.arch, design.dims), 2) or "")
