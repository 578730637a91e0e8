"""Token stores built by several processes, killed at any moment, shared between runs, and not read without need."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from letters import Broken, Letters, Mortal, contents
from stemma import disk
from stemma.data import Document, Source, Store, read, shards, shared, sources, stamps
from stemma.data.heldout import pieces
from stemma.data.progress import Meter, span
from stemma.errors import CheckpointError, DataError, ResourceError, StemmaError, UsageError

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD", 2000)


def said(kind: type[StemmaError], call: Any, *args: Any, **more: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(n: int, seed: int = 0) -> list[Document]:
    """Documents of all lengths; some are blank to the tokenizer."""
    draw = random.Random(seed)
    words = ["Ada", "née", "counts.", "日本", "stars!", "-", "🙂", "and\nthen", "so on"]
    made = [Document(" ".join(draw.choices(words, k=draw.choice((1, 3, 40, 200)))), f"n:{i}") for i in range(n)]
    return [d._replace(text="---") if i % 17 == 3 else d for i, d in enumerate(made)]


def old(path: Path) -> None:
    """Make as if a file had not been touched for long, as far as its times can be set."""
    os.utime(path, (1e9, 1e9))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files just written count as written long ago."""
    monkeypatch.setattr(stamps, "GRACE", -1e9)


# ---------------------------------------------------------------- any number of processes


def test_the_bytes_do_not_depend_on_processes_or_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sources.of(rows(120))
    found = []
    for i, (workers, size) in enumerate([(1, 2000), (2, 2000), (3, 900), (1, 10**9), (None, 5000)]):
        monkeypatch.setattr(shards, "SHARD", size)
        log, steps = tmp_path / f"log{i}", list[tuple[int, int]]()
        folder = tmp_path / str(i)
        store = Store.build(
            source, Letters(str(log)), folder, workers=workers, progress=lambda *at, s=steps: s.append(at)
        )
        found.append((store.fingerprint, (folder / "meta.json").read_bytes(), contents(folder)))
        assert steps == sorted(steps) and steps[-1] == (steps[-1][1], steps[-1][1])
        used = {line.split()[0] for line in log.read_text().splitlines()}
        assert len(used) == (workers or 1) or workers is None
        assert (str(os.getpid()) in used) == (workers == 1) or workers is None
        assert not (folder / ".shards").exists()
    assert all(other == found[0] for other in found)
    texts = [d.text for d in rows(120) if d.text.strip("-")]
    assert [store.text(i) for i in range(len(store))] == texts
    assert [store[i].tolist() for i in range(len(store))] == [Letters().encode_spans([t])[0][0] for t in texts]
    store.verify()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 60))
def test_shards_cover_every_document_once(sizes: list[int], limit: int) -> None:
    got = list(shards.cut(sizes, limit))
    assert [i for a, b in got for i in range(a, b)] == list(range(len(sizes)))
    assert all(sum(sizes[a:b]) >= limit for a, b in got[:-1]) and all(sum(sizes[a : b - 1]) < limit for a, b in got)


