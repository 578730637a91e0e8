"""What can go wrong around a run: each accident is one sentence that names the thing and says what to do, and nothing that
was finished is lost."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import Ended, starter
from stemma.runs import checkpoint
from stemma.train import read_metrics
from test_kills import SMALL, sets
from test_train import words

OPTIONS = sets(SMALL | {"train.save_every": 2, "train.keep": 3, "dims.vocab": 320})
TEXTS = words(60)


def call(*args: str | Path) -> Ended:
    """`stemma ARGS` in this process."""
    from stemma.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(a) for a in args])
        except SystemExit as end:
            code = int(end.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


def begin(name: str, data: Path | str, out: Path, *more: str | Path) -> list[str | Path]:
    return ["pretrain", name, "--data", str(data), "--budget", "6 steps", "--out", out, *OPTIONS, "--quiet", *more]


def refused(ended: Ended, code: int, *said: str) -> str:
    """The one sentence of an error, which holds the words that are `said`."""
    lines = [line for line in ended.err.splitlines() if not line.startswith("note: ")]
    assert ended.code == code and len(lines) == 1 and lines[0].startswith("error: "), ended
    assert "Traceback" not in ended.err and "unexpected" not in lines[0], ended
    for part in said:
        assert part in lines[0], (part, lines[0])
    return lines[0]


def curve(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_metrics(run)]


def half(place: Path) -> list[Path]:
    """Files half written, or of a process that is gone."""
    return [path for path in place.rglob("*") if path.name.endswith(".tmp") or path.name == "spool"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS), "utf-8")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A finished run, with the checkpoints of steps 2, 4 and 6."""
    out = tmp_path_factory.mktemp("runs") / "base"
    ended = call(*begin("gpt2", data, out))
    assert ended.code == 0, ended
    return out


def stopped(base: Path, run: Path) -> Path:
    """A copy of the run as it was after step 4."""
    shutil.copytree(base, run)
    for gone in (run / "model", run / "checkpoints" / "step-000006"):
        shutil.rmtree(gone)
    (run / "summary.json").unlink()
    return run


def goes_on(run: Path, base: Path) -> None:
    """The run comes to the end that it would have come to."""
    ended = call("resume", run, "--quiet")
    assert ended.code == 0, ended
    assert curve(run) == curve(base)
    ours, theirs = (checkpoint.load(checkpoint.latest(r)) for r in (run, base))  # type: ignore[arg-type]
    assert all(bool((ours[0][k] == theirs[0][k]).all()) for k in theirs[0])
    assert (run / "model" / "model.safetensors").read_bytes() == (base / "model" / "model.safetensors").read_bytes()


def bend(path: Path, at: int = -37) -> None:
    """Change a bit in a file, as a disk may do: in place, so in all that it is linked to."""
    path.chmod(0o644)
    with open(path, "r+b") as file:
        raw = bytearray(file.read())
        raw[at] ^= 4
        file.seek(0)
        file.write(raw)


