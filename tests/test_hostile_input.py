"""Numbers, depths, shapes and control characters that nobody writes by accident: one line and an exit code, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stemma import disk
from stemma.cli import main, stop
from stemma.errors import CheckpointError, MalformedError, UsageError, brief, printable
from stemma.report import read as report_read
from stemma.runs import checkpoint, folder
from stemma.train import pretrain, resume
from stemma.train.config import overrides
from test_train import SMALL, words

ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m"


def leave(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in args])
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


# ---------------------------------------------------------------- numbers and depths


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("dims.vocab=1e308", "does not fit; expected a whole number"),
        ("dims.vocab=1e30", "does not fit; expected a whole number"),
        ("dims.layers=" + "9" * 5000, "(5,000 characters) does not fit"),
        ("dims.layers=1000000000", "dims.layers=1000000000 is more than the 10,000"),
        ("recipe.lr=1e400", "expected a finite number"),
        ("dims" + ".a" * 5000 + "=1", "no field"),
        ("arch.norm=RMSNorm(eps=a" + ".a" * 9000 + ")", "does not fit"),
        ("arch.norm=RMSNorm(eps=" + "-" * 9000 + "1)", "cannot be read"),
        ("arch.norm=RMSNorm(eps=" + "(" * 3000 + ")" * 3000 + ")", "cannot be read"),
    ],
)
def test_settings_beyond_reason(setting: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = leave(capsys, "plan", "gpt2", "--set", setting)
    assert code == 2 and said in err and len(err) < 1000 and err.count("\n") == 1


BOMB = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{b}: &{b} {{{', '.join(f'k{i}: *{a}' for i in range(9))}}}\n"
    for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 100)}]}}\n" for a, b in zip("abcd", "bcde", strict=True)
)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.yaml", "a: &a\n  b: *a\n", "an anchor holds itself"),
        ("x.yaml", BOMB, "its anchors stand for"),
        ("x.yaml", MERGED, "its anchors stand for"),
        ("x.yaml", "".join("  " * i + "a:\n" for i in range(150)) + "  " * 151 + "1\n", "more than 100 deep"),
        ("x.toml", "a" + ".a" * 5000 + " = 1\n", "more than 100 deep"),
        ("x.toml", "a = " + "9" * 5000 + "\n", "cannot be read"),
    ],
)
def test_settings_files_that_multiply_or_nest(name: str, text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    begin = time.process_time()
    with pytest.raises(UsageError, match=said):
        overrides(path)
    assert time.process_time() - begin < 2


def test_anchors_of_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {x: 1}\nb:\n  <<: *a\n  y: [*a, 2]\n")
    assert overrides(path) == {"a.x": 1, "b.x": 1, "b.y": [{"x": 1}, 2]}


DEEP, LONG = "[" * 500 + "]" * 500, "9" * 300


@pytest.mark.parametrize("value", [DEEP, LONG, "[" * 100_000, "9" * 5000])
def test_json_of_files_is_bounded(value: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(f'{{"model_type": "gpt2", "x": {value}}}')
    with pytest.raises(MalformedError, match="cannot be read as JSON"):
        disk.read_object(path)
    (tmp_path / "x.jsonl").write_text(f'{{"step": {value}}}\n')
    assert [v for _, v in disk.read_jsonl(tmp_path / "x.jsonl")] == [disk.BROKEN]


@pytest.mark.parametrize("number", ["1e308", LONG[:39], "1e30", "300000", "1000000000"])
def test_a_config_of_any_size_is_refused_at_once(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    for key in ("n_layer", "n_embd", "vocab_size", "n_head") if len(number) != 6 else ("n_layer",):
        text = json.dumps(config | {key: 7}).replace("7", number)
        (tmp_path / "config.json").write_text(text)
        begin = time.monotonic()
        code, _, err = leave(capsys, "generate", tmp_path, "x")
        assert code == 4 and key in err and time.monotonic() - begin < 5, (key, err)


def test_messages_are_short() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert brief("x" * 10_000).endswith("... (10,000 characters)") and len(brief("x" * 10_000)) < 250
    assert "too large" in brief(10**5000) and brief(loop) == "[[...]]" and brief(1.5) == "1.5"


def test_every_error_is_one_line() -> None:
    assert str(CheckpointError("x does not fit:\r\n  - a\n\n  - b\n")) == "x does not fit: - a - b"
    long = str(UsageError(f"no {'x' * 100_000} here; give another"))
    assert len(long) < 1400 and long.startswith("no xxx") and long.endswith(" here; give another") and "100,0" in long


# ---------------------------------------------------------------- what a run writes of itself


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("own")
    text = base / "rows.jsonl"
    text.write_text("".join(json.dumps({"text": t}) + "\n" for t in words()), "utf-8")
    run = base / "run"
    pretrain("gpt2", data=str(text), out=run, budget="2 steps", overrides={**SMALL, "train.save_every": 1}, quiet=True)
    return run


def test_the_state_of_a_checkpoint_is_typed(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "summary.json").unlink()
    place = checkpoint.steps(run)[-1]
    state = disk.read_json(place / checkpoint.STATE)
    wrong: list[Any] = [None, "x", [], {}, True, 2**70, [1], {"slot": "x"}, {"y": {}}]
    for key in ("step", "tokens", "seconds", "rewinds", "losses", "cursor", "crc32"):
        for value in wrong:
            if (key, value) in (("losses", []), ("losses", [1]), ("crc32", {}), ("crc32", None)):
                continue
            odd = {**state, key: value}
            odd[checkpoint.OWN] = checkpoint._own(odd)
            (place / checkpoint.STATE).write_text(json.dumps(odd))
            with pytest.raises(CheckpointError):
                resume(run, quiet=True)


@pytest.mark.parametrize(
    "value",
    [[], "x", {"val": 3}, {"val": {"bits_per_byte": "x"}}, {"val": {"a": None}}, {"baselines": [1]}, {"steps": "x"}],
)
def test_a_summary_is_typed(value: Any, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "summary.json").write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match="is damaged; delete it"):
        folder.summary(run)


@pytest.mark.parametrize(
    "value",
    [
        {"fill": [{"guesses": 3}]},
        {"fill": [{"guesses": [[{}]]}]},
        {"fill": [{"truth": 5}]},
        {"repair": [{"parts": 1}]},
        {"fill": {"x": 1}},
        {"continue": [3]},
    ],
)
def test_samples_of_another_shape(
    value: Any, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(finished / "run.json", tmp_path / "run")
    (tmp_path / "run" / "samples.json").write_text(json.dumps(value))
    code, _, err = leave(capsys, "report", tmp_path / "run", "--out", tmp_path / "x.html")
    assert code == 3 and "samples.json is damaged" in err


def test_pipes_in_place_of_files(finished: Path, tmp_path: Path) -> None:
    for name in ("config.json", "metrics.jsonl"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="is a pipe or a device"):
        disk.read_object(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="is a pipe or a device"):
        list(disk.read_jsonl(tmp_path / "metrics.jsonl"))
    shutil.copy(finished / "run.json", tmp_path)
    assert report_read(tmp_path).steps == []


# ---------------------------------------------------------------- the terminal


def test_control_characters_are_shown() -> None:
    assert printable(ESCAPE) == r"\x1b]0;owned\x07\x1b[2J\x9b31m"
    assert printable("a\tb\nc\r\né\u200d") == "a\tb\nc\r\né\u200d" and printable("a\rb\x7f") == r"a\x0db\x7f"


def test_no_command_prints_them_raw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / f"x{ESCAPE.replace('/', '')}.jsonl"
    odd.write_text(json.dumps({"text": "one two three", "lang": ESCAPE}) + "\n")
    config = tmp_path / "model"
    config.mkdir()
    (config / "config.json").write_text(json.dumps({"model_type": "gpt2", ESCAPE: 1}))
    binary = tmp_path / f"b{ESCAPE}.txt"
    binary.write_bytes(b"\0" * 100)
    for command in (
        ["data", "stats", odd],
        ["data", "stats", tmp_path],
        ["generate", config, "x"],
        ["generate", tmp_path / ESCAPE, "x"],
        ["tree", ESCAPE],
        [ESCAPE],
        ["plan", "gpt2", "--set", f"{ESCAPE}=1"],
        ["plan", "gpt2", "--set", f"arch.norm={ESCAPE}"],
        ["show", "gpt2", f"--{ESCAPE}"],
    ):
        _, out, err = leave(capsys, *command)
        assert out or err
        assert not {"\x1b", "\x07", "\x9b"} & {*out, *err}, (command, out, err)


def test_every_command_prints_by_one_function() -> None:
    """Of `stemma.cli`, only `terminal` calls click's or Python's printing; elsewhere `disk.tell` does."""
    source = Path(disk.__file__).parent
    for path in source.rglob("*.py"):
        text = path.read_text("utf-8")
        if path.name not in ("terminal.py", "meta.py"):
            assert "click.echo(" not in text.replace("click.echo(overview())", ""), path
        if path.name != "disk.py":
            assert "file=sys.stderr" not in text, path


# ---------------------------------------------------------------- standard streams and Ctrl-C


def shell(line: str, **more: Any) -> subprocess.CompletedProcess[str]:
    python = f"{sys.executable} -m stemma"
    return subprocess.run(["bash", "-c", line.replace("stemma", python)], capture_output=True, text=True, **more)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_streams_that_are_closed_full_or_broken() -> None:
    for line, code in (
        ("stemma nothing 2>&-", 2),
        ("stemma nothing 2>/dev/full", 2),
        ("stemma generate x <&-", 2),
        ("stemma tree >/dev/full", 5),
        ("stemma tree <&- >&- 2>&-", 0),
        ("stemma data stats builtin:nothing --json 2>&1 | true; exit ${PIPESTATUS[0]}", 2),
    ):
        done = shell(line, timeout=60)
        assert done.returncode == code, (line, done)
        assert "Traceback" not in done.stderr and "Exception" not in done.stderr, (line, done)


@pytest.mark.parametrize("presses", [(0.15,), (0.6,), (0.5, 0.01), (0.4, 0.01, 0.01, 0.01)])
def test_ctrl_c_is_one_line(presses: tuple[float, ...]) -> None:
    code = "import runpy, sys, time; sys.argv = ['stemma', 'quickstart']; sys.path.insert(0, '')\nimport stemma.cli\n"
    code += "print('ready', flush=True)\nimport torch, transformers\ntime.sleep(20)\n"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        for wait in presses:
            time.sleep(wait)
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        assert process.wait(20) == 130 and err == "error: stopped\n"


@pytest.mark.parametrize("words", [["tree", "bert"], ["tree", "nothing"], ["nothing"]])
def test_ctrl_c_is_ignored_once_a_command_is_at_its_end(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, stop._handle)
    try:
        leave(capsys, *words)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
