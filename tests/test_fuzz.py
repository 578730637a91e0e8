"""The fuzzer (`make fuzz`), what it found before, and payloads in every file of a run's folder."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from fuzz import edits, payloads, pool
from fuzz.cases import MARK, MODEL, Case, parse
from fuzz.subjects import SUBJECTS
from fuzz.tries import Tried, judged
from stemma.errors import CheckpointError
from stemma.text import reading

BEFORE = Path(__file__).with_name("data") / "fuzz.jsonl"  # cases that failed once, a line each
RUNS = ("run", "stopped", "sharded")
FILES = (  # of the folder of a run, by what its place says; `*` stands for names that differ from run to run
    "run.json", "metrics.jsonl", "summary.json", "samples.json", "rewinds.jsonl",
    "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json", "tokenizer/chat_template.jinja",
    "data/meta.json", "data/source.json", "data/*/tokens.bin", "data/*/documents.bin", "data/*/text.bin", "data/*/hashes.bin",
    "data/*/starts.bin", "data/*/sentences.bin", "data/*/bytes.bin", "data/*/names.bin", "data/*/labels.bin",
    "checkpoints/step-000002/state.json", "checkpoints/step-000002/model.safetensors", "checkpoints/step-000002/optimizer.safetensors",
    "checkpoints/step-000002/shards/.metadata", "checkpoints/step-000002/shards/__0_0.distcp",
    "model/config.json", "model/generation_config.json", "model/model.safetensors", "model/pytorch_model.bin",
    "model/model.safetensors.index.json", "model/tokenizer.json", "model/tokenizer_config.json", "model/payload.py", "model/modules.json",
)  # fmt: skip


def fuzz(*words: object, limit: float = 500) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parent)])}
    command = [sys.executable, "-m", "fuzz", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit, env=env)


def poisoned(name: str, each: int) -> list[Case]:
    """Every file of a run replaced by every payload, under `each` of the commands that open the run, in turns."""
    commands = [tuple(word.format(m=MODEL, f="") for word in words) for words in SUBJECTS[name].commands]
    turn = itertools.cycle(commands)
    found = []
    for file, kind in itertools.product(FILES, sorted(payloads.KINDS)):
        changes: list[tuple[str, edits.Edit]] = [(file, ["payload", kind])]
        if file == "model/pytorch_model.bin":
            changes.append(("model/model.safetensors", ["gone"]))
        if file == "model/payload.py":
            changes.append(("model/config.json", ["payload", "json"]))
        found += [Case(name, tuple(changes), command, signed=True) for command in itertools.islice(turn, each)]
    return found


# ---------------------------------------------------------------- the fuzzer itself


def test_what_runs_code_is_noticed_and_what_failed_before_passes(tmp_path: Path) -> None:
    """One process: the cases that failed once, some payloads in the files of a run, and a case that must fail."""
    before = [parse(line) for line in BEFORE.read_text("utf-8").splitlines()]
    runs = poisoned("run", 1)[::31]
    bad = Case("run", (("x.py", ["payload", "python"]),), ("--families", f"{MODEL}/x.py", "tree"))
    (tmp_path / "cases").write_text("".join(case.line() + "\n" for case in [*before, *runs, bad]))
    done = fuzz("--cases", tmp_path / "cases", "--kept", tmp_path / "kept")
    found = re.findall(r"^ +(\d+) x (.*?)  ", done.stdout, re.M)
    assert found == [("1", "a payload ran")] and done.returncode == 1, done.stdout + done.stderr
    assert f"{len(before) + len(runs) + 1:,} cases" in done.stdout
    assert parse((tmp_path / "kept" / f"{len(before) + len(runs) + 1}.json").read_text()) == bad


def test_what_is_wrong_with_a_command(tmp_path: Path) -> None:
    case = Case("gpt2", (), ("convert", MODEL, "out"))

    def problems(**said: object) -> list[str]:
        tried = Tried(**{"code": 4, "err": "error: x\n", **said})  # type: ignore[arg-type]
        return list(judged(case, tried, tmp_path, set()))

    assert problems() == [] and problems(code=0, err="") == ["writes nothing"]
    for said in (
        {"code": 70}, {"code": -11}, {"code": 99}, {"err": ""}, {"err": "error: x\nerror: y\n"}, {"err": "error: x\nmore\n"},
        {"err": "error: " + "x" * 2000 + "\n"}, {"out": "a\x1b[2J"}, {"out": "\x9b"}, {"err": "Traceback (most\nerror: x\n"},
        {"err": "thread '<unnamed>' panicked at x\nerror: x\n"}, {"seconds": 100.0}, {"memory": 10**9},
        {"code": 5, "err": "error: out of memory\n"},
    ):  # fmt: skip
        assert len(problems(**said)) == 1, said
    (tmp_path / MARK).mkdir()
    assert problems()[0] == "a payload ran"
    (tmp_path / MARK).rmdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    assert problems() == ["leaves out of what failed"] and problems(code=0, err="") == []
    (tmp_path / "out" / ".x.tmp").touch()
    assert problems(code=0, err="") == ["leaves out/.x.tmp"]


@pytest.mark.parametrize(
    ("content", "edit", "after"),
    [
        (b"abcdef", ["put", 1, 2, "xyz"], b"axyzdef"),
        (b"abcdef", ["put", 1, 0, {"hex": "ff00"}], b"a\xff\x00bcdef"),
        (b"abcdef", ["cut", 2], b"ab"),
        (b"abcdef", ["repeat", 1, 2, 3], b"abcbcbcdef"),
        (b"abcdef", ["write", ["<", ["ab", 3], ">"]], b"<ababab>"),
        (b'{"a": {"b": [1, 2]}}', ["json", ["a", "b", 1], "set", [["[", 2], ["]", 2]]], b'{"a": {"b": [1, [[]]]}}'),
        (b'{"a": 1, "b": 2}', ["json", ["a"], "delete"], b'{"b": 2}'),
        (b'{"a": 1}', ["json", ["a"], "double", "NaN"], b'{"a": 1, "a": NaN}'),
        (b'{"a": 1}', ["json", ["a"], "rename", '"\\ud800"'], b'{"\\ud800": 1}'),
        (b'{"a": 1}', ["json", ["a"], "wrap", "list"], b'{"a": [1]}'),
        (b'{"a": {"b": 1}}', ["json", ["a"], "grow", 2], b'{"a": {"b": 1, "b0": 1, "b1": 1}}'),
        (b'{"a": [1]}', ["json", ["a"], "repeat", 3], b'{"a": [1, 1, 1]}'),
        (b'{"a": 1}', ["json", [], "set", "null"], b"null"),
        (b'1\n{"a": 1}\n', ["line", 1, "json", ["a"], "set", "2"], b'1\n{"a": 2}\n'),
        (
            b'\x08\0\0\0\0\0\0\0{"a": 1}data',
            ["head", "json", ["a"], "set", "1234"],
            b'\x0b\0\0\0\0\0\0\0{"a": 1234}data',
        ),
    ],
)
def test_edits(content: bytes, edit: edits.Edit, after: bytes) -> None:
    assert edits.changed(content, edit) == after


# ---------------------------------------------------------------- more of it


@pytest.mark.slow
def test_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    done = fuzz("--seed", 1, "--count", 1500, "--seconds", 450, "--kept", tmp_path, limit=900)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_payloads_in_every_file_of_a_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "cases").write_text("".join(case.line() + "\n" for case in poisoned(name, 4)))
    done = fuzz("--cases", tmp_path / "cases", "--kept", tmp_path / "kept", limit=900)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("code", "hangs"), [("while time.process_time() < 1.5: pass", False), ("time.sleep(9)", True)])
def test_a_case_that_computes_does_not_hang(code: str, hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly, on a machine that others use too."""
    monkeypatch.setattr(pool, "QUIET", 1.2)
    reading, writing = os.pipe()
    command = [sys.executable, "-c", f"import os, time\n{code}\nos.write({writing}, b'done\\n')"]
    with subprocess.Popen(command, pass_fds=[writing]) as process:
        os.close(writing)
        try:
            assert [*pool._lines(reading, process.pid)] == [b"done"] and not hangs
        except TimeoutError:
            assert hangs
        finally:
            process.kill()
            os.close(reading)


@pytest.mark.parametrize("table", [b"", b"\xff\xff\xff\xff" + bytes(40), b"\x29\0\0\0" + bytes(40)])
def test_a_map_of_characters_may_not_ask_for_more_than_it_has(table: bytes, tmp_path: Path) -> None:
    """The tokenizers library makes room for what the first four bytes say, and ends the process."""
    text = base64.b64encode(table or b"x").decode()
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": text}]}
    core = json.loads(Tokenizer(models.BPE({"a": 0}, [])).to_str()) | {"normalizer": normalizer}
    (tmp_path / "tokenizer.json").write_text(json.dumps(core))
    with pytest.raises(
        CheckpointError, match=r"the map of characters of .* is damaged: it has \d+ bytes, and its trie"
    ):
        reading.parse(json.dumps(core), tmp_path / "tokenizer.json")
