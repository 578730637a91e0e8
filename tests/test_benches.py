"""That every script under bench/ still runs: its smallest setting. What it measures is no matter here."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
SMALLEST: dict[str, tuple[str, str]] = {  # arguments, and what the output holds when the last row is measured
    "align": ("--layers 1 --turns 1 --threads 1 --pairs 16 --prompts 1 --tokens 4 dpo grpo ppo", "plain"),
    "data": ("", "library"),
    "code": ("--seeds 1 --base 2 --steps 8 --cases 5 --files 2", "ul2r 0.16"),
    "decode": ("--threads 1 --repeats 1 --new 4 --only t5", "t5 60M, bfloat16"),
    "dpo": ("--seeds 1 2 --context 128 --quiet", "all"),
    "explained": ("--small --seeds 1 --steps 3 --tokens 2000 --questions 6 --quiet", "one stage"),
    "families": ("--threads 1 --repeats 1 --rows 2 --length 16 --new 4 --only llama", "llama"),
    "giraffe": ("--seeds 1 --base 15 --steps 1 --texts 16 --only none linear", "factor 8 in use"),
    "flan": ("--small --seeds 1 --base-steps 4 --steps 2 --rows 120 --each 2 --quiet", "both"),
    "ghost": ("--small --seeds 1 --steps 2 --more 2", "all answers"),
    "growth": ("weights attention data --scale 0.002 --repeats 1", "statistics of 500 MB"),
    "gorilla": ("--small --seeds 1 --steps 2 --tuning 2 --asked 4 --quiet", "documentation beside half"),
    "gpu": ("--small --rows 2 --steps 1 --turns 1", "q4_0  compiled"),
    "grpo": ("--small --seeds 1 --sft 2 --steps 2 --asked 8 --quiet", "grpo"),
    "koala": ("--small --seeds 1 --steps 2 --tuning 2 --asked 4 --quiet", "both, not told apart"),
    "learning": ("--steps 1 gpt2 t5", "t5"),
    "longllama": ("--seeds 1 --base 15 --steps 1 --texts 8 --contexts 0 6", "C = 6"),
    "medpalm": ("--small --seeds 1 --base 3 --steps 2 --quiet", "both"),
    "plan": ("--cases 1", "bert"),
    "qlora": ("--small --base 3 --steps 2 --seeds 1 --quiet", "all weights"),
    "methods": ("--small --base 5 --steps 1 --seeds 1 --quiet", "grpo"),
    "rlhf": ("--small --seeds 1 --base 4 --steps 2 --quiet", "rule: best"),
    "recipes": ("tulu2 --small --base 10 --seeds 1", "DPO"),
    "quantized": ("--threads 1 --repeats 1 --new 4 --layers 2", "keep plain"),
    "seq2seq": ("--rounds 1 --new 4", "mt5"),
    "serve": ("--small --clients 4 --requests 4 --rounds 1", "99th percentile"),
    "systems": (
        "--small --seeds 1 --quiet --steps 3 --budget '2 steps' --only alpaca --text builtin:captain",
        "alpaca",
    ),
    "tasks": ("--small --seeds 1 --quiet", "TF-IDF"),
    "train": ("--alike fp32 --threads 1 --seconds 1 --skip-resume gpt2 electra xlnet", "xlnet"),
    "tune": ("--layers 1 --turns 1 --threads 1 --examples 16 sft", "tokens/s"),
    "write": ("--small --steps 3 --seeds 1 --budget '2 steps' --quiet", "new weights"),
    "uneven": ("--steps 1 --scale 0.05", "bert   cut into paragraphs"),
}


def test_every_bench_is_tried() -> None:
    assert sorted(path.stem for path in BENCH.glob("*.py")) == sorted(SMALLEST)


def test_rows_of_the_benches_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of Stemma's loop over the rows that `bench/train.py` and `bench/gpu.py` feed it."""
    monkeypatch.syspath_prepend(str(BENCH))
    ours = importlib.import_module("training.ours")
    rows = importlib.import_module("training.rows")
    held = rows.Rows("decoder", rows.Shape(2, 16), 1)
    step, loop = ours.ours("gpt2", held, "fp32", False)
    assert 8 < step() < 10  # uniform over the vocabulary: log(8192) = 9.01
    assert loop.cost() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_every_bench_runs(name: str) -> None:
    arguments, last = SMALLEST[name]
    command = [sys.executable, str(BENCH / f"{name}.py"), *shlex.split(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and last in done.stdout, done.stdout[-1000:] + done.stderr[-2000:]
