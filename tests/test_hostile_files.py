"""Tokenizers, torch files and texts that break the libraries that read them: one sentence, in bounded time and memory."""

from __future__ import annotations

import errno
import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from letters import Letters
from stemma import disk
from stemma.data import Store, compression, files, folders, heldout
from stemma.data.documents import Document, Source
from stemma.decoding import generation_config
from stemma.decoding.sampling import Sampler
from stemma.errors import CheckpointError, DataError, ResourceError, StemmaError, UsageError
from stemma.formats import tensors
from stemma.text import Specials, Tokenizer, legacy, reading, spm, trainer

# ---------------------------------------------------------------- tokenizers


def bpe(**changes: Any) -> dict[str, Any]:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "unk_token": None}
    return {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
            "decoder": None, "model": model} | changes  # fmt: skip


def replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


MULTIPLY = {"type": "Sequence", "normalizers": [replace("a", "a" * 300)] * 3}


def test_tokenizers_that_the_library_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"

    def load(state: dict[str, Any]) -> Tokenizer:
        path.write_text(json.dumps(state))
        return Tokenizer.load(tmp_path)

    with pytest.raises(CheckpointError, match="27,000,000 times longer"):
        load(bpe(normalizer=MULTIPLY))
    with pytest.raises(CheckpointError, match="without a vocabulary"):
        load(bpe(model={"type": "BPE", "vocab": {}, "merges": []}))
    monkeypatch.setattr(reading, "MERGES", 0)
    with pytest.raises(CheckpointError, match="1 merges; at most 0"):
        load(bpe())
    monkeypatch.undo()
    backtracking = {
        "type": "Split",
        "pattern": {"Regex": "(a|aa)+$x|(?=(a+)+b)c"},
        "behavior": "Isolated",
        "invert": False,
    }
    tokenizer = load(bpe(pre_tokenizer=backtracking))
    for call in (tokenizer.encode, lambda t: tokenizer.encode_batch([t]), lambda t: tokenizer.encode_spans([t])):
        with pytest.raises(CheckpointError, match="the tokenizer cannot read this text"):
            call("a" * 5000)
    assert load(bpe(normalizer=replace("x", "yy"))).encode("ab") == [2]


def test_what_a_library_prints_of_its_panic_is_dropped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pattern = {"type": "Split", "pattern": {"Regex": "(a+a+)+[xy]"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe(pre_tokenizer=pattern)))
    tokenizer = Tokenizer.load(tmp_path)
    for call in (
        tokenizer.encode,
        lambda text: tokenizer.encode_pair(text, text),
        lambda text: tokenizer.encode_batch([text]),
    ):
        with pytest.raises(CheckpointError, match="the tokenizer cannot read this text"):
            call("a" * 60)
    assert capfd.readouterr().err == ""
    os.write(2, b"x")
    assert capfd.readouterr().err == "x"


@pytest.mark.parametrize("number", [2**31, 10**7, -1, 1.5, "x", None])
def test_ids_that_no_vocabulary_has(number: Any, tmp_path: Path) -> None:
    for change in (
        {"model": {"type": "BPE", "vocab": {"a": number, "b": 1, "ab": 2}, "merges": []}},
        {"added_tokens": [{"id": number, "content": "x"}]},
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(bpe(**change)))
        with pytest.raises(CheckpointError, match=r"has the id .*; ids are whole numbers from 0"):
            Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps({"a": number, "b": 1}))
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"has the id .*; ids are whole numbers from 0"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_config_of_another_shape(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nx\n")
    for odd in ({"strip_accents": "x"}, {"strip_accents": [1]}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(odd))
        with pytest.raises(CheckpointError, match="is not a tokenizer that works"):
            Tokenizer.load(tmp_path)


def field(number: int, wire: int, value: bytes) -> bytes:
    size = bytes([len(value)]) if wire == 2 else b""
    return bytes([number << 3 | wire]) + size + value


def piece(text: str, score: float = 0.0) -> bytes:
    return field(1, 2, field(1, 2, text.encode()) + field(2, 5, struct.pack("<f", score)))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (piece("a") + field(2, 2, field(3, 0, b"\x01") + b"\xc0\x02\x09"), "the unknown piece is 9 of 1"),
        (piece("a", float("nan")), "has no finite score"),
        (b"\x80" * 3_000_000, "more than 64 bits"),
        (b"\x08" + b"\xff" * 3_000_000, "more than 64 bits"),
    ],
)
def test_sentencepiece_models_beyond_reason(raw: bytes, said: str) -> None:
    begin = time.process_time()
    with pytest.raises(CheckpointError, match=said):
        spm.parse(raw, "x.model")
    assert time.process_time() - begin < 1


