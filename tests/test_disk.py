"""Files: whole or not at all, JSON, JSON lines, locks, and what is said when the system refuses."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stemma import disk
from stemma.errors import CheckpointError, MalformedError, ResourceError, UsageError


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write(path: Path) -> None:
    disk.write(path, "new")


def write_json(path: Path) -> None:
    disk.write_json(path, {"new": 1})


def write_jsonl(path: Path) -> None:
    with disk.write_jsonl(path) as add:
        add({"new": 1})


def replace(path: Path) -> None:
    with disk.replacing(path) as scratch:
        scratch.write_text("new")


@pytest.mark.parametrize("writer", [write, write_json, write_jsonl, replace])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(
    writer: Callable[[Path], None], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    monkeypatch.setattr(os, where, full)
    with pytest.raises(ResourceError) as caught:
        writer(path)
    assert str(caught.value) == f"cannot write {path}: the disk is full; free some space and run the command again"
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.json"]
    monkeypatch.undo()
    writer(path)
    assert "new" in path.read_text() and [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("old")
    with pytest.raises(KeyError), disk.write_jsonl(path) as add:
        add(1)
        raise KeyError
    with pytest.raises(KeyError), disk.replacing(path) as scratch:
        scratch.write_text("new")
        raise KeyError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_an_error_of_reading_is_no_error_of_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk.write_jsonl(tmp_path / "x.jsonl"):
        (tmp_path / "other").read_text()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk is full; free some space"),
        (OSError(errno.EDQUOT, "x"), "the disk is full; free some space"),
        (RuntimeError("I/O error: No space left on device"), "the disk is full; free some space"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied; make it writable"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system; make it writable"),
        (OSError(errno.EFBIG, "File too large"), "File too large; check the disk"),
    ],
)
def test_refusals(error: Exception, said: str) -> None:
    told = disk.refused("x", error)
    assert str(told) == f"cannot write x: {said} and run the command again"
    assert str(disk.instead(told, "go on")) == f"cannot write x: {said} and go on"
    told = disk.refused("x", error, note="nothing was changed", then="go on")
    assert str(told).startswith("cannot write x: ") and str(told).endswith(" and go on")
    assert "; nothing was changed; " in str(told)
    assert str(disk.instead(ResourceError("out of memory"), "go on")) == "out of memory; go on"


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(CheckpointError, match=r"x\.json does not exist") as caught:
        disk.read_json(path)
    assert not isinstance(caught.value, MalformedError)
    for raw, said in (
        (b"\xff{}", "is not UTF-8 text: byte 0 is 0xff"),
        (b'{"a":\n 1,}', "is not JSON: .* at line 2 column"),
        (b"1" * 5000, "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[1]", "holds a JSON list; an object was expected"),
    ):
        path.write_bytes(raw)
        with pytest.raises(MalformedError, match=said):
            disk.read_object(path)
    disk.write_json(path, {"é": [1]})
    assert path.read_text("utf-8") == '{\n  "é": [\n    1\n  ]\n}\n' and disk.read_object(path) == {"é": [1]}
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory; move it away"):
        disk.read_text(tmp_path)
    path.write_bytes(b"a\r\nb")
    assert disk.read_text(path) == "a\r\nb"


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a"\n[2]\n{"a": "\x85\xe2\x80\xa8')
    assert list(disk.read_jsonl(path)) == [(1, {"a": 1}), (3, disk.BROKEN), (4, [2]), (5, disk.BROKEN)]
    with pytest.raises(CheckpointError, match="cannot be read"):
        list(disk.read_jsonl(tmp_path / "none"))
    values: list[Any] = [{"a": "é\u2028"}, None, 1.5]
    with disk.write_jsonl(path) as add:
        for value in values:
            add(value)
    assert [value for _, value in disk.read_jsonl(path)] == values


def test_an_appended_line_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    file = disk.Appender(path, then="go on")
    file.add({"step": 1})
    real, left = os.write, [1]

    def short(handle: int, raw: Any) -> int:
        if not left[0]:
            full()
        left[0] -= 1
        return real(handle, bytes(raw)[:5])

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(ResourceError, match=r"cannot write .*x\.jsonl: the disk is full; free some space and go on"):
        file.add({"step": 2})
    assert path.read_text() == '{"step": 1}\n'
    left[0] = 99
    file.add({"step": 3})
    file.sync()
    file.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 3}]


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from stemma import disk\nwith disk.lock(Path(sys.argv[1])): "
    code += "print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="somebody is here"), disk.lock(tmp_path, busy="somebody is here"):
            pass
        other.kill()  # which lets go
        other.wait()
    with disk.lock(tmp_path, busy="somebody is here") as held:
        assert held
    with disk.lock(tmp_path / "none") as held:
        assert not held