def test_a_shard_comes_back_or_not_at_all(tmp_path: Path) -> None:
    made = shards.encode(["One. Two!", "---", "Three"], Letters())
    assert made.counts.tolist() == [8, 0, 5] and made.marks.tolist() == [2, 0, 1]
    path = tmp_path / "a.shard"
    shards.save(path, made)
    held = shards.load(path)
    assert held is not None and all((a == b).all() and a.dtype == b.dtype for a, b in zip(made, held, strict=True))
    raw = path.read_bytes()
    for at in (0, 20, len(raw) // 2, len(raw) - 40, len(raw) - 1):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert shards.load(path) is None
    for n in (0, 10, len(raw) - 1):
        path.write_bytes(raw[:n])
        assert shards.load(path) is None
    assert shards.load(tmp_path / "none") is None


def test_workers_are_as_many_as_there_is_work() -> None:
    assert shards.workers_for(3, 8) == 3 and shards.workers_for(100, 8) == 8 and shards.workers_for(1, None) == 1
    assert "at least 1" in said(UsageError, shards.workers_for, 5, 0)


# ---------------------------------------------------------------- stopped and gone on with


def test_what_was_finished_is_not_made_again(tmp_path: Path) -> None:
    source, folder, log = sources.of(rows(60)), tmp_path / "store", tmp_path / "log"

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise Stop

    with pytest.raises(Stop):
        Store.build(source, Letters(), folder, progress=stop)
    finished = len(list((folder / ".shards").glob("*.shard")))
    jobs = len(list(shards.cut([len(d.text.encode()) for d in rows(60)])))
    assert 0 < finished < jobs
    steps: list[tuple[int, int]] = []
    Store.build(source, Letters(str(log)), folder, progress=lambda *at: steps.append(at))
    assert len(log.read_text().splitlines()) == jobs - finished
    assert steps[0][0] > steps[0][1] / 2  # it begins where the other stopped
    Store.build(source, Letters(), tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_damaged_shard_is_named_and_made_again(tmp_path: Path) -> None:
    source, folder = sources.of(rows(40)), tmp_path / "store"

    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store.build(source, Letters(), folder, progress=stop)
    parts = sorted((folder / ".shards").iterdir())
    parts[1].write_bytes(parts[1].read_bytes()[:-5])
    with pytest.warns(UserWarning, match=f"{parts[1].name} is damaged; its part of the text is tokenised again"):
        Store.build(source, Letters(), folder)
    Store.build(source, Letters(), tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")


BUILD = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from letters import Letters\nfrom stemma.data import Store, shards, shared\nshards.SHARD = 2000\n"
    "make = shared.build if sys.argv[4] == 'shared' else Store.build\n"
    "make(sys.argv[2], Letters(sys.argv[5], 0.002), sys.argv[3], workers=2)\n"
)


def kill_and_go_on(tmp_path: Path, kills: int, how: str, seed: int) -> None:
    """Kill a build at random moments, `kills` times at least, then let it end: the same bytes, little made twice."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in rows(300, seed)), encoding="utf-8")
    log, folder = tmp_path / "log", tmp_path / how
    command = [sys.executable, "-c", BUILD, str(HERE), str(corpus), str(folder), how, str(log)]
    env = {**os.environ, "STEMMA_CACHE": str(tmp_path / "cache")}
    draw, killed, finished = random.Random(seed), 0, 0
    longest = 1.0
    while killed < kills:
        begin = time.monotonic()
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
        try:
            process.wait(draw.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        _, err = process.communicate()
        if process.returncode == 0:  # it came to its end first: begin anew
            longest = max(0.3, time.monotonic() - begin)
            finished += 1
            shutil.rmtree(folder)
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        else:
            assert process.returncode == -9, err.decode()
            longest = min(longest * 1.1, 6.0)
    log.unlink(missing_ok=True)
    subprocess.run(command, env=env, check=True)
    Store.build(str(corpus), Letters(), tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")
    Store.open(folder).verify()
    left = [p for root in (folder, tmp_path / "cache") if root.exists() for p in root.rglob(".*")]
    assert not left, left


def test_killed_builds_go_on_to_the_same_store(tmp_path: Path) -> None:
    kill_and_go_on(tmp_path, 4, "direct", 1)


def test_a_build_killed_in_its_last_moment_leaves_nothing(tmp_path: Path) -> None:
    """After `meta.json` is written and before the shards are removed."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in rows(20)), encoding="utf-8")
    os.utime(corpus, (1, 1))
    time.sleep(2.1)  # a file that has just changed is not trusted, and is read again
    store = Store.build(str(corpus), Letters(), tmp_path / "store")
    (tmp_path / "store" / ".shards").mkdir()
    (tmp_path / "store" / ".shards" / "left").write_text("x")
    (tmp_path / "store" / ".source.json.b4f77b7f.tmp").write_text("{")
    assert Store.build(str(corpus), Letters(), tmp_path / "store").fingerprint == store.fingerprint
    assert not list((tmp_path / "store").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["direct", "shared"])
def test_builds_killed_at_many_moments(tmp_path: Path, how: str) -> None:
    kill_and_go_on(tmp_path, 24, how, 2)


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    log = tmp_path / "log"
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in rows(400)), encoding="utf-8")
    command = [sys.executable, "-c", BUILD, str(HERE), str(corpus), str(tmp_path / "store"), "direct", str(log)]
    process = subprocess.Popen(command)
    while not log.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    pids = {int(line.split()[0]) for line in log.read_text().splitlines()}
    for _ in range(500):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            break
        time.sleep(0.02)
    assert pids and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_two_builds_of_one_store_take_turns(tmp_path: Path) -> None:
    source, found = sources.of(rows(50)), []

    def build() -> None:
        found.append(Store.build(source, Letters(slow=0.002), tmp_path))

    threads = [threading.Thread(target=build) for _ in range(3)]
    with pytest.warns(UserWarning, match="waiting for another process"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 3 and len({store.meta["version"] for store in found}) == 1


# ---------------------------------------------------------------- what goes wrong


def test_a_worker_that_dies_is_said_plainly(tmp_path: Path) -> None:
    bad = [*rows(40), Document("an alien word", "x:1")]
    error = said(ResourceError, Store.build, sources.of(bad), Mortal(), tmp_path, workers=2)
    assert "ended early (signal 9), perhaps out of memory" in error and "finished shards are kept" in error
    assert list((tmp_path / ".shards").iterdir())
    Store.build(sources.of(bad), Letters(), tmp_path)  # same ids: goes on from there


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tokenizer_that_is_not_whole(tmp_path: Path, workers: int) -> None:
    bad = [*rows(40), Document("an alien word", "x:1")]
    error = said(CheckpointError, Store.build, sources.of(bad), Broken(), tmp_path, workers=workers)
    assert error == (
        "the tokenizer gives id 1000 for the text 'an alien word', and its vocabulary has 1000 ids; its files do not "
        "belong together"
    )


def test_a_tokenizer_for_other_text(tmp_path: Path) -> None:
    words = Letters()
    words.unk_id = 999  # type: ignore[attr-defined]
    with pytest.warns(
        UserWarning, match="50% of the text's tokens are unknown to the tokenizer, so it was made for other"
    ):
        Store.build(sources.of(["abcd日本", "日本"]), words, tmp_path / "a")
    Store.build(sources.of(["abcd" * 10 + "日本", "ab"]), words, tmp_path / "b")


def test_a_full_disk_while_tokenising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real, left = sources.of(rows(60)), os.fsync, [6]  # a shard and its folder, three times

    def full(handle: int) -> None:
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    error = said(ResourceError, Store.build, source, Letters(), tmp_path / "store", workers=1)
    assert error.startswith(f"cannot write {tmp_path / 'store' / '.shards'}/")
    assert error.endswith(": the disk is full; free some space and run the command again")
    assert len(list((tmp_path / "store" / ".shards").iterdir())) == 3
    left[0] = 10**6
    log = tmp_path / "log"
    Store.build(source, Letters(str(log)), tmp_path / "store", workers=1).verify()
    assert len(log.read_text().splitlines()) == len(list(shards.cut([len(d.text.encode()) for d in rows(60)]))) - 3


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """On a file system of a few pages, where that can be mounted."""
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(small)], capture_output=True)
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        for workers in (1, 2):
            error = said(ResourceError, Store.build, sources.of(rows(400)), Letters(), small / "store", workers=workers)
            assert "the disk is full" in error
        Store.build(sources.of(rows(20)), Letters(), small / "store").verify()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "in" / name).write_text("some text")
    real = open

    def refuse(path: Any, *args: Any, **more: Any) -> Any:
        if str(path).endswith("b.txt"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **more)

    monkeypatch.setattr("builtins.open", refuse)
    error = said(DataError, Store.build, str(tmp_path / "in"), Letters(), tmp_path / "store")
    assert error == f"cannot read {tmp_path / 'in' / 'b.txt'}: Permission denied"