@pytest.mark.parametrize("extra", [10**9, -1, "x", 1.5, None])
def test_sentinels_are_counted_first(extra: Any, tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(piece("<unk>") + piece("a"))
    with pytest.raises(CheckpointError, match="extra_ids"):
        legacy._sentencepiece(path, {}, {"extra_ids": extra}, "t5", {})


def test_long_words_are_cut_before_training() -> None:
    for text in ("", "a b", "x" * 1000, "word " * 900, "一二三。" * 900, ("x" * 900 + "!") * 3):
        assert trainer.cut(text) == text
    assert trainer.cut("x y" + "a" * 2500 + " z") == "x y" + "a" * 999 + "\n" + "a" * 1000 + "\n" + "a" * 501 + " z"
    assert trainer.cut("-" * 1001) == "-" * 1000 + "\n-"
    begin = time.process_time()
    Tokenizer.train("bpe", ["a" * 200_000], 300, Specials(eos="</s>"))
    assert time.process_time() - begin < 3


# ---------------------------------------------------------------- torch files


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({3: torch.zeros(2)}, "a key is 3, which is no text"),
        ({("a",): torch.zeros(2)}, "which is no text"),
        ({"x": torch.zeros(2, 2).to_sparse()}, "of another kind"),
        ({"x": torch.zeros(2, device="meta")}, "of another kind"),
        ({"model": {1: torch.zeros(2)}}, "which is no text"),
    ],
)
def test_torch_files_of_odd_tensors(held: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(held, path)
    with pytest.raises(CheckpointError, match=said):
        tensors.plain(path)


# ---------------------------------------------------------------- disks


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598"),
        RuntimeError("basic_ios::clear: iostream error"),
        OSError("48960 requested and 27232 written"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("Error while serializing: I/O error: File too large (os error 27)"),
    ],
)
def test_a_refusal_in_a_librarys_words(error: Exception, tmp_path: Path) -> None:
    def fails() -> None:
        raise error

    with (
        pytest.raises(ResourceError, match=r"cannot write .*nothing there was changed"),
        tensors.whole(tmp_path / "out", lambda name: False),
    ):
        fails()
    assert not (tmp_path / "out").exists()
    with pytest.raises(ResourceError, match="cannot write"), disk.replacing(tmp_path / "x"):
        fails()
    with pytest.raises(ValueError, match="another"), disk.writing("x"):
        raise ValueError("another")


# ---------------------------------------------------------------- text


def test_a_line_beyond_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "LONGEST", 1000)
    path = tmp_path / "x.txt"
    path.write_text("a\n" + "b" * 999 + "\n" + "c" * 1001 + "\n")
    with pytest.raises(DataError, match=r"x.txt:3 is a line of more than 1,000 bytes"):
        list(compression.lines(path))
    path.write_text("a\n" + "b" * 999 + "\nc")
    assert list(compression.lines(path)) == ["a\n", "b" * 999 + "\n", "c"]


def test_blank_lines_are_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    path.write_text("a\n\n\n\n\n\n\nb\n\nc\n\n\n")
    for rule, texts in (("section", ["a", "b\n\nc"]), ("paragraph", ["a", "b", "c"])):
        assert [d.text for d in files._text(path, rule)] == texts


