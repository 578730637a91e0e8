"""Every tuned system of the tree, on the data that stand in for its own: one command, killed and resumed, proved."""

from __future__ import annotations

import importlib
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from commands import starter
from stemma import families
from stemma.cli import COMMANDS
from stemma.train import read_metrics, verify_resume
from stemma.tuning import systems
from stemma.tuning.plans import words

BENCH = Path(__file__).resolve().parent.parent / "bench"
TINY = {"dims.d_model": 32, "dims.layers": 2, "dims.heads": 4, "dims.d_ff": 48, "dims.vocab": 500}
TIMED = ("seconds", "tokens_per_second", "peak_share")
STEPS = 6


@pytest.fixture(scope="module")
def bench() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module("systems")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, bench: Any) -> dict[str, Path]:
    """A tiny network of each structure that systems are tuned from here."""
    home = tmp_path_factory.mktemp("bases")
    for name in sorted(set(bench.BASES.values())):
        changes = TINY | {"dims.context": 256, "train.context": 256, "recipe.batch": 512, "train.eval_tokens": 512}
        kept: dict[str, Any] = {"budget": "3 steps", "overrides": changes, "quiet": True}
        stemma.pretrain(name, data="builtin:captain", out=home / name, **kept)
    return {name: home / name for name in set(bench.BASES.values())}


def test_every_system_that_the_survey_tunes_has_data(bench: Any) -> None:
    """But the one that needs a browser."""
    later = {"webgpt"}
    assert set(systems.names()) - set(bench.names()) <= later


@pytest.mark.parametrize("page", ["survey", "systems", "flan", "explained", "code", "long", "calls", "judge"])
def test_commands_of_pages_exist(page: str) -> None:
    """Of each `stemma COMMAND` of a page the command, and of `tune` what it tunes to."""
    text = (BENCH.parent / "docs" / f"{page}.md").read_text("utf-8")
    found = re.findall(r"(?:`|^)stemma ([a-z]+)(?: ([A-Za-z0-9.-]+))?", text, re.M)
    assert found
    for command, what in found:
        assert command in COMMANDS, command
        if command == "tune":
            assert what in (*words(), "complete", "NAME") or systems.stages_of(what)


def metrics(place: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in TIMED} for record in read_metrics(place)]


def steps(out: Path) -> int:
    found = [*out.glob("metrics.jsonl"), *out.glob("stages/*/metrics.jsonl")]
    return sum(len(path.read_bytes().split(b"\n")[:-1]) for path in found)


def command(name: str, start: Path, out: Path) -> list[str | Path]:
    small = ["train.save_every=1", "train.eval_tokens=600", "recipe.batch=512", "train.threads=1"]
    sets = [word for value in small for word in ("--set", value)]
    return ["tune", name, "--from", start, "--budget", f"{STEPS} steps", "--out", out, "--quiet", *sets]


@pytest.mark.slow
@pytest.mark.parametrize("name", systems.names())
def test_a_system_runs_is_killed_and_goes_on(tmp_path: Path, bases: dict[str, Path], bench: Any, name: str) -> None:
    """The same metrics and weights as of a run that nobody disturbed; `stemma verify resume` proves it of the last."""
    if name not in bench.names():
        pytest.skip(f"{name} has no data that stand in")
    start = bases[bench.base_of(families.family(name))]
    whole = starter().run(*command(name, start, tmp_path / "whole"), limit=300)
    assert whole.code == 0, whole.err
    out, draw = tmp_path / "run", random.Random(name)
    for _ in range(3):
        begun, seen = (out / "run.json").exists() or (out / "stages.json").exists(), steps(out)
        process = starter().start(*(["resume", out, "--quiet"] if begun else command(name, start, out)))
        while process.poll() is None and steps(out) <= seen:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.05)
        if process.poll() is None:
            process.kill()
            process.wait(60)
    again = ["resume", out, "--quiet"] if (out / "run.json").exists() or (out / "stages.json").exists() else None
    ended = starter().run(*(again or command(name, start, out)), limit=300)
    assert ended.code == 0, ended.err
    for place in [Path(), *(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").glob("stages/*"))]:
        assert metrics(out / place) == metrics(tmp_path / "whole" / place)
    one, two = (stemma.load(tmp_path / which).state_dict() for which in ("whole", "run"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert verify_resume(out, 2)["steps"] == 2
    first = json.loads((next(iter(out.glob("stages/1")), out) / "run.json").read_text())
    assert first["plan"]["system"] == name