# ---------------------------------------------------------------- not read without need


def counted(source: Source) -> tuple[Source, list[int]]:
    """A source that counts its walks."""
    walks, walk = [0], source.walk

    def again(notes: list[str]) -> Any:
        walks[0] += 1
        return walk(notes)

    source.walk = again
    return source, walks


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, settled: None) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one text"}\n{"text": "two texts"}\n')
    first = Store.build(str(path), Letters(), tmp_path / "store")
    source, walks = counted(read(str(path)))
    assert Store.build(source, Letters(), tmp_path / "store").fingerprint == first.fingerprint and walks == [0]
    # any change shows: content of the same size with its old time of modification put back, another option, ...
    before = path.stat()
    path.write_text('{"text": "one text"}\n{"text": "two tests"}\n')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    changed = Store.build(str(path), Letters(), tmp_path / "store")
    assert changed.fingerprint != first.fingerprint and changed.text(1) == "two tests"
    source, walks = counted(read(str(path)))
    os.utime(path, (1e9, 1e9))  # touched: read once, found the same, then known again
    for expected in (1, 1):
        assert Store.build(source, Letters(), tmp_path / "store").fingerprint == changed.fingerprint
        assert walks == [expected]
    path.write_text('{"text": "one text", "body": "a"}\n{"text": "two tests", "body": "b"}\n')
    assert Store.build(f"{path}#field=body", Letters(), tmp_path / "store").text(0) == "a"