def test_links_around_themselves(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("x", "a/x", "a/b/x"):
        (tmp_path / f"{name}.txt").write_text(name)
    for k in range(4):
        (tmp_path / "a" / f"loop{k}").symlink_to(tmp_path)
        (tmp_path / "a" / "b" / f"up{k}").symlink_to(tmp_path / "a")
    begin = time.process_time()
    found = folders.expand(f"{tmp_path}/**/*.txt")
    assert {Path(p).relative_to(tmp_path).as_posix() for p in found} == {"x.txt", "a/x.txt", "a/b/x.txt"}
    assert time.process_time() - begin < 1


def test_a_text_that_changes_between_two_walks(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = [json.dumps({"text": f"text {i}"}) + "\n" for i in range(40)]
    for after in (rows[:20], rows + rows[:5]):
        walks = iter([rows, after])

        def walk(notes: list[str], walks: Iterator[list[str]] = walks) -> Iterator[Document]:
            path.write_text("".join(next(walks)))
            return files.of_file(path, files.Reading())

        with pytest.raises(DataError, match="changed while it was read"):
            list(heldout.training_texts(Source("x", walk), 0.1))


def test_arrow_offsets_are_checked(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "x.arrow"
    batch = arrow.record_batch([arrow.array(["one", "two", "three"])], names=["text"])
    with arrow.OSFile(str(path), "wb") as out, arrow.ipc.new_stream(out, batch.schema) as writer:
        writer.write_batch(batch)
    raw, offsets = path.read_bytes(), struct.pack("<4i", 0, 3, 6, 11)
    assert raw.count(offsets) == 1 and len(list(files._table(path, "text"))) == 3
    path.write_bytes(raw.replace(offsets, struct.pack("<4i", 0, 3, 2**30, 2**31 - 1)))
    with pytest.raises(DataError, match="damaged"):
        list(files._table(path, "text"))


# ---------------------------------------------------------------- generation


@pytest.mark.parametrize("value", [1e-320, 1e308, 10**30, float("inf"), float("nan")])
def test_settings_of_generation_beyond_reason(value: float) -> None:
    class Held:
        extras = {"generation_config": {"temperature": value}}

    with pytest.raises(StemmaError, match="temperature"):
        generation_config.number(Held(), "temperature", 1.0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="temperature"):
        Sampler(temperature=value)


@pytest.mark.parametrize("form", ["file", "stream"])
def test_an_arrow_file_that_is_cut_while_it_is_read_is_a_sentence(tmp_path: Path, form: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    path, schema = tmp_path / "a.arrow", arrow.schema([("text", arrow.string())])
    make = arrow.ipc.new_file if form == "file" else arrow.ipc.new_stream
    with make(str(path), schema) as out:
        for i in range(40):
            out.write(arrow.record_batch([arrow.array([f"{i} " + "x" * 50_000])], schema=schema))
    walk = files.of_file(path, files.Reading())
    assert next(walk).text.startswith("0 ")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="is not an Arrow file, or it is damaged"):
        list(walk)


@pytest.mark.parametrize("change", ["cut", "appended to"])
def test_a_text_that_changes_while_it_is_read_makes_no_store(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one line\n" * 50_000)

    def walk(notes: object) -> Iterator[Document]:
        for number, document in enumerate(files.of_file(path, files.Reading("line"))):
            if number == 3 and change == "cut":
                os.truncate(path, 200_000)
            elif number == 3:
                with open(path, "a") as file:
                    file.write("more")
            yield document

    with pytest.raises(DataError, match=r"a\.txt changed while it was read; run the command again when nothing writes"):
        Store.build(Source("a", walk, paths=(path,)), Letters(), tmp_path / "store", workers=1)
    assert not list((tmp_path / "store").glob("[0-9a-f]*"))
