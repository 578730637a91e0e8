"""Text as token ids on disk: tokenised once, mapped into memory, divided into training and held-out documents.

A store is a folder with a `meta.json`, which names the current version, and a folder a version with plain arrays in
little-endian order:

    tokens.bin     uint16 or uint32: the ids of all documents, one after another, without special tokens
    documents.bin  int64[n+1]: where each document's tokens begin
    starts.bin     int32: token positions, within the document, where its sentences begin; the first is 0
    sentences.bin  int64[n+1]: where each document's sentence starts begin
    text.bin       the UTF-8 text of all documents; bytes.bin int64[n+1]: where each begins
    hashes.bin     uint64[n]: a hash of each document's text
    names.bin      the documents' names, UTF-8; labels.bin int64[n+1]: where each begins

and, where the source says any of it (`meta.json` has the languages by number, and the parts of a mixture),

    languages.bin  uint16[n]: each document's language; groups.bin int64[n]: its group, -1 for none
    parts.bin      uint16[n]: which source of a mixture it is from

A new version is written beside the old one and takes its place by the replacement of `meta.json` alone, so a build that
is killed leaves what was there. What it had tokenised waits in `.shards` and is used by the next build (`shards.py`).
`source.json` says of which files, as they then were, the store was made, so that they need not be read again to know
that nothing changed (`stamps.py`). A source of a single document is divided first: at blank lines, else at line ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stemma import disk
from stemma.data import random, shards, stamps
from stemma.data.encoding import Encoder
from stemma.data.sources import Document, Part, Source, read
from stemma.errors import CheckpointError, DataError

VERSION = 1
LANGUAGES = 1 << 16  # that the numbers of a text's languages tell apart
Progress = Callable[[int, int], None]  # (bytes of text done, bytes in all)


def content_hash(text: str) -> int:
    """A 64-bit hash of a document's text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def pieces(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents; a single one is divided at blank lines, or, if it has none, at line ends."""
    rows = iter(documents)
    first = next(rows, None)
    if first is None:
        return
    second = next(rows, None)
    if second is not None:
        yield first
        yield second
        yield from rows
        return
    whole, name = first.text, first.name
    stem, _, line = name.rpartition(":")
    base, number = (stem, int(line)) if stem and line.isdigit() else (name, 1)
    for cut in (r"\n[^\S\n]*(?:\n[^\S\n]*)+", r"\n"):
        edges = [0, *(m.end() for m in re.finditer(cut, whole)), len(whole)]
        parts = [(a, whole[a:b].strip("\n")) for a, b in itertools.pairwise(edges)]
        parts = [(a, part) for a, part in parts if part.strip()]
        if len(parts) > 1:
            line_of, last = number, 0
            for a, part in parts:
                line_of += whole.count("\n", last, a)
                last = a
                yield first._replace(text=part, name=f"{base}:{line_of}", group="")
            return
    yield first