def cut(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size // 2)


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("how", [bend, cut, Path.unlink], ids=["bent", "cut", "gone"])
def test_a_damaged_checkpoint(base: Path, tmp_path: Path, name: str, how: Callable[[Path], None]) -> None:
    run = stopped(base, tmp_path / "run")
    last = run / "checkpoints" / "step-000004"
    how(last / name)
    told = refused(call("resume", run, "--quiet"), 4, str(last), "damaged", name)
    assert told.endswith(f"; delete the folder {last} to go on from step-000002 with: stemma resume {run}")
    assert [p.name for p in checkpoint.steps(run)] == ["step-000002", "step-000004"]
    if how is bend:
        shutil.rmtree(last)
        goes_on(run, base)


def test_every_byte_of_a_checkpoint_counts(base: Path, tmp_path: Path) -> None:
    from stemma.errors import CheckpointError

    place = stopped(base, tmp_path / "run") / "checkpoints" / "step-000004"
    for path in sorted(place.iterdir()):
        raw = path.read_bytes()
        for at in {*range(0, len(raw), max(1, len(raw) // 60)), len(raw) - 1}:
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            with pytest.raises(CheckpointError):
                if checkpoint.load(place)[2] == json.loads(raw):
                    raise CheckpointError("white space only")
        path.write_bytes(raw)
    checkpoint.load(place)


def test_checkpoints_that_are_not_the_runs(base: Path, tmp_path: Path) -> None:
    run = stopped(base, tmp_path / "run")
    (run / "checkpoints" / "step-junk").mkdir()
    about = json.loads((run / "run.json").read_text())
    about["plan"]["dims"]["layers"] = 2
    (run / "run.json").write_text(json.dumps(about))
    refused(call("resume", run, "--quiet"), 4, "step-000004 does not fit this model: decoder.blocks.1")


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("how", [bend, cut, Path.unlink], ids=["bent", "cut", "gone"])
@pytest.mark.parametrize("name", ["tokens", "documents"])
def test_a_damaged_store(base: Path, data: Path, tmp_path: Path, name: str, how: Callable[[Path], None]) -> None:
    """Also where the damage is in what the runs share."""
    run = stopped(base, tmp_path / "run")
    own = run / "data"
    if how is bend:  # as a store comes from the cache, by links
        shutil.rmtree(own)
        assert "made again" in call("resume", run, "--quiet").err
        shutil.rmtree(run)
        run = stopped(base, tmp_path / "run")
        shutil.rmtree(own)
        shutil.copytree(base / "data", own, copy_function=os.link)
    how(next(own.glob(f"*/{name}.bin")))
    told = refused(call("resume", run, "--quiet"), 4, f"the token store {own} is damaged: {name}.bin")
    assert told.endswith(f"; delete {own} to make it again from {data} with: stemma resume {run}")
    shutil.rmtree(own)
    goes_on(run, base)
    if how is bend:
        with contextlib.suppress(FileNotFoundError):
            bend(next((base / "data").glob(f"*/{name}.bin")))  # back, for the others


def test_tokens_and_text_that_are_gone_or_others(base: Path, data: Path, tmp_path: Path) -> None:
    """While the tokens are there the text is not needed; without them it has to be what it was."""
    text = tmp_path / "rows.jsonl"
    shutil.copy(data, text)
    assert call(*begin("gpt2", text, tmp_path / "a")).code == 0
    text.write_text('{"text": "another"}\n{"text": "text"}\n')
    goes_on(stopped(tmp_path / "a", tmp_path / "b"), tmp_path / "a")
    run = stopped(tmp_path / "a", tmp_path / "c")
    shutil.rmtree(run / "data")
    refused(call("resume", run, "--quiet"), 4, f"gone from {run / 'data'}, and {text} is no more the text", "put back")
    text.unlink()
    refused(call("resume", run, "--quiet"), 3, f"gone from {run / 'data'}", f"no file or folder {text}", "put back")
    shutil.copy(data, text)
    goes_on(run, tmp_path / "a")
    run = stopped(tmp_path / "a", tmp_path / "d")
    meta = json.loads((run / "data" / "meta.json").read_text())
    (run / "data" / "meta.json").write_text(json.dumps({**meta, "fingerprint": "other"}))
    refused(
        call("resume", run, "--quiet"), 4, "is not the text that this run was started on; delete it to make it again"
    )
    (run / "data" / "meta.json").write_text("{")
    refused(call("resume", run, "--quiet"), 4, "meta.json is not JSON", "delete", "to make it again")


# ---------------------------------------------------------------- the rest of a run


def test_metrics_that_end_in_half_a_line(base: Path, tmp_path: Path) -> None:
    run = stopped(base, tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    goes_on(run, base)
    assert (run / "metrics.jsonl").read_bytes().count(b"\n") == 6
    for damage in (b"\xff\x00\n", b"", b"null\n[]\n"):
        run = stopped(base, tmp_path / f"run{len(damage)}")
        lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        (run / "metrics.jsonl").write_bytes(lines[0] + damage + b"".join(lines[2:]))
        ended = call("resume", run, "--quiet")
        assert ended.code == 0 and "metrics.jsonl lacks 1 of the 4 steps" in ended.err
        assert [r["step"] for r in read_metrics(run)] == [1, 3, 4, 5, 6]
    run = stopped(base, tmp_path / "folder")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    refused(
        call("resume", run, "--quiet"), 4, f"{run / 'metrics.jsonl'} cannot be read: Is a directory", "move it away"
    )


def test_what_is_no_run(base: Path, data: Path, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", data):
        refused(call("resume", path), 2, f"{path} is not a run", "`stemma pretrain ... --out")
    run = stopped(base, tmp_path / "run")
    kept = (run / "run.json").read_bytes()
    for damage in (b"{}", b"[1]", b"{", b"\xff\x00", kept[:-30], b'{"plan": {"name": 3}, "data": {}}'):
        (run / "run.json").write_bytes(damage)
        refused(
            call("resume", run), 4, f"{run / 'run.json'} is not a run that this version can read", "put back the file"
        )
    (run / "run.json").write_bytes(kept)
    goes_on(run, base)


def test_a_tokenizer_of_a_run_that_is_another(base: Path, tmp_path: Path) -> None:
    run = stopped(base, tmp_path / "run")
    path = run / "tokenizer" / "tokenizer.json"
    kept = path.read_text("utf-8")
    other = json.loads(kept)
    vocab = other["model"]["vocab"]
    a, b = list(vocab)[50:52]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    path.write_text(json.dumps(other), "utf-8")
    refused(call("resume", run), 4, f"{run / 'tokenizer'} is not the tokenizer that this run was started with", "put")
    for damage in (kept[:500], "{}"):
        path.write_text(damage, "utf-8")
        refused(call("resume", run), 4, f"the tokenizer of the run {run} cannot be read", "put it back")
    shutil.rmtree(run / "tokenizer")
    refused(call("resume", run), 4, f"the tokenizer of the run {run} cannot be read", "put it back")


# ---------------------------------------------------------------- text


def test_text_that_cannot_be_read(tmp_path: Path) -> None:
    lines = [json.dumps({"text": t}) + "\n" for t in TEXTS]
    good, line = "".join(lines).encode(), len(lines) + 1
    packed = bytearray(gzip.compress(good))
    packed[len(packed) // 2] ^= 0xFF
    cases: list[tuple[str, bytes, str]] = [
        ("zip.txt", b"PK\x03\x04" + bytes(100), "is not text but a ZIP archive"),
        ("latin.txt", b"ab\n" * 50 + b"caf\xe9\n", "is not UTF-8 text: byte 0xe9 at offset 153"),
        ("half.txt.gz", gzip.compress(good)[:-30], "cannot read"),
        ("none.txt.gz", b"not packed", "cannot read"),
        ("bent.jsonl.gz", bytes(packed), "cannot read"),
        ("half.jsonl", good[:-20], f":{line - 1} is not JSON"),
        ("field.jsonl", good + b'{"body": "x"}\n', f":{line} has no field 'text', but 'body'; name the field with"),
        ("list.jsonl", good + b"[1]\n", f":{line} holds a list"),
        ("null.jsonl", good + b'{"text": null}\n', f":{line} has a NoneType in field 'text'"),
        (
            "half-pair.jsonl",
            good + b'{"text": "bad \\ud800 char"}\n',
            f":{line} has a character that is not text (U+D800",
        ),
        ("digits.jsonl", good + b'{"text": ' + b"1" * 5000 + b"}\n", f":{line} cannot be read as JSON"),
        ("deep.jsonl", good + b'{"text": ' + b"[" * 100_000 + b"}\n", f":{line} cannot be read as JSON"),
        ("none.parquet", b"PAR1" + os.urandom(100), "is not a Parquet file, or it is damaged"),
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\n ", "holds no text"),
        ("one.txt", b"hello", "it has only one document"),
    ]
    for name, raw, said in cases:
        path = tmp_path / name
        path.write_bytes(raw)
        refused(call(*begin("gpt2", path, tmp_path / "run")), 3, said, "" if "only one" in said else str(path))
        assert not (tmp_path / "run").exists(), name
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    for name, said in (
        ("missing.txt", "there is no file or folder"),
        ("dangling.txt", f"is a link to {tmp_path / 'nowhere'}, which is not there"),
        ("pipe.txt", "is a pipe or a device; text is read more than once, so write it to a file first"),
    ):
        refused(call(*begin("gpt2", tmp_path / name, tmp_path / "run")), 3, str(tmp_path / name), said)


def test_a_bent_parquet_file_is_told_or_reads_as_text(tmp_path: Path) -> None:
    """Wherever a byte is bent; `page_checksum` is how a writer can have all of them found."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from stemma.data import read
    from stemma.errors import DataError

    path, found = tmp_path / "rows.parquet", 0
    for kind in ("snappy", "zstd", "none"):
        table = arrow.table({"text": TEXTS})
        parquet.write_table(table, path, compression=kind, use_dictionary=False, write_page_checksum=kind == "none")
        raw = path.read_bytes()
        for at in range(0, len(raw), max(1, len(raw) // 80)):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :])
            try:
                texts = [document.text for document in read(str(path)).documents()]
                assert kind != "none" or texts == TEXTS
            except DataError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                found += 1
    assert found > 100


# ---------------------------------------------------------------- tokenizers and values


def test_a_tokenizer_that_does_not_fit(base: Path, data: Path, tmp_path: Path) -> None:
    """Said before the text is read with it."""
    for name, lacks in (
        ("bert", "a mask token"),
        ("electra", "a mask token"),
        ("xlnet", "a sep token"),
        ("t5", "sentinels"),
        ("glm", "[MASK]"),
    ):
        ended = call(*begin(name, data, tmp_path / "run", "--tokenizer", base / "tokenizer"))
        refused(ended, 2, f"the tokenizer that was given does not fit {name}", lacks, "have one trained")
    shutil.copytree(base / "tokenizer", tmp_path / "half")
    (tmp_path / "half" / "tokenizer.json").write_text((base / "tokenizer" / "tokenizer.json").read_text()[:700])
    ended = call(*begin("gpt2", data, tmp_path / "run", "--tokenizer", tmp_path / "half"))
    refused(ended, 4, f"{tmp_path / 'half' / 'tokenizer.json'} is not JSON")
    refused(call(*begin("gpt2", data, tmp_path / "run", "--tokenizer", tmp_path / "none")), 4, str(tmp_path / "none"))
    # weights whose tokenizer has more ids than they have rows
    shutil.copytree(base / "model", tmp_path / "model")
    told = json.loads((tmp_path / "model" / "tokenizer.json").read_text("utf-8"))
    more = max(t["id"] for t in told["added_tokens"]) + 1000
    told["added_tokens"].append({**told["added_tokens"][0], "id": more, "content": "<more>"})
    vocab = told["model"]["vocab"]
    vocab |= {f"more{i}": len(vocab) + i for i in range(900)}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(told), "utf-8")
    refused(call(*begin("gpt2", data, tmp_path / "run", "--from", tmp_path / "model")), 4, "ids but the model only")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "value, said",
    [
        ("recipe.lr=abc", "recipe.lr='abc' does not fit; expected a finite number"),
        ("recipe.lr=nan", "recipe.lr='nan' does not fit"),
        ("recipe.lr=-1", "recipe.lr must be positive, not -1.0"),
        ("recipe.batch=0", "recipe.batch must be positive"),
        ("dims.d_model=33", "dims.d_model=33 is not a multiple of dims.heads=2"),
        ("dims.layers=0", "dims.layers must be at least 1"),
        ("dims.vocab=5", "vocabulary of 5 is too small"),
        ("train.save_every=0", "train.save_every must be at least 1"),
        ("train.threads=100000", "train.threads must lie in [1, 1024], not 100000"),
        ("train.val_fraction=2", "train.val_fraction must lie between 0 and 1"),
        ("train.recompute=['*.layers.*']", "matches no module"),
        ("train.recompute=*.blocks.*", "does not fit; expected a list of words such as ['one', 'two']"),
        (
            "recipe.schedule=cosine",
            "always Schedule(shape=..., warmup=...); did you mean recipe.schedule.shape=cosine?",
        ),
        ("train.context=1000", "train.context=1000 exceeds dims.context=32"),
        ("recipe.optimizer=AdamX()", "no kind 'AdamX'; known: AdamW"),
        ("train.safe_every=2", "no field 'train.safe_every'"),
        ("recipe", "is not PATH=VALUE"),
    ],
)
def test_values_that_mean_nothing(data: Path, tmp_path: Path, value: str, said: str) -> None:
    refused(call(*begin("gpt2", data, tmp_path / "run", "--set", value)), 2, said)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_goes_on_as_it_was_planned(base: Path, tmp_path: Path) -> None:
    run = stopped(base, tmp_path / "run")
    refused(call("resume", run, "--set", "recipe.lr=1"), 2, "recipe.lr cannot change; what can is train.micro")
    refused(call("resume", run, "--set", "train.micro=0"), 2, "train.micro must be at least 1")
    assert call("resume", run, "--quiet", "--set", "train.save_every=1").code == 0
    assert curve(run) == curve(base)
    assert [p.name for p in checkpoint.steps(run)] == ["step-000004", "step-000005", "step-000006"]


# ---------------------------------------------------------------- memory


def test_two_runs_in_one_place(data: Path, base: Path, tmp_path: Path) -> None:
    """The second is refused before it writes anything; when the first ends, or is killed, the place is free."""
    out = tmp_path / "run"
    shutil.copytree(base, out)
    for name in ("model", "summary.json"):
        (shutil.rmtree if name == "model" else os.unlink)(out / name)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    code = f"from pathlib import Path; from stemma import disk\nwith disk.lock(Path({str(out)!r})):\n"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}    print('held', flush=True); import time; time.sleep(60)"],
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            refused(call("resume", out, "--quiet"), 2, str(out), "another process is training", "another directory")
            (out / "run.json").rename(tmp_path / "run.json")
            for name in ("checkpoints", "metrics.jsonl"):
                (out / name).rename(tmp_path / name)
            refused(call(*begin("gpt2", data, out)), 2, str(out), "another process is training")
            for name in ("run.json", "checkpoints", "metrics.jsonl"):
                (tmp_path / name).rename(out / name)
            assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
        finally:
            holder.kill()
    ended = call("resume", out, "--quiet")
    assert ended.code == 0 and (out / "summary.json").exists(), ended


def test_a_step_that_does_not_fit_into_memory(base: Path, data: Path, tmp_path: Path) -> None:
    """The address space is limited, so that the allocation fails in earnest; then the advice is followed."""
    run, start = tmp_path / "run", starter()
    args = begin("gpt2", data, run, "--set", "recipe.batch=32768", "--set", "train.micro=1024")
    ended = start.run(*args[:5], "2 steps", *args[6:], memory=80 << 20)
    told = refused(ended, 5, "step 1 does not fit into memory with 1024 rows of 32 tokens at once; set train.micro=512")
    assert "train.recompute=['*.blocks.*']" in told and not half(run)
    ended = start.run("resume", run, "--quiet", "--set", "train.micro=16", limit=240)
    assert ended.code == 0 and len(read_metrics(run)) == 2, ended
    ended = start.run(
        *begin("gpt2", data, tmp_path / "wide", "--set", "dims.d_model=1000000", "--set", "dims.d_ff=1000000"),
        memory=1 << 30,
    )
    refused(ended, 5, "out of memory", "GB more were wanted; choose a smaller size")


def test_a_batch_that_no_machine_has(data: Path, tmp_path: Path) -> None:
    ended = call(*begin("gpt2", data, tmp_path / "run", "--set", "recipe.batch=1000000000000"))
    refused(ended, 5, "recipe.batch=1000000000000 makes a step of 31,250,000,000 rows", "lower recipe.batch")


# ---------------------------------------------------------------- disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a size, anew each time."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str) -> Path:
        subprocess.run(["umount", "-l", str(place)], capture_output=True)
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True
        ).returncode:
            pytest.skip("no right to mount a small disk")
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], capture_output=True)


def fill(place: Path) -> Path:
    """Leave no room."""
    with open(place / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return place / "ballast"


FULL = "the disk is full; free some space"


def test_a_disk_that_fills_before_and_in_a_save(data: Path, base: Path, disk: Callable[[str], Path]) -> None:
    said = set()
    for size in ("8k", "32k", "64k", "88k", "120k", "280k"):
        run = disk(size) / "run"
        told = refused(call(*begin("gpt2", data, run)), 5, str(run), FULL)
        said |= {part for part in ("tokenizer", "run/data", "the checkpoint of step 2") if part in told}
        assert not half(run), size
    assert len(said) == 3
    run = disk("1m") / "run"
    args = begin("gpt2", data, run)
    refused(call(*args[:5], "60 steps", *args[6:], "--set", "train.keep=60"), 5, "the checkpoint of step", FULL)
    there = checkpoint.steps(run)
    assert there and not half(run)
    for path in there:
        checkpoint.load(path)
    subprocess.run(["mount", "-o", "remount,size=40m", str(run.parent)], check=True)
    assert call("resume", run, "--quiet").code == 0 and len(read_metrics(run)) == 60


def test_a_disk_that_fills_in_a_step_and_at_the_end(data: Path, base: Path, disk: Callable[[str], Path]) -> None:
    run = disk("2m") / "run"
    args = begin("gpt2", data, run)
    process = starter().start(*args[:5], "4000 steps", *args[6:], "--set", "train.save_every=3999")
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.002)
    ballast = fill(run.parent)
    refused(process.wait(), 5, f"cannot write {run / 'metrics.jsonl'}", FULL, f"stemma resume {run}")
    assert not half(run) and (run / "metrics.jsonl").read_bytes()[-1:] in (b"", b"\n")
    refused(call("resume", run, "--quiet"), 5, f"cannot write {run / 'metrics.jsonl'}", FULL)
    ballast.unlink()
    process = starter().start("resume", run, "--quiet")
    while process.poll() is None and len(read_metrics(run)) < 5:
        time.sleep(0.002)
    process.kill(signal.SIGTERM)
    assert process.wait().code == 130 and checkpoint.load(checkpoint.latest(run))  # type: ignore[arg-type]

    shutil.rmtree(run)
    stopped(base, run)
    (run.parent / "room").write_bytes(bytes(300_000))  # for a checkpoint more, and no model
    fill(run.parent)
    (run.parent / "room").unlink()
    refused(
        call("resume", run, "--quiet"),
        5,
        str(run / "model"),
        "the disk is full",
        "free some space",
        f"stemma resume {run}",
    )
    assert (
        not half(run) and not (run / "summary.json").exists() and checkpoint.load(run / "checkpoints" / "step-000004")
    )
    (run.parent / "ballast").unlink()
    goes_on(run, base)


def test_files_that_may_not_grow(data: Path, base: Path, tmp_path: Path) -> None:
    """Where nothing can be mounted: a limit on the size of a file."""
    run = stopped(base, tmp_path / "run")
    ended = starter().run("resume", run, "--quiet", file=20_000)
    refused(ended, 5, f"cannot write the checkpoint of step 6 in {run / 'checkpoints'}", "File too large", "resume")
    assert not half(run) and [p.name for p in checkpoint.steps(run)] == ["step-000002", "step-000004"]
    goes_on(run, base)
    ended = starter().run(*begin("gpt2", data, tmp_path / "new"), file=3000)
    refused(ended, 5, f"cannot write {tmp_path / 'new'}", "File too large")
    assert not half(tmp_path / "new")


# ---------------------------------------------------------------- permissions


def test_what_is_closed(data: Path, base: Path, tmp_path: Path) -> None:
    run = stopped(base, tmp_path / "run")
    shutil.copy(data, tmp_path / "text.jsonl")
    (tmp_path / "texts" / "inner").mkdir(parents=True)
    shutil.copy(data, tmp_path / "texts" / "a.jsonl")
    (tmp_path / "shut").mkdir()
    store = next((run / "data").glob("*/tokens.bin"))
    store.unlink()
    shutil.copy(next((base / "data").glob("*/tokens.bin")), store)
    again, new = ["resume", run, "--quiet"], tmp_path / "new"
    weights = run / "checkpoints" / "step-000004" / "model.safetensors"
    cases: list[tuple[Path, int, list[str | Path], int, tuple[str, ...]]] = [
        (tmp_path / "text.jsonl", 0, begin("gpt2", tmp_path / "text.jsonl", new), 3, ("cannot read", "text.jsonl")),
        (
            tmp_path / "texts" / "inner",
            0,
            begin("gpt2", tmp_path / "texts", new),
            3,
            ("cannot read the folder", "inner"),
        ),
        (
            tmp_path / "shut",
            0o555,
            begin("gpt2", data, tmp_path / "shut" / "run"),
            5,
            (str(tmp_path / "shut"), "choose"),
        ),
        (run / "checkpoints", 0o555, again, 5, ("the checkpoint of step 6", "ermission denied; make it writable")),
        (run, 0o555, again, 5, (str(run), "ermission denied; make it writable")),
        (run / "run.json", 0, again, 4, ("run.json cannot be read: Permission denied; make it readable",)),
        (run / "metrics.jsonl", 0, again, 4, ("metrics.jsonl cannot be read: Permission denied",)),
        (weights, 0, again, 4, (f"{weights} cannot be read: Permission denied; make it readable",)),
        (store, 0, again, 4, ("the token store", "cannot be read: Permission denied; make it readable")),
    ]
    for path, mode, command, code, said in cases:
        before = path.stat().st_mode
        path.chmod(mode)
        ended = starter().run(*command, closed=True)
        path.chmod(before)
        told = refused(ended, code, *said)
        assert "delete" not in told and not new.exists() and not half(run), told
    goes_on(run, base)


def test_places_that_are_none(data: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "mine").write_text("")
    for out, code, said in (
        (base, 2, "holds a run already; resume it, or choose another directory"),
        (data, 2, "is a file; a run needs a directory"),
        (data / "run", 2, f"{data} is a file; choose another directory"),
        (tmp_path / "held", 2, "is not empty (it holds mine); choose a new directory"),
        (tmp_path / ("x" * 300), 5, "file name too long; choose another directory"),
    ):
        refused(call(*begin("gpt2", data, out)), code, str(out), said)
    assert re.fullmatch("", (tmp_path / "held" / "mine").read_text()) and curve(base)