def test_a_file_that_has_just_changed_is_not_vouched_for(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    old(path)  # its ctime is still now
    assert stamps.of(read(str(path)), Letters()) is None
    Store.build(str(path), Letters(), tmp_path / "store")
    assert not (tmp_path / "store" / stamps.FILE).exists()


def test_stamps_see_what_matters(tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    a = tmp_path / "in" / "a.txt"
    a.write_text("one")

    def stamp(spec: str = str(tmp_path / "in"), of: Any = None) -> str | None:
        return stamps.of(read(spec), of or Letters())

    first = stamp()
    assert first == stamp() is not None
    (tmp_path / "in" / "b.txt").write_text("two")
    assert stamp() != first  # a file more
    (tmp_path / "in" / "b.txt").unlink()
    assert stamp() == first
    assert (
        len({first, stamp(f"{tmp_path / 'in'}#split=line"), stamp(str(a)), stamp(str(tmp_path / "in" / "*.txt"))}) == 4
    )
    other = Letters()
    other.fingerprint = "other"
    assert stamp(of=other) != first
    assert stamp(f"{a},builtin:docs") is not None and stamp("builtin:docs") != stamp("builtin:code")
    assert (
        stamps.of(sources.of(["in memory"]), Letters()) is None and stamps.of(read("hf://org/name"), Letters()) is None
    )
    assert stamp(f"{a},hf://org/name") is None
    monkeypatch.setattr(stamps, "rules", lambda: "another way of reading")
    assert stamp() != first


# ---------------------------------------------------------------- shared by runs


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stores"


def corpus(tmp_path: Path, n: int = 40) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in rows(n)), encoding="utf-8")
    return path