def held_out(hashes: npt.NDArray[np.uint64], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """bool[n]: which documents are held out, decided by each one's own hash and the seed, so that others do not matter
    and equal texts stay together. If one side would be empty, the nearest text to the border crosses it.
    Raises DataError if there are fewer than two different texts."""
    if not 0 < fraction < 1:
        raise DataError(f"the held-out fraction is {fraction}; a number between 0 and 1 was expected")
    unique, where = np.unique(hashes, return_inverse=True)
    if len(unique) < 2:
        raise DataError(
            "the text cannot be divided into training and held-out documents: it has only one document, without a "
            "line end; give more text, or several lines"
            if len(hashes) < 2
            else "the text cannot be divided into training and held-out documents: all its documents are the same"
        )
    draw = random.hashed((seed, 0x5EED), unique)
    out = draw < fraction
    if not out.any():
        out[draw.argmin()] = True
    elif out.all():
        out[draw.argmax()] = False
    return out[where]


def bound(hashes: npt.NDArray[np.uint64], groups: Sequence[Any]) -> npt.NDArray[np.uint64]:
    """uint64[n]: the hashes of documents with those that must not be divided made equal: documents of a group, and the
    same text in several groups. `groups`: one a document; "" or -1 for none. Each takes the smallest hash of those
    that it is bound to."""
    root = list(range(len(hashes)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    first: dict[Any, int] = {}
    for i, (text, group) in enumerate(zip(hashes.tolist(), groups, strict=True)):
        keys = [("text", text)] if group in ("", -1) else [("text", text), ("group", group)]
        for key in keys:
            a, b = find(first.setdefault(key, i)), find(i)
            if a != b:
                low, high = (a, b) if hashes[a] <= hashes[b] else (b, a)
                root[high] = low
    return hashes[[find(i) for i in range(len(hashes))]] if len(hashes) else hashes


def training_texts(source: Source | str, val_fraction: float = 0.05, seed: int = 0) -> Iterator[str]:
    """The texts that `Store.split(val_fraction, seed)` will give for training, before there is a store: what a
    tokenizer may be trained on. Walks the source twice. Raises DataError."""
    source = read(source) if isinstance(source, str) else source
    seen = [(content_hash(document.text), document.group) for document in pieces(source.documents())]
    hashes = np.array([text for text, _ in seen], dtype=np.uint64)
    if any(group for _, group in seen):
        hashes = bound(hashes, [group for _, group in seen])
    out = held_out(hashes, val_fraction, seed)
    for document, away in zip(pieces(source.documents()), out, strict=True):
        if not away:
            yield document.text


class View:
    """Some documents of a store, in the store's order. Token ids are without special tokens."""

    def __init__(self, store: Store, indices: npt.NDArray[np.int64]) -> None:
        self._store = store
        self.indices = indices  # int64: positions in the store

    def __len__(self) -> int:
        return len(self.indices)

    def _at(self, i: int) -> int:
        if not -len(self) <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        return int(self.indices[i])

    def __getitem__(self, i: int) -> npt.NDArray[np.int64]:
        """int64[tokens]: the ids of document i."""
        return self._store._tokens(self._at(i))

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        return (self[i] for i in range(len(self)))

    def pick(self, documents: npt.NDArray[np.int64]) -> View:
        """The given documents of this view, in that order."""
        return View(self._store, self.indices[documents])

    def sentences(self, i: int) -> npt.NDArray[np.int64]:
        """int64: token positions within document i where its sentences begin; the first is 0."""
        return self._store._starts(self._at(i))

    def bytes(self, i: int) -> int:
        """UTF-8 bytes of document i's text."""
        return int(self.sizes[i])

    def name(self, i: int) -> str:
        """A name that a person can find document i by."""
        return self._store._part("names", "labels", self._at(i)).decode("utf-8")

    def text(self, i: int) -> str:
        """The text of document i."""
        return self._store._part("text", "bytes", self._at(i)).decode("utf-8")

    def language(self, i: int) -> str:
        """The language of document i; "" where nobody said."""
        return self._store.languages[self.language_ids[i]]

    def translations(self, i: int) -> list[int]:
        """The documents of this view that are in document i's group, without itself, in order."""
        group = int(self.groups[i])
        return [j for j in self._members.get(group, []) if j != i]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the whole store by number, in the order of the text."""
        return self._store.languages

    @cached_property
    def language_ids(self) -> npt.NDArray[np.int64]:
        """int64[documents]: the number of each one's language."""
        return self._labels("languages", 0)

    @cached_property
    def groups(self) -> npt.NDArray[np.int64]:
        """int64[documents]: the number of each one's group, -1 for none."""
        return self._labels("groups", -1)

    @cached_property
    def part_ids(self) -> npt.NDArray[np.int64]:
        """int64[documents]: which source of a mixture each is from."""
        return self._labels("parts", 0)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The sources of a mixture that was declared with weights or limits."""
        return self._store.declared

    def _labels(self, name: str, missing: int) -> npt.NDArray[np.int64]:
        held = self._store._arrays.get(name)
        if held is None:
            return np.full(len(self), missing, dtype=np.int64)
        return np.asarray(held, dtype=np.int64)[self.indices]

    @cached_property
    def _members(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for j, group in enumerate(self.groups.tolist()):
            if group >= 0:
                found.setdefault(group, []).append(j)
        return found

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64[documents]: tokens of each."""
        return np.diff(self._store._arrays["documents"])[self.indices]

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """int64[documents]: UTF-8 bytes of each text."""
        return np.diff(self._store._arrays["bytes"])[self.indices]

    @property
    def tokens_total(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum())

    @property
    def bytes_total(self) -> int:
        """UTF-8 bytes of all texts."""
        return int(self.sizes.sum())

    @property
    def vocab(self) -> int:
        """The size of the tokenizer's vocabulary."""
        return int(self._store.meta["vocab"])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokenizer and of these documents."""
        chosen = hashlib.sha256(self._store.meta["fingerprint"].encode())
        chosen.update(np.ascontiguousarray(self.indices, dtype="<i8").tobytes())
        return chosen.hexdigest()


class Store(View):
    """All documents of a source as token ids in a folder. Make one with `build`, find one with `open`."""

    def __init__(self, directory: Path, meta: dict[str, Any]) -> None:
        self.directory = directory
        self.meta = meta
        folder = directory / meta["version"]
        self._arrays: dict[str, Any] = {}
        for name, entry in meta["files"].items():
            path = folder / f"{name}.bin"
            size = path.stat().st_size if path.exists() else -1
            if size != entry["bytes"]:
                found = "is missing" if size < 0 else f"has {size} bytes where {entry['bytes']} were written"
                raise CheckpointError(f"the token store {directory} is damaged: {path.name} {found}; delete the folder")
            kind = np.dtype(entry["dtype"])
            self._arrays[name] = np.memmap(path, dtype=kind, mode="r") if size else np.empty(0, dtype=kind)
        self._known = tuple(str(name) for name in meta.get("languages", [""]))
        self.declared = tuple(Part(*part) for part in meta.get("parts", []))
        super().__init__(self, np.arange(int(meta["documents"]), dtype=np.int64))

    @property
    def languages(self) -> tuple[str, ...]:
        return self._known

    @classmethod
    def open(cls, directory: str | Path) -> Store:
        """The store in `directory`. Raises CheckpointError if there is none, or a file is missing or cut short."""
        directory = Path(directory)
        path = directory / "meta.json"
        if not path.is_file():
            raise CheckpointError(f"{directory} holds no token store (there is no meta.json)")
        meta = disk.read_object(path)
        if meta.get("format") != VERSION:
            raise CheckpointError(f"{path} is of store format {meta.get('format')}; this version reads {VERSION}")
        try:
            return cls(directory, meta)
        except OSError as error:
            raise CheckpointError(
                f"the token store {directory} cannot be read: {error.strerror or error}; make it readable"
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the token store {directory} is damaged: {error}; delete the folder") from error

    @classmethod
    def build(
        cls,
        source: Source | str,
        tokenizer: Encoder,
        directory: str | Path,
        *,
        progress: Progress | None = None,
        workers: int | None = None,
    ) -> Store:
        """Tokenise every document of `source` into `directory`, or open what is there if it was made by the same
        tokenizer from the same text. Documents without a single token are left out. `progress(done, total)` counts
        bytes; `workers` processes tokenise (left out, as many as there are cores, for a long text). A build that was
        stopped goes on from what it had tokenised. Raises DataError (no text), ResourceError (the disk),
        CheckpointError (a tokenizer that is not whole)."""
        source = read(source) if isinstance(source, str) else source
        directory = Path(directory)
        with disk.writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
        with disk.lock(directory) as alone:
            return cls._build(source, tokenizer, directory, progress, workers, alone)

    @classmethod
    def _build(
        cls,
        source: Source,
        tokenizer: Encoder,
        directory: Path,
        progress: Progress | None,
        workers: int | None,
        alone: bool,
    ) -> Store:
        """`build` in a directory that this process holds `alone`, if the system can lock."""
        stamp = stamps.of(source, tokenizer)
        parts = directory / ".shards"
        if (held := stamps.unchanged(directory, stamp)) is not None and (store := cls._same(directory, held)):
            if alone:  # what a build that was killed in its last moment left
                shutil.rmtree(parts, ignore_errors=True)
                _tidy(directory, alone, str(store.meta["version"]))
            return store
        _tidy(directory, alone)
        scratch = directory / f".{secrets.token_hex(6)}.tmp"
        try:
            with disk.writing(directory):
                scratch.mkdir()
                parts.mkdir(exist_ok=True)
            writer = _Writer(scratch, tokenizer, source.parts)
            digest = writer.spool(source)
            stamps.keep(directory, stamp, source, tokenizer, digest)
            if (store := cls._same(directory, digest)) is not None:
                shutil.rmtree(parts, ignore_errors=True)
                return store
            told = {"fingerprint": digest, "source": source.name, "licence": source.licence}
            meta = writer.encode(parts, progress, workers) | told
            version = digest[:16]
            with disk.writing(directory):
                if (directory / version).exists():  # damaged, or left by a build that was killed before its meta.json
                    version = f"{version}-{secrets.token_hex(2)}"
                scratch.rename(directory / version)
            disk.write_json(directory / "meta.json", {"version": version, **meta}, indent=1, ascii=True)
            shutil.rmtree(parts, ignore_errors=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            with contextlib.suppress(OSError):
                parts.rmdir()  # unless it holds shards, which the next build will want
        _tidy(directory, alone, version)
        return cls.open(directory)

    @classmethod
    def _same(cls, directory: Path, digest: str) -> Store | None:
        """The whole store with this fingerprint, if it is the one in `directory`."""
        try:
            store = cls.open(directory)
        except CheckpointError:
            return None
        return store if store.fingerprint == digest else None

    @property
    def fingerprint(self) -> str:
        """A hash of the tokenizer and of the source's content."""
        return str(self.meta["fingerprint"])

    def verify(self) -> None:
        """Compare every file with its checksum. Raises CheckpointError naming the file that differs."""
        for name, entry in self.meta["files"].items():
            raw: Any = np.ascontiguousarray(self._arrays[name]).view(np.uint8)
            if hashlib.sha256(raw).hexdigest() != entry["sha256"]:
                raise CheckpointError(
                    f"the token store {self.directory} is damaged: {name}.bin is not what was written"
                )

    def split(self, val_fraction: float = 0.05, seed: int = 0) -> tuple[View, View]:
        """(training, held-out) documents; see `held_out` for how it is decided. Translations of each other stay on one
        side. Raises DataError."""
        hashes = np.asarray(self._arrays["hashes"], dtype=np.uint64)
        if "groups" in self._arrays:
            hashes = bound(hashes, np.asarray(self._arrays["groups"]).tolist())
        out = held_out(hashes, val_fraction, seed)
        return View(self, np.flatnonzero(~out)), View(self, np.flatnonzero(out))

    def _tokens(self, i: int) -> npt.NDArray[np.int64]:
        a, b = self._arrays["documents"][i : i + 2]
        return np.asarray(self._arrays["tokens"][a:b], dtype=np.int64)

    def _starts(self, i: int) -> npt.NDArray[np.int64]:
        a, b = self._arrays["sentences"][i : i + 2]
        return np.asarray(self._arrays["starts"][a:b], dtype=np.int64)

    def _part(self, content: str, offsets: str, i: int) -> bytes:
        a, b = self._arrays[offsets][i : i + 2]
        return bytes(self._arrays[content][a:b])


def _tidy(directory: Path, alone: bool, version: str | None = None) -> None:
    """Remove what builds that were killed left behind, and all versions but `version`."""
    for other in directory.iterdir():
        old = version and re.fullmatch(r"[0-9a-f]{16}(-[0-9a-f]{4})?", other.name) and other.name != version
        left = re.fullmatch(r"\.[0-9a-f]{12}\.tmp", other.name)
        if other.is_dir() and (old or (left and (alone or time.time() - other.stat().st_mtime > 3600))):
            shutil.rmtree(other, ignore_errors=True)
    for pattern in (".shards/.*.tmp", ".*.json.*.tmp") if alone else ():
        for piece in directory.glob(pattern):
            piece.unlink(missing_ok=True)


class _Writer:
    """Writes the files of a version into `folder`: first the text, hashing it, then the tokens."""

    def __init__(self, folder: Path, tokenizer: Encoder, parts: Sequence[Part]) -> None:
        self.folder, self.tokenizer, self.parts = folder, tokenizer, parts
        self.sizes: list[int] = []
        self.names: list[str] = []
        self.hashes: list[int] = []
        self.labels: list[tuple[str, str, int]] = []  # language, group, part

    def spool(self, source: Source) -> str:
        """Write all text to a file; the fingerprint of tokenizer and text."""
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
                said = [repr(label).encode("utf-8", "replace")] if any(label) else []
                for part in (raw, name.encode("utf-8", "replace"), *said):
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
            with contextlib.suppress(OSError):  # if it is worth knowing, it has been said
                out.close()
        return digest.hexdigest()

    def encode(self, parts: Path, progress: Progress | None, workers: int | None) -> dict[str, Any]:
        """Tokenise the spooled text, with what is finished in `parts`, and write all files; the meta data."""
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
                said = self._label(kept, outs)
            except BaseException:
                for out in outs.values():
                    out.drop()
                raise
            for name, out in outs.items():
                entries[name] = out.close()
            (self.folder / "spool").unlink()
        counts = {"documents": len(hashes), "tokens": ends["tokens"][-1], "bytes": ends["text"][-1]}
        vocab = {"vocab": self.tokenizer.vocab_size, "tokenizer": self.tokenizer.fingerprint}
        return {"format": VERSION, **counts, **vocab, **said, "files": entries}

    def _label(self, kept: list[tuple[str, str, int]], outs: dict[str, _Out]) -> dict[str, Any]:
        """Write languages, groups and parts, where there are any; what the meta data says of them."""
        said: dict[str, Any] = {}
        columns = [list(column) for column in zip(*kept, strict=True)]
        numbers = {name: i for i, name in enumerate(dict.fromkeys(columns[0]))}
        groups: dict[str, int] = {}
        for group in columns[1]:
            if group:
                groups.setdefault(group, len(groups))
        if set(numbers) != {""}:
            said["languages"] = list(numbers)
            outs["languages"] = _Out(self.folder / "languages.bin", "<u2")
            outs["languages"].add([numbers[name] for name in columns[0]])
        if groups:
            outs["groups"] = _Out(self.folder / "groups.bin", "<i8")
            outs["groups"].add([groups.get(name, -1) for name in columns[1]])
        if self.parts:
            said["parts"] = [list(part) for part in self.parts]
            outs["parts"] = _Out(self.folder / "parts.bin", "<u2")
            outs["parts"].add(columns[2])
        return said


class _Out:
    """An array on its way to disk."""

    def __init__(self, path: Path, kind: str) -> None:
        self.kind, self.count, self.digest = np.dtype(kind), 0, hashlib.sha256()
        self.file = open(path, "wb")  # noqa: SIM115

    def add(self, payload: Any) -> int:
        """Append numbers or bytes; how many elements they are."""
        raw = payload if isinstance(payload, bytes) else np.asarray(payload, dtype=self.kind).tobytes()
        self.file.write(raw)
        self.digest.update(raw)
        self.count += len(raw)
        return len(raw) // self.kind.itemsize

    def drop(self) -> None:
        """Let go of the file, whatever becomes of it."""
        with contextlib.suppress(OSError):
            self.file.close()

    def close(self) -> dict[str, Any]:
        """Flush to disk; what the meta data says of the file."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return {"dtype": self.kind.str, "bytes": self.count, "sha256": self.digest.hexdigest()}
