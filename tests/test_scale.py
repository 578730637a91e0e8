"""Several processes train what one would: the same gradients, losses and checkpoints, on gloo."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed import TCPStore
from torch.distributed.checkpoint import CheckpointException

import scale_worker
import stemma
from scale_worker import gradients
from stemma import disk, families, spec
from stemma.cli import root
from stemma.errors import CheckpointError, ResourceError, UsageError
from stemma.nn.model import Model
from stemma.parallel import checkpoint as shards
from stemma.parallel import mesh, report_once
from stemma.rewrites import Trainable, WeightOnly
from stemma.runs import checkpoint
from stemma.train import assemble, prepare, pretrain, read_metrics, resume
from test_train import SMALL, words

STEPS = 4
LOSS = {"fp32": 1e-6, "bf16": 1e-4}  # how near losses are, relatively
GRADIENT = {"fp32": 1e-6, "bf16": 3e-2}  # and entries of the first gradient, to the largest
TWO_LAYERS = {"dims.layers": 2}
GROUPED = {"dims.layers": 2, "dims.heads": 4, "dims.kv_heads": 2}
BLOCKS = {"train.recompute": ("*.blocks.*",)}
ODD = {"dims.layers": 1, "dims.d_model": 34, "dims.d_ff": 63}  # nothing divides by four
# what is trained: a family, and changes of it
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", TWO_LAYERS | {"recipe.optimizer": "LAMB()", "train.recompute": ("*.attention", "*.mlp")}),
    "llama": ("llama", GROUPED | BLOCKS | {"recipe.optimizer": "AdamW()", "train.average": 0.9}),
    "t5": ("t5", TWO_LAYERS | {"recipe.optimizer": "Adafactor(smallest=16)", "recipe.lr": 1e-2, "train.average": 0.9}),
    "qwen3": ("qwen3", TWO_LAYERS | {"recipe.optimizer": "Muon()"}),  # norms of queries and keys
    "electra": ("electra", TWO_LAYERS),
    # the rest of the optimisers
    "adam": ("bert", TWO_LAYERS | {"recipe.optimizer": "AdamW(corrected=False)"}),
    "albert": ("albert", TWO_LAYERS | {"recipe.optimizer": "LAMB(corrected=False)"}),
    "palm": (
        "llama",
        GROUPED
        | {"recipe.optimizer": "Adafactor(smallest=None, momentum=0.9, weight_decay=1.0, power=2.0)"}
        | {"recipe.lr": 3e-2},
    ),
    # parts of unlike sizes, some of them empty
    "odd-lamb": ("bert", ODD | {"recipe.optimizer": "LAMB()"}),
    "odd-factors": ("bert", ODD | {"recipe.optimizer": "Adafactor(smallest=2, momentum=0.5)"}),
    "odd-muon": ("bert", ODD | {"recipe.optimizer": "Muon()"}),
    # positions without parameters, whose heads the slices share out
    "alibi": ("gpt2", {"arch.position": "ALiBi()", "arch.init.positions": None}),
    # networks beside the model, two streams, experts, what is reread
    "deberta-v3": ("deberta-v3", TWO_LAYERS),
    "distilbert": ("distilbert", {"dims.layers": 1}),
    "minilm": ("minilm", {"dims.layers": 1}),
    "xlnet": ("xlnet", TWO_LAYERS | {"objective.reuse": 8}),
    "xlnet-muon": ("xlnet", TWO_LAYERS | {"objective.reuse": 8, "recipe.optimizer": "Muon()"}),
    "deberta": ("deberta", TWO_LAYERS),
    "mixtral": ("mixtral", TWO_LAYERS | {"recipe.optimizer": "Muon()"}),
    # a decoder with other heads and another inner width than the encoder
    "apart": ("t5", TWO_LAYERS | {"dims.head_dim": 16, "dims.decoder_heads": 2, "dims.decoder_d_ff": 48}),
    # most weights frozen, some stored in another type
    "rewritten": (
        "llama",
        GROUPED | {"rewrites": (WeightOnly(("*.mlp.*",), "bfloat16"), Trainable(("*.attention.*", "*_norm.*")))},
    ),
    # a batch that grows, which readers share unevenly: 1, 3, 9 and 9 rows
    "ramp": (
        "llama",
        GROUPED | {"recipe.batch": 288, "recipe.ramp": "Ramp(points=((0, 0.12), (0.5, 1)), between=power)"},
    ),
    # precision and compilation
    "bf16": ("llama", GROUPED | {"recipe.optimizer": "AdamW()", "train.precision": "bf16"}),
    "compiled": ("llama", GROUPED | {"recipe.optimizer": "AdamW()", "train.compile": True}),
}
TAUGHT = ("distilbert", "minilm")  # by the run "adam"
WORKER = (sys.executable, str(Path(__file__).with_name("scale_worker.py")))
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}


@contextlib.contextmanager
def launched(commands: list[list[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Commands as processes of one group, with the variables that torchrun sets. As under torchrun, the store by which
    they find each other is kept by who starts them: a port that is picked here and taken by the first process later may
    be another's by then."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    base = os.environ | ENVIRONMENT | {"MASTER_PORT": str(store.port), "WORLD_SIZE": str(len(commands))}
    base |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    started = [
        subprocess.Popen(
            command,
            env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]
    try:
        yield started
    finally:
        for p in started:
            p.kill()
            p.wait()


def start(command: list[str], processes: int, limit: float = 900) -> list[str]:
    """Start a command as so many processes of one group; what each said on stderr. Fails if one did."""
    with launched([command] * processes) as started:
        said = [p.communicate(timeout=limit) for p in started]
    for p, (_, errors) in zip(started, said, strict=True):
        assert p.returncode == 0, errors[-3000:]
    return [errors for _, errors in said]


def changes(name: str) -> dict[str, Any]:
    own = {"train.save_every": STEPS // 2, "train.micro": 2, "recipe.batch": 256, "arch.dropout": "Dropout()"}
    return SMALL | own | RUNS[name][1]


Cases = list[tuple[str, str]]  # of a run and a mesh
TWO: Cases = [("llama", "dp=2"), ("t5", "fsdp=2"), ("bert", "tp=2"), ("llama", "tp=2"), ("ramp", "fsdp=2")]
TWO += [("rewritten", "fsdp=2")]
MORE: Cases = [("bert", "fsdp=2"), ("qwen3", "fsdp=2"), ("electra", "fsdp=2")]
MORE += [(n, m) for m in ("fsdp=2", "tp=2") for n in ("adam", "albert", "palm", "bf16")]
MORE += [("xlnet-muon", "fsdp=2"), ("apart", "fsdp=2"), ("apart", "tp=2")]
MORE += [("bert", "dp=2"), ("t5", "dp=2"), ("llama", "fsdp=2"), ("t5", "tp=2"), ("qwen3", "tp=2"), ("alibi", "tp=2")]
MORE += [(n, "fsdp=2") for n in ("deberta-v3", "distilbert", "minilm", "xlnet", "deberta", "mixtral")]
FOUR: Cases = [(n, m) for m in ("dp=2,fsdp=2", "fsdp=2,tp=2") for n in ("llama", "bert", "t5", "qwen3")]
FOUR += [(n, "fsdp=4") for n in ("odd-lamb", "odd-factors", "odd-muon", "ramp")] + [("ramp", "dp=4")]
COMPILED: Cases = [("compiled", m) for m in ("dp=2", "tp=2", "fsdp=2")]


@dataclass
class Bench:
    """Runs of one process, and what meshes made of them."""

    folder: Path
    data: Path

    def run(self, name: str) -> Path:
        out, (family, _) = self.folder / name, RUNS[name]
        if not (out / "summary.json").exists():
            more = {"objective.teacher": str(self.run("adam") / "model")} if name in TAUGHT else {}
            budget, edits = f"{STEPS} steps", changes(name) | more
            pretrain(family, data=str(self.data), out=out, budget=budget, overrides=edits, quiet=True)
        return out

    def trained(self, cases: Cases, spiky: dict[str, Any] | None = None) -> None:
        """Let meshes of one size train; leaves a folder `NAME-AXES` of each. A mesh goes on with what the one before it
        made of the same run, too. `spiky` are the arguments of a run whose loss leaps up, which is trained after them."""
        job = self.folder / "job.json"
        rows: list[tuple[str, str, str, str | None]] = []
        for name, axes in cases:
            run = str(self.run(name))
            before = [out for other, _, out, _ in rows if other == run]
            rows.append((run, axes, str(self.folder / f"{name}-{axes}"), before[-1] if before else None))
        job.write_text(json.dumps({"cases": rows} | ({"spiky": spiky} if spiky else {})), "utf-8")
        start([*WORKER, str(job)], mesh(cases[0][1]).size)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("scale")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in words()), "utf-8")
    return Bench(folder, folder / "rows.jsonl")


def close(a: list[dict[str, Any]], b: list[dict[str, Any]], within: float = 1e-6) -> None:
    assert [r["step"] for r in a] == [r["step"] for r in b]
    for x, y in zip(a, b, strict=True):
        assert x["targets"] == y["targets"]
        assert x["loss"] == pytest.approx(y["loss"], rel=within, abs=1e-8), x["step"]
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=5 * within), x["step"]
        ours, theirs = ({k: r[k] for k in r if k.startswith("loss_")} for r in (x, y))
        assert ours == pytest.approx(theirs, rel=10 * within, abs=1e-7), x["step"]


# one test, so that the processes start once
@pytest.mark.parametrize(
    "cases",
    [TWO, *(pytest.param(more, marks=pytest.mark.slow) for more in (MORE, FOUR, COMPILED))],
    ids=["two", "more", "four", "compiled"],
)
def test_a_mesh_trains_what_one_process_does(bench: Bench, cases: Cases, tmp_path: Path) -> None:
    edits = changes("llama") | {"train.save_every": 3, "recipe.lr": 1e-4}
    spiky: dict[str, Any] = {"data": str(bench.data), "out": str(tmp_path / "mesh"), "mesh": "fsdp=2"}
    spiky["overrides"] = edits
    bench.trained(cases, spiky if cases is TWO else None)
    if cases is TWO:
        goes_back_behind_a_spike(spiky, tmp_path)
    for name, axes in cases:
        same(bench.run(name), bench.folder / f"{name}-{axes}", axes)
    name, axes = cases[-1]
    damage(bench.folder / f"{name}-{axes}")


def same(run: Path, out: Path, axes: str) -> None:
    found = json.loads((out / "found-0.json").read_text("utf-8"))
    expected = read_metrics(run)
    plan, tokenizer, store = prepare.reopen(run)
    within = LOSS[plan.train.precision]
    close(found["records"], expected, within)
    close(found["resumed"], expected[STEPS // 2 :], within)  # from what one process wrote
    assert found["again"] == found["records"][STEPS // 2 :]  # from what the mesh wrote
    close(found.get("crossed", found["again"]), expected[STEPS // 2 :], within)  # from what another mesh wrote

    view, _ = prepare.split(plan, store)
    alone = assemble.loop_of(plan, tokenizer, view)
    fresh = {key: t.clone() for key, t in alone.learners.tensors().items()}
    ours, theirs = gradients(alone), torch.load(out / "gradient.pt")
    assert ours.keys() == theirs.keys()
    scale = max(float(g.abs().max()) for g in ours.values())
    for key, g in ours.items():
        assert float((g - theirs[key]).abs().max()) <= GRADIENT[plan.train.precision] * scale, key

    weights, slots, state = checkpoint.load(checkpoint.latest(out))  # type: ignore[arg-type]
    expected_weights, expected_slots, _ = checkpoint.load(checkpoint.steps(run)[0])
    assert state["mesh"] == str(mesh(axes))
    assert {k: t.shape for k, t in slots.items()} == {k: t.shape for k, t in expected_slots.items()}
    assert weights.keys() == expected_weights.keys()
    for key, t in expected_weights.items():
        # a softmax knows nothing of biases of keys: their gradients are rounding, as is much of Adam's steps in bf16; and
        # so are single entries elsewhere, for which reason the ways that matrices went are compared as wholes
        if plan.train.precision == "fp32" and not key.endswith("attention.k.bias"):
            assert float((t - weights[key]).norm()) <= 1e-3 * float((t - fresh[key]).norm()), key

    alone.restore(checkpoint.latest(out))  # type: ignore[arg-type]
    close([alone.advance() for _ in range(STEPS - alone.step)], expected[STEPS // 2 :], within)  # one process goes on
    whole = sum(p.numel() for p in alone.learners.parameters())
    share = found["held"] / whole
    assert share == 1 if axes.startswith("dp=") and "," not in axes else share < 0.65, out.name


def goes_back_behind_a_spike(about: dict[str, Any], tmp_path: Path) -> None:
    """And on with the text that one process takes then; evaluations that it left behind do not count."""
    scale_worker.spiky(**about | {"out": str(tmp_path / "alone"), "mesh": None})
    lines = {}
    for out in ("mesh", "alone"):
        told = (tmp_path / out / "rewinds.jsonl").read_text("utf-8").splitlines()
        lines[out] = [json.loads(line) for line in told]
        assert [(t["at"], t["to"], t["skipped"]) for t in lines[out]] == [(12, 6, 3)]
    close(lines["mesh"][0]["lost"], lines["alone"][0]["lost"])
    ours, theirs = (read_metrics(tmp_path / out) for out in ("mesh", "alone"))
    assert [r["step"] for r in ours] == list(range(1, 13))
    close(ours, theirs)
    summaries = [json.loads((tmp_path / out / "summary.json").read_text("utf-8")) for out in ("mesh", "alone")]
    assert [(s["steps"], s["best"]["step"]) for s in summaries] == [(12, 2)] * 2
    assert summaries[0]["val"] == pytest.approx(summaries[1]["val"], rel=1e-5)
    best, other = (stemma.load(str(tmp_path / out / "model")).state_dict() for out in ("mesh", "alone"))
    assert max(float((best[k] - t).abs().max()) for k, t in other.items()) < 1e-6


def test_a_run_of_two_processes_is_a_run(bench: Bench, tmp_path: Path) -> None:
    """From the command line: begun by two processes, gone on with by one, both networks in their publisher's layout,
    their weights the mean of all steps, evaluated on the way."""
    more = {"train.average": 0.9, "train.eval_every": 1, "train.recompute": "['*.blocks.*']"}
    edits = {k: v for k, v in (changes("electra") | more).items() if v is not None}
    begin = [sys.executable, "-m", "stemma", "pretrain", "electra", "--data", str(bench.data)]
    begin += ["--budget", f"{STEPS} steps"]
    for path, value in edits.items():
        begin += ["--set", f"{path}={value}"]
    out = tmp_path / "run"
    alone = pretrain(
        "electra",
        data=str(bench.data),
        out=tmp_path / "alone",
        budget=f"{STEPS} steps",
        overrides=edits,
        quiet=True,
    )
    said = start([*begin, "--out", str(out), "--mesh", "fsdp=2"], 2)
    assert "held-out text" in said[0] and "held-out text" not in said[1]
    ours, theirs = read_metrics(out), read_metrics(alone.directory)
    close(ours, theirs)
    evaluated = [k for k in theirs[1] if k.startswith("val_")]
    assert evaluated and "val_loss" in evaluated
    for a, b in zip(ours, theirs, strict=True):
        assert {k: a[k] for k in a if k in evaluated} == pytest.approx({k: b[k] for k in b if k in evaluated}, rel=1e-4)
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert summary["val"] == pytest.approx(alone.summary["val"], rel=1e-4)
    for net in ("model", "generator"):
        kept, other = (stemma.load(str(home / net)).state_dict() for home in (out, alone.directory))
        assert kept.keys() == other.keys()
        assert max(float((kept[k] - t).abs().max()) for k, t in other.items()) < 1e-5

    for home in (out, alone.directory):  # shards are converted as safetensors are, into what the end of the run wrote
        newest, final = checkpoint.latest(home), stemma.load(str(home / "model")).state_dict()
        assert newest is not None and (newest / "shards").is_dir() is (home == out)
        to = str(tmp_path / f"of-{home.name}")
        root.main(args=["convert", str(newest), to], prog_name="stemma", standalone_mode=False)
        found = stemma.load(to).state_dict()
        assert found.keys() == final.keys() and all(torch.equal(found[k], t) for k, t in final.items())

    shutil.rmtree(checkpoint.latest(out))  # type: ignore[arg-type]
    (out / "summary.json").unlink()
    (out / "checkpoints" / ".shards").mkdir()  # of processes that were killed while writing
    assert checkpoint.latest(out) == out / "checkpoints" / f"step-{STEPS // 2:06d}"
    resumed = resume(out, quiet=True)
    assert resumed.finished
    close(read_metrics(out), theirs)


def test_one_process_says_why_all_end(bench: Bench) -> None:
    """Where another process trains, and where processes were started by other commands; before anything is written."""
    run, python = bench.run("llama"), [sys.executable, "-m", "stemma"]
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    new = [*python, "pretrain", "bert", "--data", str(bench.data), "--mesh", "dp=2", "--out", str(bench.folder / "new")]
    with (
        disk.lock(run),
        launched([[*python, "resume", str(run), "--mesh", "fsdp=2"]] * 2) as taken,
        launched([new, [*new, "--set", "recipe.lr=0.5"]]) as unlike,
    ):
        ended = [[p.communicate(timeout=300)[1] for p in some] for some in (taken, unlike)]
    assert [p.returncode for p in unlike] == [2, 2] and sorted(p.returncode for p in taken) == [2, 5], ended
    said = [[line for errors in some for line in errors.splitlines() if not line.startswith("note:")] for some in ended]
    assert said[0] == [f"error: another process is training in {run}; wait until it ends, or choose another directory"]
    (line,) = said[1]
    assert "process 1 of the mesh was started with recipe.lr=0.5 and process 0 with recipe.lr=" in line
    assert not (bench.folder / "new").exists()
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_what_one_has_said_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert report_once.should_report("alone") and report_once.should_report("alone")
    for victim in (True, False):  # a process that was killed says nothing
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        told = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        for name, value in (told | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
            monkeypatch.setenv(name, value)
        assert victim or report_once.should_report("the disk is full")
        assert report_once.should_report("process 1 lost another one", lost=True) is victim
        assert not report_once.should_report("process 2 lost another one", lost=True)
        assert report_once.should_report("the tokens are damaged") and not report_once.should_report(
            "the tokens are damaged"
        )
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")  # no store: each speaks
    assert report_once.should_report("the tokens are damaged")


def test_a_process_that_is_gone_is_no_fault_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards.write(tmp_path / "whole", {"model": {"w": torch.ones(3)}}, {})
    assert torch.equal(shards.read(tmp_path / "whole")["model"]["w"], torch.ones(3))
    lost = RuntimeError("pair.cc:553] Connection closed by peer [127.0.0.1]:6046")
    other = CheckpointException("save", {1: (OSError("No space left on device"), traceback.extract_stack())})
    for error, writing, reading in ((lost, RuntimeError, RuntimeError), (other, ResourceError, CheckpointError)):

        def fail(*_: Any, error: BaseException = error, **__: Any) -> None:
            raise error

        for name in ("save", "load"):
            monkeypatch.setattr(dcp, name, fail)
        with pytest.raises(
            writing,
            match=r"Connection closed by peer|cannot write the shards .*: the disk is full; free some space and go on$",
        ):
            shards.write(tmp_path / "other", {"model": {"w": torch.ones(3)}}, {}, then="go on")
        with pytest.raises(reading):
            shards.read(tmp_path / "whole")


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
    with pytest.raises(UsageError, match="no axis 'cp': torch shares out a row's tokens only on CUDA"):
        mesh("fsdp=2,cp=2")


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