def test_a_run_that_was_killed_while_it_got_its_store_is_tidied(tmp_path: Path, cache: Path, settled: None) -> None:
    """The process had written the temporary file of `meta.json`, and not yet given it its name."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".meta.json.c804999f.tmp").write_text("{}")
    store = shared.build(str(corpus(tmp_path)), Letters(), run)
    assert sorted(path.name for path in run.iterdir()) == sorted(["meta.json", store.meta["version"]])


def test_runs_share_a_store_and_stand_on_their_own(tmp_path: Path, cache: Path, settled: None) -> None:
    path, log = corpus(tmp_path), tmp_path / "log"
    first = shared.build(str(path), Letters(str(log)), tmp_path / "run1")
    made = log.read_text()
    source, walks = counted(read(str(path)))
    second = shared.build(source, Letters(str(log)), tmp_path / "run2")
    assert walks == [0] and log.read_text() == made and second.fingerprint == first.fingerprint
    inodes = {p.stat().st_ino for run in ("run1", "run2") for p in (tmp_path / run).glob("*/tokens.bin")}
    assert len(inodes) == 1 and len(list(cache.iterdir())) == 1
    shutil.rmtree(tmp_path / "run1")
    assert shared.clear() > 0 and not list(cache.iterdir())
    second.verify()
    assert Store.open(tmp_path / "run2")[3].tolist() == second[3].tolist()
    assert not os.access(next((tmp_path / "run2").glob("*/tokens.bin")), os.W_OK) or os.geteuid() == 0


def test_new_text_takes_the_place_of_the_old_in_the_cache_alone(tmp_path: Path, cache: Path) -> None:
    path = corpus(tmp_path)
    first = shared.build(str(path), Letters(), tmp_path / "run1")
    corpus(tmp_path, 50)
    second = shared.build(str(path), Letters(), tmp_path / "run2")
    assert first.fingerprint != second.fingerprint
    assert len(list(cache.iterdir())) == 1 and len(list(cache.glob("*/*/tokens.bin"))) == 1
    Store.open(tmp_path / "run1").verify()
    assert shared.build(str(path), Letters(), tmp_path / "run1").fingerprint == second.fingerprint


def test_damage_in_the_cache_does_not_spread(tmp_path: Path, cache: Path, settled: None) -> None:
    path = corpus(tmp_path)
    first = shared.build(str(path), Letters(), tmp_path / "run1")
    (tokens,) = cache.glob("*/*/tokens.bin")
    whole = tokens.read_bytes()
    tokens.unlink()
    tokens.write_bytes(bytes(len(whole)))
    second = shared.build(str(path), Letters(), tmp_path / "run2")
    second.verify()
    assert contents(tmp_path / "run2") == contents(tmp_path / "run1") and first.fingerprint == second.fingerprint


def test_without_links_or_a_cache_there_are_copies(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus(tmp_path)

    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        shared.build(str(path), Letters(), tmp_path / "run1").verify()
    (a,), (b,) = cache.glob("*/*/tokens.bin"), (tmp_path / "run1").glob("*/tokens.bin")
    assert a.stat().st_ino != b.stat().st_ino
    (tmp_path / "file").touch()
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "file"))
    shared.build(str(path), Letters(), tmp_path / "run2").verify()
    shared.build(sources.of(["in memory", "too"]), Letters(), tmp_path / "run3").verify()
    assert contents(tmp_path / "run2") == contents(tmp_path / "run1")


def test_unused_stores_make_room(tmp_path: Path, cache: Path) -> None:
    shared.build(str(corpus(tmp_path)), Letters(), tmp_path / "run1")
    (slot,) = cache.iterdir()
    other = tmp_path / "other.txt"
    other.write_text("another\n\ntext")
    shared.build(str(other), Letters(), tmp_path / "run2")
    assert slot.is_dir()
    os.utime(slot, (1e9, 1e9))
    (tmp_path / "third.txt").write_text("a third\n\ntext")
    shared.build(str(tmp_path / "third.txt"), Letters(), tmp_path / "run3")
    assert not slot.exists() and len(list(cache.iterdir())) == 2
    Store.open(tmp_path / "run1").verify()


def test_a_lock_is_free_when_its_holder_is_gone(tmp_path: Path) -> None:
    code = "import sys, os; from pathlib import Path; from stemma import disk\nwith disk.lock(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    with disk.lock(tmp_path) as alone:
        assert alone


# ---------------------------------------------------------------- progress


def test_the_meter_says_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    meter = Meter("tokenising", out)
    for second, done in ((0.5, 40), (10, 45), (20, 50), (40, 60), (120, 100)):
        clock[0] = second
        meter(done * 1_000_000, 100_000_000)
    assert out.getvalue().splitlines() == [
        "tokenising  50% of 100.0 MB, 0.5 MB/s, 1m38s left",
        "tokenising  60% of 100.0 MB, 0.5 MB/s, 1m19s left",
        "tokenising 100% of 100.0 MB, 0.5 MB/s, 2m00s",
    ]
    assert [span(s) for s in (0.2, 59, 61, 3700)] == ["0s", "59s", "1m01s", "1h01m"]
    out = io.StringIO()
    quick = Meter("tokenising", out)
    quick(5, 10)
    quick(10, 10)
    assert not out.getvalue()


# ---------------------------------------------------------------- the order


class _Texts:
    """A view of documents of given lengths, for orders."""

    def __init__(self, lengths: list[int]) -> None:
        self.documents = [np.arange(n, dtype=np.int64) + 1000 * i for i, n in enumerate(lengths)]

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, i: int) -> Any:
        return self.documents[i]

    def closed(self, i: int) -> bool:
        return True

    def sentences(self, i: int) -> Any:
        return np.arange(0, max(1, len(self.documents[i])), 7)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 200))
def test_each_epoch_has_every_document_once(seed: int, n: int) -> None:
    from stemma.objectives.base import Order

    order = Order(seed, n)
    for epoch in (0, 1, 5):
        got = [order[epoch * n + i] for i in range(n)]
        assert sorted(document for document, _ in got) == list(range(n)) and {e for _, e in got} == {epoch}
    places = [7 * n // 3, 0, n - 1, 2 * n]
    assert [Order(seed, n)[p] for p in places] == [order[p] for p in places]  # in any order, by anybody


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 90), min_size=2, max_size=12).filter(any),
    st.integers(0, 2**31),
    st.integers(1, 5),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_rows_are_the_same_for_any_processes_and_restarts(
    lengths: list[int], seed: int, processes: int, stops: list[int]
) -> None:
    """Row i of the stream is made by process i % processes, which plans all and makes its own; and a run that stops
    after any rows goes on from the cursor, saved as plain numbers, as if it had not."""
    from stemma.objectives.base import Cursor, Order, Packer

    view = _Texts(lengths)

    def packer() -> Packer:
        order = Order(seed, len(view))
        return Packer(order, lambda d: len(view[d]), lambda d, epoch: view[d][None], False)

    def stream(at: Cursor) -> Any:
        own = packer()
        for span_, follow in own.chunks(at, 16, 16):
            yield own.row(span_, 16, [0]).values[0].tolist(), follow

    total = sum(stops) + 3
    whole = [row for (row, _), _ in zip(stream(Cursor()), range(total), strict=False)]
    shares = [
        [(i, row) for (row, _), i in zip(stream(Cursor()), range(total), strict=False) if i % processes == p]
        for p in range(processes)
    ]
    assert [row for _, row in sorted(r for share in shares for r in share)] == whole
    at, got = Cursor(), list[list[int]]()
    for count in [*stops, 3]:
        for _, (row, follow) in zip(range(count), stream(Cursor(at.slot, at.offset)), strict=False):
            got.append(row)
            after = follow
        at = after
    assert got == whole


def test_the_order_follows_from_the_text_alone(tmp_path: Path) -> None:
    """Stores built by 1 or 2 processes, after a kill or at once, give every epoch the same documents in one order."""
    from stemma.objectives.base import Order

    source = sources.of(rows(80))
    seen = []
    for workers in (1, 2):
        train, _ = Store.build(source, Letters(), tmp_path / str(workers), workers=workers).split(0.1, 3)
        order = Order(3, len(train))
        seen.append([train.text(order[i][0]) for i in range(2 * len(train))])
    assert seen[0] == seen[1] and len(list(pieces(source.documents()))) == 80
