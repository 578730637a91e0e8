"""Text as token ids on disk: tokenised once, memory-mapped, split into training and held-out documents.

A store is a folder with `meta.json`, which names the current version, and a folder for that version with little-endian
arrays of n documents:

    tokens.bin     uint16 or uint32: the concatenated ids, without special tokens
    documents.bin  int64[n+1]: offsets of documents in tokens.bin
    starts.bin     int32: positions of tokens that begin a sentence, relative to the document; its first is 0
    sentences.bin  int64[n+1]: offsets of documents in starts.bin
    text.bin       the concatenated UTF-8 text; bytes.bin int64[n+1]: offsets of documents in it
    hashes.bin     uint64[n]: a hash of each text
    names.bin      the concatenated UTF-8 names; labels.bin int64[n+1]: offsets of documents in it

and, if the source has them (`meta.json` lists the languages and the components by number),

    languages.bin  uint16[n]: language
    groups.bin     int64[n]: group, -1 for none
    parts.bin      uint16[n]: component of a mixture

A new version is written beside the old one; replacing `meta.json` makes it the current one. So a build that is killed
leaves the old version. Its finished shards stay in `.shards` for the next build (`shards.py`). `source.json` has the
stamp of the source (`stamps.py`). A source with a single document is first divided at blank lines, else at line ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stemma import disk
from stemma.data import stamps
from stemma.data.documents import MixtureSource, Source
from stemma.data.encoding import Encoder
from stemma.data.heldout import divided, held_out
from stemma.data.sources import read
from stemma.data.writer import VERSION, Progress, Writer
from stemma.errors import CheckpointError, brief

NAME = re.compile(r"[0-9a-f]{16}(-[0-9a-f]{4})?")  # of a version's folder
META = {
    "version": str, "documents": int, "fingerprint": str, "tokenizer?": str, "vocab": int, "languages?": [str],
    "parts?": [[Any]], "files": {str: {"dtype": str, "bytes": int, "sha256": str}},
}  # fmt: skip
# array -> (its types, entries: so many more than documents; None: counted by the array of the same row of ENDS)
ARRAYS: dict[str, tuple[tuple[str, ...], int | None]] = {
    "tokens": (("<u2", "<u4"), None), "starts": (("<i4",), None), "text": (("|u1",), None), "names": (("|u1",), None),
    "documents": (("<i8",), 1), "sentences": (("<i8",), 1), "bytes": (("<i8",), 1), "labels": (("<i8",), 1),
    "hashes": (("<u8",), 0), "languages": (("<u2",), 0), "groups": (("<i8",), 0), "parts": (("<u2",), 0),
}  # fmt: skip
ENDS = {"documents": "tokens", "sentences": "starts", "bytes": "text", "labels": "names"}
NEEDED = {*ENDS, *ENDS.values(), "hashes"}


class View:
    """Some documents of a store. Token ids are without special tokens."""

    def __init__(self, store: Store, indices: npt.NDArray[np.int64]) -> None:
        self._store = store
        self.indices = indices  # int64[documents]: indices in the store

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
        """int64: the positions of tokens of document i that begin a sentence; the first is 0."""
        return self._store._starts(self._at(i))

    def bytes(self, i: int) -> int:
        """UTF-8 bytes of document i's text."""
        return int(self.sizes[i])

    def name(self, i: int) -> str:
        """The name of document i, such as `file:line`."""
        return self._store._part("names", "labels", self._at(i)).decode("utf-8", "replace")

    def text(self, i: int) -> str:
        """The text of document i."""
        return self._store._part("text", "bytes", self._at(i)).decode("utf-8", "replace")

    def language(self, i: int) -> str:
        """The language of document i; "" if unknown."""
        return self._store.languages[self.language_ids[i]]

    def translations(self, i: int) -> list[int]:
        """The other documents of this view in the group of document i, in order."""
        group = int(self.groups[i])
        return [j for j in self._members.get(group, []) if j != i]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the whole store, by number."""
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
        """int64[documents]: the component of the mixture that each is from."""
        return self._labels("parts", 0)

    @property
    def parts(self) -> tuple[MixtureSource, ...]:
        """The components of a mixture with weights or limits."""
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
        """int64[documents]: the number of tokens of each."""
        return np.diff(self._store._arrays["documents"])[self.indices]

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """int64[documents]: the number of UTF-8 bytes of each text."""
        return np.diff(self._store._arrays["bytes"])[self.indices]

    @property
    def tokens_total(self) -> int:
        """The number of tokens of all documents."""
        return int(self.lengths.sum())

    @property
    def bytes_total(self) -> int:
        """The number of UTF-8 bytes of all texts."""
        return int(self.sizes.sum())

    @property
    def vocab(self) -> int:
        """The size of the tokenizer's vocabulary."""
        return int(self._store.meta["vocab"])

    @property
    def has_groups(self) -> bool:
        """Whether documents of the store are bound into groups, as translations of each other."""
        return "groups" in self._store._arrays

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokenizer and of these documents."""
        chosen = hashlib.sha256(self._store.meta["fingerprint"].encode())
        chosen.update(np.ascontiguousarray(self.indices, dtype="<i8").tobytes())
        return chosen.hexdigest()


class Store(View):
    """All documents of a source as token ids in a folder. `build` makes one, `open` opens one."""

    def __init__(self, directory: Path, meta: dict[str, Any]) -> None:
        self.directory = directory
        self.meta = meta
        folder = directory / meta["version"]
        if not NAME.fullmatch(meta["version"]) or not NEEDED <= meta["files"].keys() <= ARRAYS.keys():
            raise ValueError("its meta.json names other files than a store has")
        self._arrays: dict[str, Any] = {}
        for name, entry in meta["files"].items():
            path = folder / f"{name}.bin"
            size = path.stat().st_size if path.exists() else -1
            if size != entry["bytes"]:
                found = "is missing" if size < 0 else f"has {size} bytes where {entry['bytes']} were written"
                raise CheckpointError(f"the token store {directory} is damaged: {path.name} {found}; delete the folder")
            kinds, more = ARRAYS[name]
            if entry["dtype"] not in kinds:
                raise ValueError(f"{path.name} is of type {entry['dtype']!r}")
            kind = np.dtype(entry["dtype"])
            if size % kind.itemsize or (more is not None and size // kind.itemsize != meta["documents"] + more):
                raise ValueError(f"{path.name} has another length than {meta['documents']:,} documents need")
            self._arrays[name] = np.memmap(path, dtype=kind, mode="r") if size else np.empty(0, dtype=kind)
        self._known = tuple(meta.get("languages") or [""])
        self.declared = tuple(_part(part) for part in meta.get("parts") or [])
        super().__init__(self, np.arange(meta["documents"], dtype=np.int64))

    @property
    def languages(self) -> tuple[str, ...]:
        return self._known

    @classmethod
    def open(cls, directory: str | Path) -> Store:
        """The store in `directory`. Raises CheckpointError if there is none, or a file is missing or truncated."""
        directory = Path(directory)
        path = directory / "meta.json"
        if not path.is_file():
            raise CheckpointError(f"{directory} holds no token store (there is no meta.json)")
        meta = disk.read_object(path)
        if meta.get("format") != VERSION:
            raise CheckpointError(f"{path} is of store format {meta.get('format')}; this version reads {VERSION}")
        disk.typed(path, meta, META)
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
        """Tokenise every document of `source` into `directory`, or open the store there if it has the same text and
        tokenizer. Documents without tokens are left out. `progress(done, total)` counts bytes. `workers`: processes
        that tokenise, by default one for each core if the text is long. After an interruption the next build uses the
        finished shards. Raises DataError (no text), ResourceError (the disk), CheckpointError (a broken tokenizer)."""
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
        """`build` in an existing directory. `alone`: this process holds its lock."""
        stamp = stamps.of(source, tokenizer)
        parts = directory / ".shards"
        if (held := stamps.unchanged(directory, stamp)) is not None and (store := cls._same(directory, held)):
            if alone:  # remove what a killed build left
                shutil.rmtree(parts, ignore_errors=True)
                _tidy(directory, alone, str(store.meta["version"]))
            return store
        _tidy(directory, alone)
        scratch = directory / f".{secrets.token_hex(6)}.tmp"
        try:
            with disk.writing(directory):
                scratch.mkdir()
                parts.mkdir(exist_ok=True)
            writer = Writer(scratch, tokenizer, source.parts)
            before = stamps.state(source)
            digest = writer.spool(source)
            stamps.check_state(source, before)
            stamps.keep(directory, stamp, source, tokenizer, digest)
            if (store := cls._same(directory, digest)) is not None:
                shutil.rmtree(parts, ignore_errors=True)
                return store
            about = {"fingerprint": digest, "source": source.name, "licence": source.licence}
            meta = writer.encode(parts, progress, workers) | about
            version = digest[:16]
            with disk.writing(directory):
                if (directory / version).exists():  # damaged, or left by a killed build
                    version = f"{version}-{secrets.token_hex(2)}"
                scratch.rename(directory / version)
            disk.write_json(directory / "meta.json", {"version": version, **meta}, indent=1, ascii=True)
            shutil.rmtree(parts, ignore_errors=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            with contextlib.suppress(OSError):
                parts.rmdir()  # unless it holds shards for the next build
        _tidy(directory, alone, version)
        return cls.open(directory)

    @classmethod
    def _same(cls, directory: Path, digest: str) -> Store | None:
        """The store in `directory` if it is whole and has this fingerprint."""
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
        """Compare every file with its checksum, and the arrays with each other. Raises CheckpointError naming the file
        that differs."""
        for name, entry in self.meta["files"].items():
            raw: Any = np.ascontiguousarray(self._arrays[name]).view(np.uint8)
            if hashlib.sha256(raw).hexdigest() != entry["sha256"]:
                raise CheckpointError(
                    f"the token store {self.directory} is damaged: {name}.bin is not what was written"
                )
        if (odd := self._odd()) is not None:
            raise CheckpointError(f"the token store {self.directory} is damaged: {odd}; delete the folder")

    def _odd(self) -> str | None:
        """What of the arrays does not fit the others, whoever wrote them; None in a store that was built here."""
        held = self._arrays
        for ends, content in ENDS.items():
            offsets = held[ends]
            if offsets[0] != 0 or offsets[-1] != len(held[content]) or (len(self) and np.diff(offsets).min() < 0):
                return f"{ends}.bin has places outside of {content}.bin"
        for name, most in (("tokens", self.vocab), ("languages", len(self._known)), ("parts", len(self.declared) or 1)):
            if len(held.get(name, ())) and int(held[name].max()) >= most:
                return f"{name}.bin has {int(held[name].max()):,} of {most:,}"
        if len(held["starts"]) and (held["starts"].min() < 0 or held["starts"].max() >= self.lengths.max()):
            return "starts.bin has places outside of every document"
        return None

    def split(self, val_fraction: float = 0.05, seed: int = 0) -> tuple[View, View]:
        """(training, held-out) documents, decided by `held_out`. A group stays on one side. Raises DataError."""
        hashes = np.asarray(self._arrays["hashes"], dtype=np.uint64)
        if "groups" in self._arrays:
            out = divided(hashes, np.asarray(self._arrays["groups"]).tolist(), val_fraction, seed)
        else:
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


def _part(held: list[Any]) -> MixtureSource:
    """A component as `meta.json` has it. Raises ValueError for one of another shape."""
    name, *numbers = held
    amounts = [n for n in numbers if n is not None]
    if not isinstance(name, str) or len(numbers) != 2 or not all(type(n) in (int, float) and n > 0 for n in amounts):
        raise ValueError(f"a component of the mixture is {brief(held, 60)}")
    return MixtureSource(name, *numbers)


def _tidy(directory: Path, alone: bool, version: str | None = None) -> None:
    """Remove what killed builds left, and all versions but `version`."""
    for other in directory.iterdir():
        old = version and NAME.fullmatch(other.name) and other.name != version
        left = re.fullmatch(r"\.[0-9a-f]{12}\.tmp", other.name)
        if other.is_dir() and (old or (left and (alone or time.time() - other.stat().st_mtime > 3600))):
            shutil.rmtree(other, ignore_errors=True)
    for pattern in (".shards/.*.tmp", ".*.json.*.tmp") if alone else ():
        for piece in directory.glob(pattern):
            piece.unlink(missing_ok=True)
