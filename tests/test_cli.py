"""The command line: what it prints, and how it fails."""

from __future__ import annotations

import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stemma import families, samples
from stemma.cli import COMMANDS, main
from stemma.disk import nearest_path
from stemma.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run `stemma ARGS` in this process: (exit code, standard output, standard error)."""
    monkeypatch.setattr(families, "_added", dict(families._added))

    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in args])
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


def process(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`python -m stemma ARGS` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "stemma", *args],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "utf-8", **env},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def block(path: str, name: str) -> str:
    """The code between `<!-- name -->` and `<!-- /name -->` of a page."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```\n<!-- /{name} -->", (ROOT / path).read_text("utf-8"), re.S)
    assert found is not None, f"{path} has no block {name}"
    return found[1]


# ---------------------------------------------------------------- start


def test_help_is_fast_and_needs_no_torch() -> None:
    code = (
        "import sys; from stemma.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    best = 9.0
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        best = min(best, time.monotonic() - start)
    assert done.stderr.strip() == "False"
    assert best < 1.5  # measured 0.06 s on an idle machine; this leaves room for a busy one


@pytest.mark.parametrize("args", [["tree"], ["show", "bert"], ["diff", "gpt1", "bert"], ["completion", "bash"]])
def test_reading_declarations_needs_no_torch(args: list[str]) -> None:
    code = f"import sys\nfrom stemma.cli import main\ntry: main({args!r})\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import time, sys; t = time.perf_counter(); import stemma; print(time.perf_counter() - t)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert float(done.stdout) < 0.2


def test_no_arguments_print_a_map_of_80_columns(call: Call) -> None:
    code, out, _ = call()
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    assert all(f"  {name}" in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(call: Call, name: str) -> None:
    code, out, _ = call(name, "--help")
    assert code == 0
    assert "--debug" in out or "Commands" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_every_command_is_documented() -> None:
    page = (ROOT / "docs/cli.md").read_text("utf-8")
    assert [name for name in COMMANDS if f"## stemma {name}" not in page] == []


# ---------------------------------------------------------------- tree, show, diff, params


def test_pages_show_what_the_program_prints() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/docs.py"), "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "├─ bert" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("width", [80, 120])
def test_tree_fits_its_width_and_names_all(call: Call, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = call("tree")
    assert all(len(line) <= width for line in out.splitlines())
    assert all(re.search(rf"(^|[ ]){re.escape(name)} ", out, re.M) for name in families.tree())


def test_tree_in_ascii() -> None:
    done = process("tree", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "|- bert" in done.stdout
    assert done.stdout.isascii()


def test_tree_json(call: Call) -> None:
    _, out, _ = call("tree", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert set(rows) == set(families.tree())
    assert rows["bert"]["parent"] == "transformer"
    assert rows["bert"]["changes"]["arch.embed_norm"] == [False, True]
    assert rows["gpt3"]["weights"] == "never published"
    assert "roberta-base" in rows["roberta"]["sizes"]
    _, out, _ = call("tree", "gpt3", "--json")
    assert {row["name"] for row in json.loads(out)} >= {"gpt3", "llama", "mistral"}


@pytest.mark.parametrize("name", ["bert", "gpt3", "llama-65b", "t5"])
def test_show(call: Call, name: str) -> None:
    code, out, _ = call("show", name)
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines())


def test_show_says_where_values_come_from(call: Call) -> None:
    _, out, _ = call("show", "llama-65b", "--json")
    data = json.loads(out)
    assert data["origins"]["arch.norm.eps"] == "this size"
    assert data["origins"]["arch.residual"] == "gpt2"
    assert data["origins"]["arch.attention.scaled"] == "transformer"
    assert data["dims"]["layers"] == 80
    _, out, _ = call("show", "mistral")
    assert re.search(r"lr +mistral +unpublished", out)


def test_diff_goes_from_the_first_to_the_second(call: Call) -> None:
    _, out, _ = call("diff", "bert", "gpt1", "--json")
    data = json.loads(out)
    assert data["path"] == ["bert", "transformer", "gpt1"]
    assert data["changes"]["arch.structure"] == ["encoder", "decoder"]
    _, out, _ = call("diff", "bert", "gpt1")
    assert "bert -> transformer <- gpt1" in out
    assert "encoder → decoder" in out
    assert "dims" not in data["changes"]
    _, out, _ = call("diff", "bert-base", "bert-large")
    assert re.search(r"layers +12 → 24", out)
    _, out, _ = call("diff", "bert", "bert")
    assert "nothing differs" in out


def test_params(call: Call) -> None:
    _, out, _ = call("params", "bert-base", "gpt2", "t5-small", "--json")
    rows = json.loads(out)
    assert [row["parameters"] for row in rows] == [110_106_428, 124_439_808, 60_506_624]
    assert rows[0]["variants"] == {"with_pooler": 109_482_240, "masked_lm": 109_514_298, "pretraining": 110_106_428}
    assert all(sum(row["by_part"].values()) == row["parameters"] for row in rows)
    _, out, _ = call("params", "bert", "--all")
    assert all(name in out for name in families.family("bert").sizes)
    _, out, _ = call("params", "gpt2", "--set", "dims.layers=3", "--json")
    assert json.loads(out)[0]["parameters"] < 124_439_808


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["show", "brt"], 2, "no family or size is called 'brt'; did you mean 'bert'"),
        (["show", "bert-enormous"], 2, "bert has no size 'bert-enormous'"),
        (["params", "gpt2", "--set", "dims.layer=3"], 2, "did you mean 'layers'"),
        (["params", "gpt2", "--set", "dims.layers"], 2, "is not PATH=VALUE"),
        (["params", "gpt2", "--set", "recipe.lr=-1"], 2, "must be positive"),
        (["params", "gpt2", "--set", "dims.heads=7"], 2, "not a multiple"),
        (["tre"], 2, "did you mean 'tree'"),
        (["tree", "--jsno"], 2, "did you mean '--json'"),
        (["show"], 2, "needs NAME"),
        (["help", "tre"], 2, "did you mean 'tree'"),
        (["--families", "nowhere.py", "tree"], 2, "no file nowhere.py"),
        (["report", "nowhere"], 2, "nowhere is not a run"),
    ],
)
def test_errors_are_one_line(call: Call, args: list[str], code: int, words: str) -> None:
    left, out, err = call(*args)
    assert left == code
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert words in err


def test_debug_shows_the_traceback(call: Call) -> None:
    _, _, err = call("show", "brt", "--debug")
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: ")


def test_surprises_are_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(name: str) -> None:
        raise RuntimeError("the inside\nbroke")

    monkeypatch.setattr(families, "family", break_down)
    code, _, err = call("show", "bert")
    assert (code, len(err.splitlines())) == (70, 1)
    assert "--debug" in err

    def stop(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(families, "family", stop)
    assert call("show", "bert")[0] == 130


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        f"'{sys.executable}' -m stemma show bert --json | head -1",
        shell=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""


def test_completion_knows_names() -> None:
    done = process(_STEMMA_COMPLETE="bash_complete", COMP_WORDS="stemma show roberta-l", COMP_CWORD="2")
    assert "roberta-large" in done.stdout


# ---------------------------------------------------------------- training


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small text, about 35 kB in 60 documents."""
    rng = random.Random(0)
    words = ["the", "king", "said", "unto", "his", "people", "go", "up", "and", "see", "land", "of", "light", "that"]
    folder = tmp_path_factory.mktemp("text")
    for n in range(60):
        lines = [" ".join(rng.choices(words, k=12)).capitalize() + "." for _ in range(10)]
        (folder / f"{n:02}.txt").write_text("\n".join(lines))
    return folder


SMALL = ("dims.vocab=500", "dims.d_model=32", "dims.heads=2", "dims.d_ff=64", "dims.context=32", "recipe.batch=128")
SETS = [word for item in SMALL for word in ("--set", item)]


@pytest.fixture(scope="session")
def runs(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each structure, made by the command line."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("roberta", "llama", "t5"):
        args = ["pretrain", name, "--data", str(text), "--budget", "6 steps", "--out", str(folder / name), "--quiet"]
        with pytest.raises(SystemExit) as left:
            main([*args, *SETS])
        assert left.value.code == 0
    return {name: folder / name for name in ("roberta", "llama", "t5")}


def test_pretrain_leaves_a_run_and_says_what_came_out(call: Call, text: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("name: llama\nseed: 7\ntrain: {budget: 4 steps}\nrecipe:\n  lr: 2.0e-3\n")
    out = tmp_path / "run"
    code, _, err = call("pretrain", "--config", config, "--data", text, "--out", out, *SETS, "--set", "recipe.lr=4e-3")
    assert code == 0, err
    assert "bits per byte" in err
    plan = json.loads((out / "run.json").read_text())["plan"]
    assert (plan["name"], plan["seed"], plan["recipe"]["lr"], plan["train"]["budget"]) == ("llama", 7, 4e-3, "4 steps")
    assert (out / "model" / "config.json").is_file()
    left, _, err = call("pretrain", "llama", "--data", text, "--out", out, "--budget", "4 steps")
    assert left == 2
    assert "holds a run already" in err
    assert call("resume", out)[0] == 0
    assert call("pretrain", "--resume", out)[0] == 0


def test_verify_resume(call: Call, runs: dict[str, Path]) -> None:
    code, out, err = call("verify", "resume", runs["llama"], "--steps", 4)
    assert (code, err) == (0, "")
    assert "identical" in out


def test_report_of_real_runs(call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    code, out, _ = call("report", *runs.values(), "--out", tmp_path / "r.html")
    assert code == 0
    text = Path(out.strip()).read_text("utf-8")
    assert all(name in text for name in runs)
    assert "bits per byte" in text


@pytest.mark.parametrize(
    ("name", "words"), [("roberta", "→"), ("bert", "second segment"), ("llama", "only read"), ("t5", "<extra_id_0>")]
)
def test_data_show(call: Call, text: Path, name: str, words: str) -> None:
    code, out, err = call("data", "show", text, "--for", name, "--rows", 1, "--set", "dims.vocab=500")
    assert code == 0, err
    assert words in out


def test_data_show_of_a_run(call: Call, runs: dict[str, Path]) -> None:
    code, out, err = call("data", "show", runs["t5"], "--rows", 2, "--json")
    assert code == 0, err
    row = json.loads(out)[0]
    assert len(row["tokens"]) == 32
    assert any(target is not None for target in row["targets"])


def test_data_list(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from stemma.data import builtin

    monkeypatch.setattr(builtin, "rows", lambda name: iter([("a", "some text")]))
    _, out, _ = call("data", "list", "--json")
    assert {row["name"] for row in json.loads(out)} == {
        "builtin:docs",
        "builtin:code",
        "builtin:bible",
        "builtin:parallel",
        "builtin:captain",
        *(f"builtin:{name}" for name in samples.NAMES),
    }


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["pretrain", "llamma"], 2, "did you mean 'llama'"),
        (["pretrain", "llama", "--set", "recipe.lr=-1"], 2, "recipe.lr must be positive"),
        (["pretrain", "llama", "--set", "recipe.lrr=1"], 2, "did you mean 'lr'"),
        (["pretrain", "llama", "--scale", "tinny"], 2, "did you mean 'tiny'"),
        (["pretrain", "llama", "--budget", "soon"], 2, "soon"),
        (["pretrain", "llama", "--budget", "3 steps", "--set", "train.budget=4 steps"], 2, "leave one of them out"),
        (["pretrain", "llama", "--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["pretrain"], 2, "needs NAME"),
        (["pretrain", "llama", "--resume", "x"], 2, "leave out everything else"),
        (["pretrain", "--resume", "x"], 2, "not a run"),
        (["pretrain", "llama", "--data", "nowhere"], 3, "nowhere"),
        (["pretrain", "llama", "--data", "EMPTY"], 3, "empty"),
        (["pretrain", "llama", "--data", "builtin:bibel"], 2, "did you mean 'builtin:bible'"),
        (["verify", "resume", "x"], 2, "not a run"),
        (["verify", "resme", "x"], 2, "did you mean 'resume'"),
        (["data", "show", "nowhere"], 3, "nowhere"),
        (["quickstart", "--out", "FULL"], 2, "not from a quick start"),
    ],
)
def test_training_errors_are_one_line(call: Call, args: list[str], code: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("keep me")
    where = {"EMPTY": str(tmp_path / "empty"), "FULL": str(tmp_path / "full")}
    args = [where.get(a, a) for a in args]
    if args[:2] == ["pretrain", "llama"] and "--resume" not in args:
        args += ["--out", str(tmp_path / "out")]
    left, _, err = call(*args)
    assert left == code, err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert words in err
    assert (tmp_path / "full" / "thesis.txt").exists()


def test_quickstart(call: Call, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "quick"
    for _ in range(2):  # the second starts over
        code, said, err = call("quickstart", "--out", out, "--data", text, "--budget", "3 steps", "--quiet")
        assert code == 0, err
        page = Path(said.strip()).read_text("utf-8")
        for name, key in (("roberta", "fill"), ("llama", "continue"), ("t5", "repair")):
            assert key in json.loads((out / name / "samples.json").read_text())
            assert name in page


# ---------------------------------------------------------------- models


def test_generate(call: Call, runs: dict[str, Path]) -> None:
    code, out, err = call("generate", runs["llama"], "The king", "And", "-n", 5, "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["prompt"] for row in rows] == ["The king", "And"]
    assert all(1 <= len(row["ids"]) <= 5 and len(row["ids"]) == len(row["logprobs"]) for row in rows)
    _, whole, _ = call("generate", runs["llama"], "The king", "-n", 5)
    _, streamed, _ = call("generate", runs["llama"], "The king", "-n", 5, "--stream")
    assert whole == rows[0]["text"] + "\n"  # a pipe gets the text alone
    assert streamed.replace(" ", "") == whole.replace(" ", "")
    assert call("generate", runs["llama"], "The king", "-n", 5, "--echo")[1] == "The king" + whole
    _, out, _ = call("generate", runs["llama"] / "model", "The", "-n", 3, "--num-beams", 2, "--echo")
    assert out.startswith("The")
    drawn = call("generate", runs["llama"], *["The king"] * 3, "-n", 20, "--temperature", 1, "--ignore-eos", "--json")
    assert len({tuple(row["ids"]) for row in json.loads(drawn[1])}) == 3


def test_prompts_of_a_pipe(call: Call, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def piped(*args: object) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("The king\n\nAnd the\n"))
        code, out, err = call("generate", runs["llama"], "-n", 4, "--ignore-eos", *args)
        assert code == 0, err
        return out

    assert [row["prompt"] for row in json.loads(piped("--json"))] == ["The king", "And the"]
    assert [row["prompt"] for row in json.loads(piped("--json", "--whole"))] == ["The king\n\nAnd the"]
    streamed, whole = piped("--stream", "--echo"), piped("--echo")
    assert streamed.startswith("The king") and "\n\nAnd the" in streamed
    assert streamed.replace(" ", "") == whole.replace(" ", "")


def test_stop_texts_have_escapes(call: Call, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from stemma.cli import models
    from stemma.cli.prompts import unescaped

    assert unescaped(r"a\n\t\\n\x41\u00e9\q") == "a\n\t\\nA\u00e9\\q"
    seen: dict[str, Any] = {}
    monkeypatch.setattr(models, "continued", lambda model, prompts, asked, *rest: seen.update(stop=asked.stop) or [])
    call("generate", runs["llama"], "x", "--stop", r"\n", "--stop", "end", "--stream")
    assert seen["stop"] == ("\n", "end")


def test_stopping_keeps_what_was_written(call: Call, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from stemma import decoding

    def broken(*args: Any, **options: Any) -> Iterator[Any]:
        yield decoding.Event(0, 1, 0.0, " first")
        yield decoding.Event(1, 1, 0.0, " second")
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "stream", broken)
    assert call("generate", runs["llama"], "a", "b")[:2] == (130, " first\n\n second\n")


def test_names_of_special_tokens_in_a_prompt(call: Call, runs: dict[str, Path]) -> None:
    import stemma
    from stemma.cli.prompts import encoded

    ask = ("generate", runs["llama"], "The</s>king", "-n", 2, "--json")
    assert "note: the prompt holds '</s>'" in call(*ask)[2] and "--special" in call(*ask)[2]
    assert "note" not in call(*ask, "--special")[2] and "note" not in call("generate", runs["llama"], "The", "-n", 2)[2]
    model = stemma.load(runs["llama"])
    [ids] = encoded(model, ["<s>The</s>king"], special=True)
    eos, bos = model.tokenizer.eos_id, model.tokenizer.bos_id
    assert ids.count(eos) == 1 and ids.count(bos) == 1 and ids[0] == bos


def test_similar_top(call: Call, runs: dict[str, Path]) -> None:
    ask = ("embed", runs["roberta"], "a king", "the king", "light", "--similar")
    every, best = (call(*ask, *more)[1].splitlines() for more in ((), ("--top", 2)))
    assert len(every) == 3 and best == every[:2]
    assert call("embed", runs["roberta"], "a", "b", "--top", 2)[0] == 2


def test_embed_against_a_corpus_and_into_a_file(call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("the land\n\nthe king\nof light\n")
    ask = ("embed", runs["roberta"], "the king", "light", "--similar", "--corpus", lines)
    code, out, err = call(*ask, "--top", 2)
    assert code == 0, err
    rows = [line.split("  ", 1) for line in out.splitlines()]
    assert len(rows) == 4 and rows[0] == [" 1.0000", "the king  |  the king"] and rows[2][1].startswith("light  |  ")
    assert float(rows[0][0]) >= float(rows[1][0])
    assert len(call(*ask)[1].splitlines()) == 6
    assert call("embed", runs["roberta"], "a", "--corpus", lines)[0] == 2
    code, out, err = call("embed", runs["roberta"], "a king", "light", "--out", tmp_path / "v.npy")
    assert code == 0 and "2 vectors of" in out, err
    held, printed = np.load(tmp_path / "v.npy"), call("embed", runs["roberta"], "a king", "light")[1].splitlines()
    assert held.dtype == np.float32 and np.allclose(held, [json.loads(row)["vector"] for row in printed], atol=1e-6)
    assert call("embed", runs["roberta"], "a", "--out", tmp_path / "v.txt")[0] == 2


def test_fill(call: Call, runs: dict[str, Path]) -> None:
    code, out, err = call("fill", runs["roberta"], "The king [MASK] unto [MASK]", "--top", 3, "--json")
    assert code == 0, err
    assert [len(row) for row in json.loads(out)["guesses"]] == [3, 3]
    code, out, err = call("fill", runs["t5"], "The king [MASK] unto")
    assert code == 0, err
    assert "mask 1" in out


def test_convert(call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    code, out, err = call("convert", runs["llama"], tmp_path / "b", "--dtype", "bfloat16", "--shard-size", "20KB")
    assert code == 0, err
    assert "bfloat16" in out
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1
    assert call("convert", runs["llama"], tmp_path / "b")[0] == 2
    assert call("generate", tmp_path / "b", "The", "-n", 2)[0] == 0


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["generate", "nowhere", "x"], 2, "nowhere"),
        (["generate", "RUN", "x", "--temperature", "-1"], 2, "temperature"),
        (["generate", "RUN", "x", "--device", "toaster"], 2, "toaster"),
        (["generate", "RUN", "x", "--json", "--stream"], 2, "--stream"),
        (["fill", "RUN", "no gap"], 2, "stemma generate"),
        (["convert", "RUN", "DST", "--shard-size", "vast"], 2, "vast"),
        (["convert", "RUN", "DST", "--dtype", "int3"], 2, "int3"),
    ],
)
def test_model_errors(
    call: Call, runs: dict[str, Path], tmp_path: Path, args: list[str], code: int, words: str
) -> None:
    where = {"RUN": str(runs["llama"]), "DST": str(tmp_path / "dst")}
    left, out, err = call(*(where.get(a, a) for a in args))
    assert (left, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert words in err


# ---------------------------------------------------------------- the walk-throughs of the documentation


def test_contributing_walk_through(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = block("CONTRIBUTING.md", "family")
    assert len(source.splitlines()) <= 40
    Path("marten.py").write_text(source)
    for line in block("CONTRIBUTING.md", "commands").splitlines():
        monkeypatch.setattr(families, "_added", {})
        code, out, err = call(*line.split()[1:])
        assert code == 0, err
        assert "marten" in out
    monkeypatch.setattr(families, "_added", {})
    exec(compile(block("CONTRIBUTING.md", "forward"), "CONTRIBUTING.md", "exec"), {})


def test_readme_python(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert code is not None
    exec(compile(code[1], "README.md", "exec"), {})
    assert capsys.readouterr().out.endswith("torch.Size([1, 4, 1000])\n")


def test_a_name_of_the_tree_is_no_path(call: Call) -> None:
    for name, said in (("gpt2", "the weights of gpt2 are 'openai-community/gpt2'"), ("", "PATH is empty")):
        code, _, err = call("generate", name, "x")
        assert (code, err.count("\n")) == (2, 1) and said in err


def test_one_way_to_name_a_model(
    call: Call, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stemma

    there = tmp_path / "runs"
    there.mkdir()
    for name, run in runs.items():
        (there / name).symlink_to(run)
    monkeypatch.chdir(tmp_path)
    assert stemma.load("runs/llama").design == stemma.load("runs/llama/model").design
    wanted = "did you mean 'runs/llama'?"
    for args in (
        ["generate", "x"],
        ["embed", "x"],
        ["fill", "x"],
        ["convert", "out"],
        ["show"],
        ["report"],
        ["resume"],
    ):
        code, _, err = call(args[0], "runs/lama", *args[1:])
        assert (code, err.count("\n")) == (2, 1) and wanted in err, (args, err)
    with pytest.raises(UsageError, match="did you mean 'runs/llama'"):
        stemma.load("runs/lama")
    assert nearest_path("rus/lama") == "; did you mean 'runs/llama'?" and nearest_path("runs/zzz") == ""
    assert "`stemma pretrain ... --out runs/zzz` makes a run" in call("show", "runs/zzz")[2]


def test_show_says_what_a_checkpoint_is(call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs["llama"]
    said = call("show", run)[1]
    for words in ("decoder", "family       llama", "arch.init.std: 0.02 -> ", "float32", "spm-bpe", "not said by its"):
        assert words in said, words
    target = tmp_path / "small.gguf"
    assert call("convert", run, target, "--dtype", "q8_0")[0] == 0
    found = json.loads(call("show", target, "--json")[1])
    assert (found["family"], found["run"], found["template"]) == ("llama", None, None)
    assert (
        found["types"]["Q8_0"] > 5 and found["parameters"] > 10_000 and found["tokenizer"]["special"]["eos"] == "</s>"
    )
    _, said, told = call("convert", target, tmp_path / "wide")  # two bytes a weight, not four
    assert "float16 (of Q8_0; --dtype float32 keeps every bit)" in said
    assert "is written as float16" in told and "a GGUF file with --dtype q8_0 has" in told
    assert " float32\n" in call("convert", target, tmp_path / "wider", "--dtype", "float32")[1]
    folder = tmp_path / "m"
    assert call("convert", run, folder)[0] == 0
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    found = json.loads(call("show", folder, "--json")[1])
    assert (found["licence"], found["template"]) == ("apache-2.0", "{{ messages }}")
    assert "did you mean" in call("show", tmp_path / "small.ggu")[2]


def test_generate_takes_what_the_checkpoint_says_and_options_over_it(call: Call, runs: dict[str, Path]) -> None:
    said = runs["llama"] / "model" / "generation_config.json"
    before = said.read_text()
    ask = ("generate", runs["llama"], "the king", "--json")
    try:
        said.write_text(json.dumps({**json.loads(before), "max_new_tokens": 5, "do_sample": True, "temperature": 3.0}))
        drawn, again = (json.loads(call(*ask, "--ignore-eos", "--seed", seed)[1])[0]["ids"] for seed in (1, 2))
        assert (len(drawn), len(again)) == (5, 5) and drawn != again
        greedy = [json.loads(call(*ask, "--temperature", 0, "--seed", seed)[1])[0]["ids"] for seed in (1, 2)]
        assert greedy[0] == greedy[1]
        said.write_text(json.dumps({**json.loads(before), "max_new_tokens": 5, "num_beams": 2}))
        assert call(*ask[:-1])[0] == 0
        assert "num_beams=1 does without" in call(*ask[:-1], "--stream")[2]
        assert call(*ask[:-1], "--stream", "--num-beams", 1)[0] == 0
    finally:
        said.write_text(before)


def test_generate_takes_tokens_by_name_or_id(call: Call, runs: dict[str, Path]) -> None:
    ask = ("generate", runs["t5"], "the king", "--json", "-n", 4, "--min-new-tokens", 4)
    by_name = json.loads(call(*ask, "--forced-bos", "<extra_id_1>")[1])[0]["ids"]
    assert json.loads(call(*ask, "--forced-bos", by_name[0])[1])[0]["ids"] == by_name
    assert json.loads(call(*ask, "--forced-eos", by_name[0])[1])[0]["ids"][-1] == by_name[0]
    started = json.loads(call(*ask, "--decoder-start", "<extra_id_1>")[1])[0]
    assert started["ids"] != json.loads(call(*ask)[1])[0]["ids"]
    code, _, err = call(*ask, "--forced-bos", "en_XX")
    assert code == 2 and "has no token of that name" in err
    beams = (*ask, "--num-beams", 3, "--length-penalty", 0.5, "--early-stopping", "never", "--no-repeat-ngram-size", 2)
    assert len(json.loads(call(*beams)[1])[0]["ids"]) == 4
