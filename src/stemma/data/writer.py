"""Writing a version of a store: first all text, which gives its fingerprint, then the tokens and the other arrays."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stemma import disk
from stemma.data import shards
from stemma.data.documents import MixtureSource, Source
from stemma.data.encoding import Encoder
from stemma.data.heldout import bytes_hash, content_hash, pieces
from stemma.errors import DataError

VERSION = 1  # of the format
LANGUAGES = 1 << 16  # languages that a text may have: they are numbered in 16 bits
Progress = Callable[[int, int], None]  # (bytes of text done, bytes in all)


class Writer:
    """Writes the files of a version into `folder`: `spool` the text, then `encode` the tokens."""

    def __init__(self, folder: Path, tokenizer: Encoder, parts: Sequence[MixtureSource]) -> None:
        self.folder, self.tokenizer, self.parts = folder, tokenizer, parts
        self.sizes: list[int] = []
        self.names: list[str] = []
        self.hashes: list[int] = []
        self.labels: list[tuple[str, str, int]] = []  # language, group, part
        self.blocks = Blocks()

    def spool(self, source: Source) -> str:
        """Write all text to a file. Returns the fingerprint of tokenizer and text."""
        digest = hashlib.sha256(f"{VERSION}\0{self.tokenizer.fingerprint}\0".encode())
        with disk.writing(self.folder.parent):
            out = open(self.folder / "spool", "wb")  # noqa: SIM115
        try:
            for document in pieces(source.documents()):
                text, name = document.text, document.name
                try:
                    raw = text.encode("utf-8")
                except UnicodeEncodeError as error:
                    raise DataError(
                        f"{name} has a character that is not text (U+{ord(text[error.start]):04X})"
                    ) from error
                label = document[2:]
                labelled = [repr(label).encode("utf-8", "replace")] if any(label) else []
                for part in (raw, name.encode("utf-8", "replace"), *labelled):
                    digest.update(len(part).to_bytes(8, "little"))
                    digest.update(part)
                with disk.writing(self.folder.parent):
                    out.write(raw)
                self.sizes.append(len(raw))
                self.names.append(name)
                self.hashes.append(content_hash(text))
                self.labels.append((document.language, document.group, document.part))
            if (many := len({language for language, _, _ in self.labels})) > LANGUAGES:
                raise DataError(
                    f"{source.name} names {many:,} languages, and a text has at most {LANGUAGES:,}: its field `lang` "
                    "says something else; rename that field"
                )
            if self.parts:
                digest.update(repr([tuple(part) for part in self.parts]).encode("utf-8", "replace"))
            with disk.writing(self.folder.parent):
                out.flush()
        finally:
            with contextlib.suppress(OSError):  # flush has raised it
                out.close()
        return digest.hexdigest()

    def encode(self, parts: Path, progress: Progress | None, workers: int | None) -> dict[str, Any]:
        """Tokenise the spooled text into shards in `parts`, write all files and return the metadata."""
        small = self.tokenizer.vocab_size <= 1 << 16
        kinds = {"tokens": "<u2" if small else "<u4", "starts": "<i4", "text": "|u1", "names": "|u1"}
        ends: dict[str, list[int]] = {"tokens": [0], "starts": [0], "text": [0], "names": [0]}
        hashes: list[int] = []
        kept: list[tuple[str, str, int]] = []
        entries: dict[str, Any] = {}
        with disk.writing(self.folder.parent):
            outs = {name: _Out(self.folder / f"{name}.bin", kind) for name, kind in kinds.items()}
            try:
                spool = self.folder / "spool"
                with open(spool, "rb") as file:
                    for begin, shard in shards.encoded(spool, parts, self.sizes, self.tokenizer, workers, progress):
                        rows = range(begin, begin + len(shard.counts))
                        raws = [file.read(self.sizes[i]) for i in rows]
                        self.blocks.add(shard, raws, len(hashes), ends["tokens"][-1], ends["text"][-1])
                        there = [i for i, count in zip(rows, shard.counts.tolist(), strict=True) if count]
                        labels = [self.names[i].encode("utf-8", "replace") for i in there]
                        texts = [raws[i - begin] for i in there]
                        some = shard.counts > 0
                        for name, flat, lengths in (
                            ("tokens", shard.tokens, shard.counts[some]),
                            ("starts", shard.starts, shard.marks[some]),
                            ("text", b"".join(texts), [len(text) for text in texts]),
                            ("names", b"".join(labels), [len(label) for label in labels]),
                        ):
                            outs[name].add(flat)
                            ends[name] += (ends[name][-1] + np.cumsum(lengths, dtype=np.int64)).tolist()
                        hashes += [self.hashes[i] for i in there]
                        kept += [self.labels[i] for i in there]
                if not hashes:
                    raise DataError("the text gives no tokens at all with this tokenizer")
                for name, values in (
                    ("documents", ends["tokens"]),
                    ("sentences", ends["starts"]),
                    ("bytes", ends["text"]),
                    ("labels", ends["names"]),
                ):
                    outs[name] = _Out(self.folder / f"{name}.bin", "<i8")
                    outs[name].add(values)
                outs["hashes"] = _Out(self.folder / "hashes.bin", "<u8")
                outs["hashes"].add(hashes)
                more = self._label(kept, outs)
                for name, dtype, values in self.blocks.arrays(ends["tokens"], ends["text"], hashes):
                    outs[name] = _Out(self.folder / f"{name}.bin", dtype)
                    outs[name].add(values)
            except BaseException:
                for out in outs.values():
                    out.drop()
                raise
            for name, out in outs.items():
                entries[name] = out.close()
            (self.folder / "spool").unlink()
        counts = {"documents": len(hashes), "tokens": ends["tokens"][-1], "bytes": ends["text"][-1]}
        counts["blocks"] = len(hashes) + len(self.blocks.tokens)
        vocab = {"vocab": self.tokenizer.vocab_size, "tokenizer": self.tokenizer.fingerprint}
        return {"format": VERSION, **counts, **vocab, **more, "files": entries}

    def _label(self, kept: list[tuple[str, str, int]], outs: dict[str, _Out]) -> dict[str, Any]:
        """Write languages, groups and parts if there are any. Returns their metadata."""
        found: dict[str, Any] = {}
        columns = [list(column) for column in zip(*kept, strict=True)]
        numbers = {name: i for i, name in enumerate(dict.fromkeys(columns[0]))}
        groups: dict[str, int] = {}
        for group in columns[1]:
            if group:
                groups.setdefault(group, len(groups))
        if set(numbers) != {""}:
            found["languages"] = list(numbers)
            outs["languages"] = _Out(self.folder / "languages.bin", "<u2")
            outs["languages"].add([numbers[name] for name in columns[0]])
        if groups:
            outs["groups"] = _Out(self.folder / "groups.bin", "<i8")
            outs["groups"].add([groups.get(name, -1) for name in columns[1]])
        if self.parts:
            found["parts"] = [list(part) for part in self.parts]
            outs["parts"] = _Out(self.folder / "parts.bin", "<u2")
            outs["parts"].add(columns[2])
        return found


class Blocks:
    """Where the long documents of a store may be divided: the offsets of their further blocks in tokens.bin and
    text.bin, and the hashes of their blocks."""

    def __init__(self) -> None:
        self.tokens, self.bytes, self.hashes = array("q"), array("q"), array("Q")
        self.documents, self.counts = array("q"), array("q")  # that are divided, and into how many blocks

    def add(self, shard: shards.Encoded, raws: Sequence[bytes], document: int, tokens: int, size: int) -> None:
        """The blocks of a shard's documents, of which `raws` are the texts. `document`, `tokens`, `size`: documents,
        tokens and bytes before it."""
        at = 0
        for raw, count, cuts in zip(raws, shard.counts.tolist(), shard.divisions.tolist(), strict=True):
            if not count:
                at += cuts
                continue
            if cuts:
                inner, places = shard.cuts[at : at + cuts].tolist(), shard.places[at : at + cuts].tolist()
                self.tokens.extend(tokens + token for token in inner)
                self.bytes.extend(size + place for place in places)
                edges = itertools.pairwise([0, *places, len(raw)])
                self.hashes.extend(bytes_hash(raw[a:b]) for a, b in edges)
                self.documents.append(document)
                self.counts.append(cuts + 1)
            at, document, tokens, size = at + cuts, document + 1, tokens + count, size + len(raw)

    def arrays(self, tokens: list[int], text: list[int], hashes: list[int]) -> list[tuple[str, str, Any]]:
        """(name, type, values) of the arrays of a store; none where no document is divided. `tokens`, `text`: the
        offsets of documents; `hashes`: of documents."""
        if not self.documents:
            return []
        counts = np.ones(len(hashes), dtype=np.int64)
        counts[np.asarray(self.documents)] = self.counts
        each = np.repeat(np.asarray(hashes, dtype=np.uint64), counts)
        each[np.repeat(counts > 1, counts)] = self.hashes
        return [
            ("blocks", "<i8", np.sort(np.concatenate([tokens, self.tokens]))),
            ("block_bytes", "<i8", np.sort(np.concatenate([text, self.bytes]))),
            ("block_hashes", "<u8", each),
            ("divided", "<i8", np.concatenate([[0], np.cumsum(counts)])),
        ]


class _Out:
    """An array file that is being written."""

    def __init__(self, path: Path, kind: str) -> None:
        self.kind, self.count, self.digest = np.dtype(kind), 0, hashlib.sha256()
        self.file = open(path, "wb")  # noqa: SIM115

    def add(self, payload: Any) -> int:
        """Append numbers or bytes. Returns the number of elements."""
        raw = payload if isinstance(payload, bytes) else np.asarray(payload, dtype=self.kind).tobytes()
        self.file.write(raw)
        self.digest.update(raw)
        self.count += len(raw)
        return len(raw) // self.kind.itemsize

    def drop(self) -> None:
        """Close the file and ignore errors."""
        with contextlib.suppress(OSError):
            self.file.close()

    def close(self) -> dict[str, Any]:
        """Force the file to disk and close it. Returns its metadata."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return {"dtype": self.kind.str, "bytes": self.count, "sha256": self.digest.hexdigest()}
