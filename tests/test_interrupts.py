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


def pressed(words: list[str], wait: float, more: tuple[float, ...]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command that gets Ctrl-C after `wait` seconds, and again `more` seconds later."""
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
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


def check(name: str, wait: float, more: tuple[float, ...], home: Path, out: Path) -> bool:
    """Press Ctrl-C in a command. Returns whether that stopped it; else it was at its end."""
    code, said, err = pressed(commands(home, out)[name], wait, more)
    what = (name, wait, more, code, said[-300:], err)
    assert code in (0, 130) and "Traceback" not in err and "Exception" not in err, what
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    if code == 130:
        assert lines and (lines[-1] == "error: stopped" or "go on with: stemma resume" in lines[-1]), what
    assert sum(line.startswith("error: ") for line in lines) == int(code == 130 and "go on with" not in err), what
    if name == "convert" and (out / "config.json").exists():  # it is written last
        assert (out / "model.safetensors").exists() and (code == 130 or not list(out.glob(".*"))), what
    return code == 130


@pytest.mark.slow
def test_ctrl_c_while_a_command_works(home: Path, tmp_path: Path) -> None:
    assert check("pretrain", 2.5, (), home, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "convert", "generate"])
@pytest.mark.parametrize("more", PATTERNS)
def test_ctrl_c_at_random_moments(name: str, more: tuple[float, ...], home: Path, tmp_path: Path) -> None:
    draw = random.Random(f"{name} {more}")
    last = {"pretrain": 6, "convert": 3, "generate": 4}[name]
    waits = [draw.uniform(0, 1) if number < 3 else draw.uniform(1, last) for number in range(6)]
    stopped = [check(name, wait, more, home, tmp_path / str(number)) for number, wait in enumerate(waits)]
    assert sum(stopped) >= 3
