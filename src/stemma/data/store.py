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

and, if it has long documents, which may be divided into blocks, b in all (`blocks`)

    divided.bin    int64[n+1]: offsets of documents in the blocks
    blocks.bin     int64[b+1]: offsets of blocks in tokens.bin; block_bytes.bin int64[b+1]: in text.bin
    block_hashes.bin  uint64[b]: a hash of each block's text

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
from stemma.data.heldout import Blocks, Unit, divided, held_out, held_out_blocks
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
    """Some documents of a store, or pieces of documents. Token ids are without special tokens."""

    def __init__(
        self, store: Store, indices: npt.NDArray[np.int64], blocks: npt.NDArray[np.int64] | None = None
    ) -> None:
        self._store = store
        self.indices = indices  # int64[documents]: indices in the store
        self._blocks = blocks  # int64[2, documents]: first block of each piece and one past the last; None: whole

    def __len__(self) -> int:
        return len(self.indices)

    def _at(self, i: int) -> int:
        if not -len(self) <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        return int(self.indices[i])

    def _span(self, i: int, offsets: str = "documents", inner: str = "blocks") -> tuple[int, int]:
        """Where document i begins and ends, in tokens.bin or by other offsets."""
        at = self._at(i)
        if self._blocks is None:
            a, b = self._store._arrays[offsets][at : at + 2]
        else:
            a, b = self._store._arrays[inner][self._blocks[:, i]]
        return int(a), int(b)

    def __getitem__(self, i: int) -> npt.NDArray[np.int64]:
        """int64[tokens]: the ids of document i."""
        a, b = self._span(i)
        return np.asarray(self._store._arrays["tokens"][a:b], dtype=np.int64)

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        return (self[i] for i in range(len(self)))

    def pick(self, documents: npt.NDArray[np.int64]) -> View:
        """The given documents of this view, in that order."""
        return View(self._store, self.indices[documents], None if self._blocks is None else self._blocks[:, documents])

    def sentences(self, i: int) -> npt.NDArray[np.int64]:
        """int64: the positions of tokens of document i that begin a sentence; the first is 0."""
        starts = self._store._starts(self._at(i))
        if self._blocks is None:
            return starts
        a, b = (x - int(self._store._arrays["documents"][self._at(i)]) for x in self._span(i))
        return np.concatenate([[0], starts[(starts > a) & (starts < b)] - a])

    def closed(self, i: int) -> bool:
        """Whether document i ends where the text does that it is a piece of."""
        return bool(self._closed[i])

    @cached_property
    def _closed(self) -> npt.NDArray[np.bool_]:
        if self._blocks is None:
            return np.ones(len(self), dtype=bool)
        return np.asarray(self._store._arrays["divided"])[self.indices + 1] == self._blocks[1]

    @property
    def ends(self) -> int:
        """How many documents end in this view; a piece in the middle of one does not."""
        return int(self._closed.sum())

    @property
    def texts(self) -> int:
        """How many documents of the store this view has anything of."""
        return len(self) if self._blocks is None else len(np.unique(self.indices))

    def cut(self, tokens: int) -> View:
        """This view with long documents in pieces of about `tokens` tokens at most: as many blocks as come nearest to
        equal parts of it."""
        if self._blocks is None and "divided" not in self._store._arrays:
            return self
        first, last = self._blocks if self._blocks is not None else self._store._whole(self.indices)
        edges = self._store._arrays["blocks"]
        begins = np.asarray(edges[first])
        sizes = np.asarray(edges[last]) - begins
        parts = np.minimum(last - first, np.maximum(1, -(-sizes // tokens)))
        owner = np.repeat(np.arange(len(self)), last - first)
        inner = np.arange(len(owner)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
        block = first[owner] + inner
        middle = (np.asarray(edges[block]) + np.asarray(edges[block + 1])) / 2 - begins[owner]
        part = (middle * parts[owner] / np.maximum(sizes[owner], 1)).astype(np.int64)
        part = np.where(parts[owner] == (last - first)[owner], inner, part)
        return self._store._pieces(self.indices[owner], block, part)

    def bytes(self, i: int) -> int:
        """UTF-8 bytes of document i's text."""
        return int(self.sizes[i])

    def name(self, i: int) -> str:
        """The name of document i, such as `file:line`."""
        return self._store._name(self._at(i))

    def text(self, i: int) -> str:
        """The text of document i."""
        a, b = self._span(i, "bytes", "block_bytes")
        return bytes(self._store._arrays["text"][a:b]).decode("utf-8", "replace")

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
        return self._lengths("documents", "blocks")

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """int64[documents]: the number of UTF-8 bytes of each text."""
        return self._lengths("bytes", "block_bytes")

    def _lengths(self, offsets: str, inner: str) -> npt.NDArray[np.int64]:
        if self._blocks is None:
            return np.diff(self._store._arrays[offsets])[self.indices]
        first, last = self._blocks
        return np.asarray(self._store._arrays[inner][last] - self._store._arrays[inner][first])

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
        if self._blocks is not None:
            chosen.update(np.ascontiguousarray(self._blocks, dtype="<i8").tobytes())
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
            digest = writer.spool(source)
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
        """The store in `directory` if it is whole, of this version and has this fingerprint."""
        try:
            store = cls.open(directory)
        except CheckpointError:
            return None
        return store if store.fingerprint == digest and "blocks" in store.meta else None

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

    def split(self, val_fraction: float = 0.05, seed: int = 0, unit: Unit = "document") -> tuple[View, View]:
        """(training, held-out) documents, decided by `held_out`, or, with the unit `block`, by `held_out_blocks`, which
        divides long documents and goes by bytes. A group stays on one side. Raises DataError."""
        hashes = np.asarray(self._arrays["hashes"], dtype=np.uint64)
        groups = np.asarray(self._arrays["groups"]).tolist() if "groups" in self._arrays else None
        if unit == "document":
            out = (
                held_out(hashes, val_fraction, seed) if groups is None else divided(hashes, groups, val_fraction, seed)
            )
            return View(self, np.flatnonzero(~out)), View(self, np.flatnonzero(out))
        if "divided" not in self._arrays:
            edges = np.arange(len(self) + 1)
            out = held_out_blocks(Blocks(edges, hashes, self.sizes, groups), val_fraction, seed)
            return View(self, np.flatnonzero(~out)), View(self, np.flatnonzero(out))
        edges, hashes = np.asarray(self._arrays["divided"]), np.asarray(self._arrays["block_hashes"])
        sizes = np.diff(self._arrays["block_bytes"])
        out = held_out_blocks(Blocks(edges, hashes, sizes, groups), val_fraction, seed)
        owner = np.repeat(self.indices, np.diff(edges))
        train, held = (np.flatnonzero(out == side) for side in (False, True))
        return self._pieces(owner[train], train, None), self._pieces(owner[held], held, None)

    def _whole(self, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """int64[2, documents]: first block of each document, and one past the last."""
        divided = np.asarray(self._arrays["divided"])
        return np.stack([divided[documents], divided[documents + 1]])

    def _pieces(
        self, owner: npt.NDArray[np.int64], block: npt.NDArray[np.int64], part: npt.NDArray[np.int64] | None
    ) -> View:
        """A view of pieces: consecutive blocks of one document (`owner`) and, where it is given, of one `part` of it.
        Pieces without tokens are left out, and documents with a group are whole."""
        new = (np.diff(owner) != 0) | (np.diff(block) != 1)
        if part is not None:
            grouped = np.asarray(self._arrays["groups"])[owner[1:]] >= 0 if "groups" in self._arrays else False
            new |= (np.diff(part) != 0) & ~np.asarray(grouped)
        starts = np.flatnonzero(np.concatenate([[True], new]))
        first, last = block[starts], block[np.append(starts[1:], len(block)) - 1] + 1
        some = np.asarray(self._arrays["blocks"][last] > self._arrays["blocks"][first])
        return View(self, owner[starts][some], np.stack([first, last])[:, some])

    def _starts(self, i: int) -> npt.NDArray[np.int64]:
        a, b = self._arrays["sentences"][i : i + 2]
        return np.asarray(self._arrays["starts"][a:b], dtype=np.int64)

    def _name(self, i: int) -> str:
        a, b = self._arrays["labels"][i : i + 2]
        return bytes(self._arrays["names"][a:b]).decode("utf-8", "replace")


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
