"""What a run writes of itself, of another shape: its store, its metrics, the state of its checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fuzz.subjects import train
from stemma import disk
from stemma.data import Store
from stemma.errors import CheckpointError
from stemma.report import write
from stemma.runs import checkpoint, metrics
from stemma.train import read_metrics, resume


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train("gpt2", run, stop=2)
    return run


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


# ---------------------------------------------------------------- the store


def test_the_metadata_of_a_store_is_typed(run: Path) -> None:
    path = run / "data" / "meta.json"
    meta = disk.read_object(path)
    entry = meta["files"]["tokens"]
    wrong: list[dict[str, Any]] = [
        *({"documents": n} for n in (10**18, -1, 0, "x", None, 1.5, True)),
        *({"version": v} for v in ("../..", "/", "", 3, None, meta["version"] + "/../" + meta["version"])),
        *({"files": f} for f in ([], {}, None, "x", {"tokens": entry}, {**meta["files"], "../x": entry})),
        *({"files": {**meta["files"], "tokens": e}} for e in (3, {}, {**entry, "dtype": "O"}, {**entry, "dtype": "<f8"})),
        *({"files": {**meta["files"], "hashes": {**meta["files"]["hashes"], **e}}} for e in ({"bytes": "8"}, {"sha256": 3})),
        *({"parts": p} for p in (3, [3], [["x", "y", None]], [["x", -1.0, None]], [["x"]], [[3, None, None]])),
        *({"languages": v} for v in ("en", [3], {})),
        *({"vocab": v} for v in (None, "x", 3)),
        {"fingerprint": 3}, {"format": "x"},
    ]  # fmt: skip
    for change in wrong:
        path.write_text(json.dumps({**meta, **change}))
        with pytest.raises(CheckpointError):
            Store.open(run / "data").verify()
    path.write_text(json.dumps(meta))
    Store.open(run / "data").verify()


@pytest.mark.parametrize(
    ("name", "at", "value", "said"),
    [
        ("tokens", 5, 60_000, "tokens.bin has 60,000 of"),
        ("documents", 1, 10**12, "documents.bin has places outside of tokens.bin"),
        ("documents", 0, 3, "documents.bin has places outside"),
        ("sentences", -1, -4, "sentences.bin has places outside"),
        ("bytes", 2, -5, "bytes.bin has places outside"),
        ("labels", -1, 1, "labels.bin has places outside"),
        ("starts", 1, -7, "starts.bin has places outside"),
        ("starts", 1, 10**6, "starts.bin has places outside"),
    ],
)
def test_arrays_of_a_store_that_do_not_fit_each_other(name: str, at: int, value: int, said: str, run: Path) -> None:
    path = run / "data" / "meta.json"
    meta = disk.read_object(path)
    file, entry = run / "data" / meta["version"] / f"{name}.bin", meta["files"][name]
    array = np.fromfile(file, dtype=entry["dtype"])
    array[at] = value
    file.unlink()  # it is a link to the store of the cache
    array.tofile(file)
    entry["sha256"] = hashlib.sha256(array.tobytes()).hexdigest()
    path.write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match=f"damaged: {said}"):
        resume(run, quiet=True)


# ---------------------------------------------------------------- metrics


def test_lines_that_no_run_writes_are_passed_over(run: Path, tmp_path: Path) -> None:
    path = run / "metrics.jsonl"
    good = path.read_text().splitlines()
    assert len(good) == 2
    for odd in ('{"step": 2}', '{"step": 2, "loss": "x"}', '{"step": 2, "loss": null}', '{"step": true}', '{"step": 2, "loss": [1]}',
                '{"step": 1e3, "loss": 1}', "[]", "3", '{"step": "2"}'):  # fmt: skip
        path.write_text(f"{good[0]}\n{odd}\n")
        assert [r["step"] for r in metrics.records(path)] == ([1, 2] if odd == '{"step": 2}' else [1]), odd
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    assert resume(run, quiet=True).finished and len(read_metrics(run)) == 3


def test_a_report_of_numbers_that_no_run_reaches(run: Path, tmp_path: Path) -> None:
    odd = [{"step": i, "loss": 1.7e308, "tokens": 1e308, "seconds": 10**39} for i in range(1, 900)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in odd))
    (run / "summary.json").write_text('{"val": {"bits_per_byte": 1e308}, "tokens": 1e308, "seconds": 1e-320}')
    assert "no step was recorded" in write([run], tmp_path / "x.html").read_text("utf-8")


# ---------------------------------------------------------------- checkpoints


def test_checksums_are_of_the_files_of_a_checkpoint(run: Path) -> None:
    place = checkpoint.steps(run)[-1]
    state = disk.read_json(place / checkpoint.STATE)

    def signed(names: list[str]) -> None:
        odd = {**state, checkpoint.SUMS: dict.fromkeys(names, 0)}
        odd[checkpoint.OWN] = checkpoint._own(odd)
        (place / checkpoint.STATE).write_text(json.dumps(odd))

    for name in ("/dev/zero", "../../run.json", "x", "shards/../x", ""):
        signed([name])
        with pytest.raises(CheckpointError, match="which is no file of it"):
            checkpoint.verify(place)


def test_pipes_in_place_of_a_checkpoint(run: Path) -> None:
    place = checkpoint.steps(run)[-1]
    state = disk.read_json(place / checkpoint.STATE)
    state[checkpoint.SUMS] = {}
    state[checkpoint.OWN] = checkpoint._own(state)
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for a pipe"))
    signal.alarm(20)
    try:
        for name in checkpoint.TENSORS:
            (place / name).rename(place / "held")
            os.mkfifo(place / name)
            for signs in (False, True):
                if signs:
                    (place / checkpoint.STATE).write_text(json.dumps(state))
                with pytest.raises(CheckpointError, match="is a pipe or a device"):
                    checkpoint.load(place)
            (place / name).unlink()
            (place / "held").rename(place / name)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
