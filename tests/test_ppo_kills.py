"""PPO killed at random moments of a rollout, an update or a save: it goes on to the same weights, numbers and samples."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from commands import Process, starter
from stemma.runs import checkpoint
from stemma.train import read_metrics
from test_kills import sets
from test_kills import told as all_of
from test_ppo import ONLINE, REWARD, asked, home

__all__ = ["home"]

STEPS = 10
MARK = """
import os
""" + REWARD.replace(
    "    return",
    "    with open(os.environ['MARKS'], 'a') as file:\n        print(record['number'], file=file)\n    return",
)


def command(home: Path, out: Path, place: Path) -> Process:
    """Begin the run, or go on with it."""
    env = {"STEMMA_CACHE": str(place / "cache"), "MARKS": str(place / "marks")}
    if (out / "run.json").exists():
        return starter().start("resume", out, "--quiet", env=env)
    own = asked(home)
    changes = ONLINE | {
        "objective.ptx": home / "text.jsonl", "objective.kl_target": 2.0, "objective.kl_horizon": 20,
        "train.average": 0.9, "train.save_every": 2, "train.eval_every": 3, "train.keep": 2,
    }  # fmt: skip
    changes = {path: "none" if value is None else value for path, value in changes.items()}
    told: list[Any] = ["--from", own["start"], "--data", own["data"], "--template", "plain", "--out", out, "--quiet"]
    told += ["--reward", f"{place / 'reward.py'}:vowels", "--budget", f"{STEPS} steps", *sets(changes)]
    return starter().start("align", "ppo", *told, env=env)


def numbers(place: Path, begin: int = 0) -> list[str]:
    """The prompts whose answers were judged, from a place in the file on."""
    return (place / "marks").read_text()[begin:].split()


def phase(out: Path, judged: int, begun: int, since: float) -> str:
    """What a process was doing that is dead now, which has judged so many answers of training (8 a step) and went on
    behind step `begun`."""
    if saving(out, since):
        return "save"
    taken = steps(out) - begun
    return "update" if judged == 8 * (taken + 1) else "rollout"


def saving(out: Path, since: float) -> bool:
    """Whether a checkpoint is half written by a process that began then."""
    with contextlib.suppress(FileNotFoundError):
        return any(path.stat().st_mtime > since for path in (out / "checkpoints").glob(".step-*.tmp"))
    return False


def steps(out: Path) -> int:
    """How many lines the metrics have."""
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def hunt(home: Path, place: Path, kills: int, seed: int) -> Counter[str]:
    draw, hits = random.Random(seed), Counter[str]()
    place.mkdir()
    (place / "reward.py").write_text(MARK)
    marks = place / "marks"
    marks.touch()
    alone = place / "alone"
    ended = command(home, alone, place).wait()
    assert ended.code == 0, ended
    expected, lives = everything(alone), 0
    held = {*numbers(place)[:5]}  # of the evaluation before the first step
    while hits.total() < kills:
        out, lives = place / f"life-{lives}", lives + 1
        while True:
            newest = checkpoint.latest(out)
            begun = 0 if newest is None else checkpoint.step_of(newest)
            since = time.time()
            again = (out / "run.json").exists()  # then its first answer is judged a second time
            before, process = marks.stat().st_size, command(home, out, place)
            wanted = before + draw.randint(0, 120)  # bytes, about three an answer
            while process.poll() is None and marks.stat().st_size < wanted:
                time.sleep(0.0005)
            aimed = hits.total() % 3 == 2  # at a save
            while aimed and process.poll() is None and not saving(out, since):
                time.sleep(0.0002)
            end = time.monotonic() + draw.uniform(0, 0.004 if aimed else 0.06)
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.0005)
            if hits.total() < kills and process.poll() is None:
                process.kill()
            ended = process.wait()
            if ended.code == 0:
                break
            assert ended.code == -signal.SIGKILL, ended
            judged = [number for number in numbers(place, before) if number not in held]
            hits[phase(out, max(0, len(judged) - again), begun, since)] += 1
        for ours, theirs in zip(everything(out), expected, strict=True):
            assert ours == theirs
    return hits


def everything(run: Path) -> tuple[Any, ...]:
    """All that a run came to but for times, its value model and its samples too."""
    assert [record["step"] for record in read_metrics(run)] == list(range(1, STEPS + 1))
    files = [*sorted((run / "value").iterdir()), run / "samples.jsonl"]
    return (*all_of(run), {p.relative_to(run).as_posix(): p.read_bytes() for p in files})


def test_a_killed_run_goes_on_to_the_same_end(home: Path, tmp_path: Path) -> None:
    assert hunt(home, tmp_path / "lives", 2, 1).total() == 2


@pytest.mark.slow
def test_twenty_kills_change_nothing(home: Path, tmp_path: Path) -> None:
    hits = hunt(home, tmp_path / "lives", 24, 2)
    print(hits)
    assert hits.total() == 24 and hits["rollout"] and hits["update"] and hits["save"], hits
