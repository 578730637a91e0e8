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
from stemma.data.view import View
from stemma.data.writer import VERSION, Progress, Writer
from stemma.errors import CheckpointError, DataError, brief

NAME = re.compile(r"[0-9a-f]{16}(-[0-9a-f]{4})?")  # of a version's folder
META = {
    "version": str, "documents": int, "fingerprint": str, "tokenizer?": str, "vocab": int, "languages?": [str],
    "parts?": [[Any]], "blocks?": int, "notes?": [str], "files": {str: {"dtype": str, "bytes": int, "sha256": str}},
}  # fmt: skip
# array -> (its types, entries: so many more than documents; None: counted by the array of the same row of ENDS)
ARRAYS: dict[str, tuple[tuple[str, ...], int | None]] = {
    "tokens": (("<u2", "<u4"), None), "starts": (("<i4",), None), "text": (("|u1",), None), "names": (("|u1",), None),
    "documents": (("<i8",), 1), "sentences": (("<i8",), 1), "bytes": (("<i8",), 1), "labels": (("<i8",), 1),
    "hashes": (("<u8",), 0), "languages": (("<u2",), 0), "groups": (("<i8",), 0), "parts": (("<u2",), 0),
    "divided": (("<i8",), 1), "block_hashes": (("<u8",), None), "blocks": (("<i8",), None),
    "block_bytes": (("<i8",), None),
}  # fmt: skip
ENDS = {"documents": "tokens", "sentences": "starts", "bytes": "text", "labels": "names"}
NEEDED = {*ENDS, *ENDS.values(), "hashes"}
BLOCKS = {"divided": "block_hashes", "blocks": "tokens", "block_bytes": "text"}  # all of them or none


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
        if 0 < sum(name in self._arrays for name in (*BLOCKS, "block_hashes")) < 4:
            raise ValueError("its meta.json names some arrays of blocks and not all")
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
            about = {"fingerprint": digest, "source": source.name, "licence": source.licence, "notes": source.notes}
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
        divided = BLOCKS if "divided" in held else {}
        for ends, content in {**ENDS, **divided}.items():
            offsets = held[ends]
            if offsets[0] != 0 or offsets[-1] != len(held[content]) or (len(self) and np.diff(offsets).min() < 0):
                return f"{ends}.bin has places outside of {content}.bin"
        for name, most in (("tokens", self.vocab), ("languages", len(self._known)), ("parts", len(self.declared) or 1)):
            if len(held.get(name, ())) and int(held[name].max()) >= most:
                return f"{name}.bin has {int(held[name].max()):,} of {most:,}"
        for ends, inner in (("documents", "blocks"), ("bytes", "block_bytes")) if divided else ():
            if len(held[inner]) != len(held["block_hashes"]) + 1 or (held[inner][held["divided"]] != held[ends]).any():
                return f"{inner}.bin has other places than {ends}.bin"
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
        views = self._pieces(owner[train], train, None), self._pieces(owner[held], held, None)
        if not all(len(view) for view in views):
            raise DataError(
                "the text cannot be divided into training and held-out parts: one of them would have no tokens; give "
                "more text"
            )
        return views

    def _whole(self, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """int64[2, documents]: first block of each document, and one past the last."""
        divided = np.asarray(self._arrays["divided"])
        return np.stack([divided[documents], divided[documents + 1]])

    def _pieces(
        self, owner: npt.NDArray[np.int64], block: npt.NDArray[np.int64], part: npt.NDArray[np.int64] | None
    ) -> View:
        """A view of pieces: consecutive blocks of one document (`owner`) and, where it is given, of one `part` of it.
        Pieces without tokens are left out, and documents with a group are whole."""
        if not len(block):
            return View(self, owner, np.stack([block, block]))
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
