"""Ctrl-C in processes of their own, at any moment, once or several times: one line, exit code 130, nothing half-written."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fuzz.subjects import PRETRAIN, model, texts

# what `python -m stemma` does, with a sign that the handler is there: before that the interpreter itself starts
CODE = """
import runpy, sys
sys.argv = ['stemma', *sys.argv[1:]]
import stemma.cli.stop
print('ready', flush=True)
runpy.run_module('stemma', run_name='__main__')
"""
PATTERNS = ((), (0.05,), (0.02, 0.02, 0.02), (0.3, 0.01, 0.01))  # seconds between one Ctrl-C and the next


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("interrupts")
    (base / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(400)), "utf-8")
    model("gpt2", "bpe", **{"dims.d_model": 144, "dims.context": 2000}).save(base / "model")
    return base


def commands(home: Path, out: Path) -> dict[str, list[str]]:
    return {
        "pretrain": ["pretrain", "gpt2", "--data", f"{home}/rows.jsonl", "--budget", "100000 steps", *PRETRAIN, "--out", f"{out}"],
        "convert": ["convert", f"{home}/model", f"{out}"],
        "generate": ["generate", f"{home}/model", "The cat", "-n", "1900", "--ignore-eos"],
    }  # fmt: skip


def pressed(words: list[str], wait: float, more: tuple[float, ...]) -> tuple[int | None, str, str]:
    """(exit code, stdout, stderr) of a command that gets Ctrl-C after `wait` seconds, and again `more` seconds later.
    The code is None if it was at its end before."""
    with subprocess.Popen(
        [sys.executable, "-c", CODE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for pause in (wait, *more):
            time.sleep(pause)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGINT)
        early = process.poll() == 0
        out, err = process.communicate(timeout=60)
        return None if early else process.returncode, out, err


def check(name: str, wait: float, more: tuple[float, ...], home: Path, out: Path) -> None:
    code, said, err = pressed(commands(home, out)[name], wait, more)
    what = (name, wait, more, code, said[-300:], err)
    if code is None or (code == 0 and name == "convert"):  # it came to its end
        return
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert code == 130 and "Traceback" not in err and "Exception" not in err, what
    assert lines and (lines[-1] == "error: stopped" or "go on with: stemma resume" in lines[-1]), what
    assert sum(line.startswith("error: ") for line in lines) <= 1, what
    half = (
        [path for path in out.rglob("*") if path.name.endswith(".tmp") or path.name.startswith(".saving")]
        if out.exists()
        else []
    )
    assert name != "convert" or not out.exists() or not half, (what, half)


def test_ctrl_c_while_a_command_works(home: Path, tmp_path: Path) -> None:
    check("generate", 2.5, (), home, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "convert", "generate"])
@pytest.mark.parametrize("more", PATTERNS)
def test_ctrl_c_at_random_moments(name: str, more: tuple[float, ...], home: Path, tmp_path: Path) -> None:
    draw = random.Random(f"{name} {more}")
    for number in range(6):
        wait = draw.uniform(0, 1) if number < 3 else draw.uniform(1, 6 if name == "pretrain" else 4)
        check(name, wait, more, home, tmp_path / str(number))
