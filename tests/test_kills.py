"""SIGKILL at random moments: no finished checkpoint is lost, and what comes out is what an undisturbed run gives, bit for
bit. `STEMMA_KILLS=40 pytest tests/test_kills.py -m slow -s` prints where so many kills a phase hit."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from commands import Ended, Process, Starter, starter
from stemma.errors import CheckpointError
from stemma.runs import checkpoint
from stemma.train import read_metrics
from test_train import words

STEPS, EVERY = 12, 2
SMALL = {
    "dims.d_model": 32,
    "dims.layers": 1,
    "dims.heads": 2,
    "dims.d_ff": 64,
    "dims.vocab": 420,
    "dims.context": 32,
    "recipe.batch": 128,
    "train.eval_tokens": 400,
    "train.threads": 1,
    "train.precision": "fp32",
    "train.save_every": EVERY,
    "train.keep": 50,
}
CASES: dict[str, dict[str, Any]] = {
    "bert": {},  # masked tokens, sentence pairs, dropout
    "electra": {},  # with its generator
    "t5": {},  # spans, Adafactor
    "xlnet": {"objective.reuse": 8, "train.keep": 1},  # permutations, memory; older checkpoints are removed
    "gpt2": {"train.average": 0.9},  # next token, a mean of the weights
    "longllama": {"arch.mask": "Memory(layers=(0,), last=16)", "objective.texts": 1},  # rows that see other rows
}
TIMED = ("seconds", "tokens_per_second", "peak_share")


def sets(changes: dict[str, Any]) -> list[str]:
    return [word for path, value in changes.items() for word in ("--set", f"{path}={value}")]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in words(160)), "utf-8")
    return path


# ---------------------------------------------------------------- where a process was when it died


@dataclass
class Life:
    """A run from its first command to its end, by way of kills."""

    starter: Starter
    name: str
    text: Path
    home: Path
    draw: random.Random
    hits: Counter[str] = field(default_factory=Counter)
    seen: dict[str, tuple[int, ...]] = field(default_factory=dict)  # finished checkpoints, and their checksums
    shards: set[str] = field(default_factory=set)

    @property
    def out(self) -> Path:
        return self.home / "run"

    @property
    def keep(self) -> int:
        return int((SMALL | CASES[self.name])["train.keep"])

    def start(self) -> Process:
        """The first command again, until there is a run to go on with."""
        self.begun = checkpoint.latest(self.out)
        env = {"STEMMA_CACHE": str(self.home / "cache")}
        if (self.out / "run.json").exists():
            return self.starter.start("resume", self.out, "--quiet", env=env, shard=2000)
        changes = sets(SMALL | CASES[self.name])
        told = ["--data", self.text, "--budget", f"{STEPS} steps", "--out", self.out, *changes, "--quiet"]
        return self.starter.start("pretrain", self.name, *told, env=env, shard=2000)

    def steps(self) -> list[int]:
        """The steps in the metrics, whole lines only."""
        try:
            lines = (self.out / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        except OSError:
            return []
        return [json.loads(line)["step"] for line in lines]

    def building(self) -> bool:
        """Whether there is a store half made."""
        return any(self.home.glob("cache/stores/*/.????????????.tmp")) and not (self.out / "run.json").exists()

    def saving(self) -> bool:
        """Whether there is a checkpoint half written, or half removed."""
        return any((self.out / "checkpoints").glob(".step-*.tmp"))

    def stepping(self) -> bool:
        """Whether a step was taken since the process began, all that was to be saved is, and the run is not at its end."""
        taken = self.steps()
        last, saved = taken[-1] if taken else 0, checkpoint.latest(self.out)
        done = last // EVERY * EVERY
        return (
            last > (checkpoint.step_of(self.begun) if self.begun else 0)
            and last < STEPS
            and not self.saving()
            and (done == 0 or (saved is not None and checkpoint.step_of(saved) >= done))
        )

    def phase(self) -> str:
        """Where the process was that is dead now, by what it left on the disk."""
        if self.building():
            return "data"
        if self.saving():
            return "save"
        return "step" if self.stepping() else "other"

    def kill(self, aim: str) -> bool:
        """Start a process and kill it at a random moment of the phase `aim`, or ("any") at any moment; what it was
        really in is counted. False if it came to its end first."""
        process = self.start()
        inside = {"data": self.building, "save": self.saving, "step": self.stepping}.get(aim)
        fresh = 0 if inside is None else self.draw.randint(1, 3 if aim == "save" else 1)  # the how manieth of its kind
        was = False
        while process.poll() is None and fresh:
            now = inside()  # type: ignore[misc]
            fresh -= int(now and not was)
            was = now
        longest = {"data": 0.6, "save": 0.004, "step": 0.02, "any": 2.5}[aim]
        end = time.monotonic() + self.draw.uniform(0, longest)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.0002)
        if process.poll() is None:
            process.kill()
        ended = process.wait()
        if ended.code == 0:
            return False
        assert ended.code == -signal.SIGKILL, ended
        self.hits[self.phase()] += 1
        self.whole()
        return True

    def whole(self) -> None:
        """Every finished checkpoint loads, and is what it was; none is gone but those that made room."""
        there = {}
        for path in checkpoint.steps(self.out):
            _, _, state = checkpoint.load(path)
            there[path.name] = (*state["crc32"].values(), state["step"])
        for name, sums in self.seen.items():
            assert there.get(name, sums) == sums, name
        last = max(self.seen, default="")
        assert max(there, default="") >= last
        if self.keep >= STEPS:
            assert self.seen.keys() <= there.keys()
        assert len(there) >= min(self.keep, len(self.seen))
        self.seen |= there
        finished = {path.name for path in self.home.glob("cache/stores/*/.shards/*.shard")}
        if self.building():
            assert self.shards <= finished
        self.shards |= finished

    def end(self) -> None:
        """Let it come to its end."""
        ended = self.start().wait()
        assert ended.code == 0, ended
        self.whole()
        left = [path for path in self.home.rglob(".*") if path.name != ".shards"]
        assert not left, left


def told(run: Path) -> tuple[Any, ...]:
    """All that a run came to, but for times and paths."""
    curve = [{k: v for k, v in record.items() if k != "seconds"} for record in read_metrics(run)]
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    last = checkpoint.latest(run)
    assert last is not None
    folders = [last, run / "model", run / "generator", run / "tokenizer"]
    files = [p for folder in folders if folder.is_dir() for p in sorted(folder.iterdir()) if p.name != "state.json"]
    state = json.loads((last / "state.json").read_text("utf-8"))
    return (
        curve,
        {k: v for k, v in summary.items() if k not in TIMED},
        {k: v for k, v in state.items() if k not in ("seconds", "crc32_state")},
        {p.relative_to(run).as_posix(): p.read_bytes() for p in files},
    )


def hunt(
    start: Starter, name: str, text: Path, home: Path, seed: int, aims: list[str], kind: type[Life] = Life
) -> Counter[str]:
    """Kill runs of a family as `aims` says, in lives as many as that takes; each ends as one that was left alone."""
    draw, hits = random.Random(seed), Counter[str]()
    alone = kind(start, name, text, home / "alone", draw)
    alone.end()
    expected, number = told(alone.out), 0
    assert [record["step"] for record in expected[0]] == list(range(1, STEPS + 1))
    while aims:
        number += 1
        assert number < 40, (name, hits)
        life = kind(start, name, text, home / str(number), draw)
        while aims and (aims[0] != "data" or not (life.out / "run.json").exists()):
            if not life.kill(aims[0]):
                break  # it was faster
            if life.phase() == aims[0] or aims[0] == "any":
                aims.pop(0)
        life.end()
        found = told(life.out)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == theirs, name
        hits += life.hits
        shutil.rmtree(life.home)
    return hits


def table(hits: dict[str, Counter[str]]) -> str:
    phases = ("data", "step", "save", "other")
    rows = [
        f"{name:<10}" + "".join(f"{count[p]:>7}" for p in phases) + f"{count.total():>7}"
        for name, count in hits.items()
    ]
    total = sum(hits.values(), Counter[str]())
    last = f"{'all':<10}" + "".join(f"{total[p]:>7}" for p in phases) + f"{total.total():>7}"
    return "\n".join([f"{'killed in':<10}" + "".join(f"{p:>7}" for p in (*phases, "all")), *rows, last])


def test_kills_lose_nothing(text: Path, tmp_path: Path) -> None:
    hits = hunt(starter(), "electra", text, tmp_path, 3, ["data", "save", "step", "save"])
    assert hits["data"] >= 1 and hits["save"] >= 2 and hits["step"] >= 1, hits


@pytest.mark.slow
def test_many_kills_lose_nothing(text: Path, tmp_path: Path) -> None:
    """Each command is a Python of its own, as a person starts it."""
    each = int(os.environ.get("STEMMA_KILLS", "10"))
    hits: dict[str, Counter[str]] = {}
    with Starter(real=True) as start:
        for seed, name in enumerate(CASES, 11):
            draw = random.Random(seed)
            rest = ["save", "step"] * -(-each // len(CASES)) + ["any"]
            draw.shuffle(rest)
            aims = ["data"] * -(-each // len(CASES)) + rest
            hits[name] = hunt(start, name, text, tmp_path / name, seed, aims)
    print("\n" + table(hits))
    total = sum(hits.values(), Counter[str]())
    assert all(total[phase] >= each for phase in ("data", "save", "step")), table(hits)


# ---------------------------------------------------------------- one process of two


def pair(start: Starter, args: list[Any], env: dict[str, str]) -> list[Process]:
    """A command as two processes of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        base = env | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    return [start.start(*args, env=base | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]


def cursors(run: Path) -> dict[str, Any]:
    """Where each checkpoint stands in the order of the text."""
    return {p.name: checkpoint.verify(p)["cursor"] for p in checkpoint.steps(run)}


def alike(run: Path, expected: Path) -> None:
    """The same rows in the same order: as many targets in every step, losses the same up to rounding, the same places
    in the text."""
    ours, theirs = read_metrics(run), read_metrics(expected)
    assert [r["step"] for r in ours] == [r["step"] for r in theirs] == list(range(1, STEPS + 1))
    assert [r["targets"] for r in ours] == [r["targets"] for r in theirs]
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], rel=2e-5)
    assert cursors(run) == cursors(expected)


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)], ids=["the other", "the first"])
def test_one_of_two_is_killed(text: Path, tmp_path: Path, victim: int) -> None:
    """The one that is left ends, with a sentence; two or one go on in the same order of the text."""
    env = {"STEMMA_CACHE": str(tmp_path / "cache")}
    out, changes = tmp_path / "run", sets(SMALL | {"arch.dropout": "Dropout()", "train.save_every": 3})
    told = ["--data", text, "--budget", f"{STEPS} steps", *changes, "--quiet"]
    start = starter()
    assert start.run("pretrain", "bert", *told, "--out", tmp_path / "alone", env=env).code == 0
    both = pair(start, ["pretrain", "bert", *told, "--out", out, "--mesh", "dp=2"], env)
    at = random.Random(victim).randint(4, 8)
    while both[0].poll() is None and len(read_metrics(out) if (out / "metrics.jsonl").exists() else []) < at:
        time.sleep(0.001)
    both[victim].kill()
    left: Ended = both[1 - victim].wait(60)
    assert both[victim].wait().code == -signal.SIGKILL
    assert left.code == 5 and "Traceback" not in left.err, left
    said = left.err.strip().splitlines()[-1]
    assert re.fullmatch(
        rf"error: process {1 - victim} of mesh dp=2 lost another one, which ended .*: stemma resume {out}", said
    ), left
    assert checkpoint.steps(out)
    for path in checkpoint.steps(out):
        checkpoint.load(path)
    shutil.copytree(out, tmp_path / "copy")
    ended = [p.wait() for p in pair(start, ["resume", out, "--quiet", "--mesh", "dp=2"], env)]
    assert [e.code for e in ended] == [0, 0], ended
    assert (one := start.run("resume", tmp_path / "copy", "--quiet", env=env)).code == 0, one
    alike(out, tmp_path / "alone")
    alike(tmp_path / "copy", tmp_path / "alone")
    assert not [p for p in (out / "checkpoints").glob(".*")]
    newest = checkpoint.latest(out)
    assert newest is not None
    shard = next((newest / "shards").glob("*.distcp"))
    raw = shard.read_bytes()
    shard.write_bytes(raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :])
    with pytest.raises(CheckpointError, match=f"shards/{shard.name} is damaged: it is not what was written; delete"):
        checkpoint.load(newest)
