"""Several processes train what one would: the same gradients, losses and checkpoints, on gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from scale_worker import gradients
from stemma.nn.parts import Dropout
from stemma.parallel import mesh
from stemma.train import checkpoint, pretrain
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


def start(command: list[str], processes: int, limit: float = 120) -> list[str]:
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

    def found(self, name: str, axes: str) -> Path:
        out = self.folder / f"{name}-{axes}"
        if not out.exists():
            names = [n for n in FAMILIES if (n == "qwen3") <= (axes == "tp=2")]
            cases = [[str(self.run(n)), axes, str(self.folder / f"{n}-{axes}")] for n in names]
            job = self.folder / f"{axes}.json"
            job.write_text(json.dumps({"cases": cases}), "utf-8")
            start([sys.executable, str(Path(__file__).with_name("scale_worker.py")), str(job)], mesh(axes).size)
        return out


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("scale")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in words()), "utf-8")
    return Bench(folder, folder / "rows.jsonl")


CASES = [(n, m) for m in ("dp=2", "fsdp=2", "tp=2") for n in ("bert", "llama", "t5")]
CASES += [("qwen3", "tp=2")]
HEAVY = [(n, "fsdp=2,tp=2") for n in ("bert", "llama", "t5")] + [("llama", "dp=2,fsdp=2")]


def close(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    assert [r["step"] for r in a] == [r["step"] for r in b]
    for x, y in zip(a, b, strict=True):
        assert x["targets"] == y["targets"]
        assert x["loss"] == pytest.approx(y["loss"], rel=2e-5), x["step"]
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-4), x["step"]


@pytest.mark.parametrize(
    ("name", "axes"),
    [*CASES, *(pytest.param(*c, marks=pytest.mark.slow) for c in HEAVY)],
)
def test_a_mesh_trains_what_one_process_does(bench: Bench, name: str, axes: str) -> None:
    run, out = bench.run(name), bench.found(name, axes)
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
    assert share == 1 if axes == "dp=2" else share < 0.65
