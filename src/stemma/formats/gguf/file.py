"""Reading GGUF files: metadata and named tensors, nothing of a tensor before it is asked for.

The format, as the `ggml` project's docs/gguf.md specifies it (versions 2 and 3, little endian):

    "GGUF"  u32 version  u64 tensors  u64 keys
    keys:    string name, u32 type, value
    tensors: string name, u32 n, n * u64 sizes (fastest first), u32 type, u64 place in the data
    padding to `general.alignment` (default 32), then the data

A string is a u64 length and UTF-8 bytes; an array is a u32 type, a u64 length and the values.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma import disk
from stemma.errors import CheckpointError
from stemma.formats.gguf import quants
from stemma.rewrites.modules import Blocks, aligned

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
DEEPEST = 4  # arrays in arrays
DAMAGED = "it is damaged or cut short; copy or download it again"


@dataclass(frozen=True)
class Entry:
    """One tensor: its shape (slowest axis first), the number of its type, and where its bytes begin in the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        """The type's name."""
        return quants.NAMES.get(self.type, f"number {self.type}")


class File:
    """An open GGUF file. `metadata`: every key; `entries`: every tensor by name. The bytes are mapped, not read.

    Raises CheckpointError, naming what was expected, for anything but a whole file of version 2 or 3.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        disk.regular(self.path)
        try:
            with open(self.path, "rb") as handle:
                self.size = self.path.stat().st_size
                head = handle.read(4)
                if head != b"GGUF":
                    raise CheckpointError(f"{self.path} is not a GGUF file: it should begin with b'GGUF', not {head!r}")
                self._raw = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)  # changes never reach the file
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from None
        self._at = 4
        self.version = self._version()
        tensors, keys = self._take("<QQ", "the numbers of tensors and keys")
        self.metadata = self._metadata(keys)
        self.alignment = self._alignment()
        self.entries = self._entries(tensors)

    # ------------------------------------------------------------ what it holds

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def value(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """The value of a key, or `default`. Raises CheckpointError if it is not of the kind."""
        value = self.metadata.get(key, default)
        if value is None or isinstance(value, kind):
            return value
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join({"str": "text"}.get(k.__name__, k.__name__) for k in kinds)
        raise CheckpointError(f"{self.path}: {key} should be {names}, not {str(value)[:40]!r}")

    def raw(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of a tensor as they are in the file: a read-only view. Raises CheckpointError for a type that
        cannot be read here."""
        entry = self.entries[name]
        return np.frombuffer(memoryview(self._raw).toreadonly(), np.uint8, self._bytes(entry), entry.start)

    def get(self, name: str) -> Tensor:
        """One tensor on the CPU, in its own type if that is a plain one, else dequantised to float32."""
        entry = self.entries[name]
        raw = self.raw(name)
        if entry.type in quants.PLAIN:
            made = torch.from_numpy(raw.copy()).view(quants.PLAIN[entry.type])
        else:
            made = torch.from_numpy(quants.dequantise(raw, entry.type))
        self._drop(entry)
        return made.reshape(entry.shape)

    def mapped(self, name: str) -> Tensor | None:
        """One tensor that the caller may keep and change: a plain one as its pages in the file, read when they are
        touched and copied when they are changed; another one dequantised. None for a plain one that memory of its own
        would align otherwise, and on Windows, where a file that is mapped cannot be replaced."""
        entry = self.entries[name]
        if entry.type not in quants.PLAIN:
            return self.get(name)
        if os.name == "nt" or not entry.elements:
            return None
        kind = quants.PLAIN[entry.type]
        found = torch.frombuffer(self._raw, dtype=kind, count=entry.elements, offset=entry.start).reshape(entry.shape)
        return found if aligned(found) else None

    def _drop(self, entry: Entry) -> None:
        """Give back the pages that reading a tensor brought in, but for those at its ends, which others share."""
        start = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (entry.start + self._bytes(entry)) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start and hasattr(mmap, "MADV_DONTNEED"):
            self._raw.madvise(mmap.MADV_DONTNEED, start, end - start)

    def blocks(self, name: str) -> Blocks | None:
        """A quantised matrix as it is in the file, a row of bytes each row; None for other tensors."""
        entry = self.entries[name]
        if entry.type in quants.PLAIN or len(entry.shape) != 2:
            return None
        kind = entry.type

        def unpack(data: Tensor) -> Tensor:
            flat = data.cpu().contiguous().numpy().reshape(-1)
            return torch.from_numpy(quants.dequantise(flat, kind)).reshape(len(data), -1).to(data.device)

        held = torch.from_numpy(self.raw(name).copy()).reshape(entry.shape[0], -1)
        self._drop(entry)
        return Blocks(held, unpack, entry.kind)

    def meta_tensor(self, name: str) -> Tensor:
        """A tensor's shape without its data, on the meta device. Raises as `raw` does."""
        self._bytes(self.entries[name])
        entry = self.entries[name]
        return torch.empty(entry.shape, dtype=quants.PLAIN.get(entry.type, torch.float32), device="meta")

    def _bytes(self, entry: Entry) -> int:
        if entry.type not in quants.SIZES:
            raise CheckpointError(
                f"{self.path}: tensor {entry.name!r} has type {entry.kind}, which cannot be read here; "
                f"known: {', '.join(quants.NAMES[t] for t in quants.SIZES)}"
            )
        block, size = quants.SIZES[entry.type]
        return entry.elements // block * size

    # ------------------------------------------------------------ reading in order

    def _take(self, form: str, what: str) -> tuple[Any, ...]:
        size = struct.calcsize(form)
        self._need(size, what)
        values = struct.unpack_from(form, self._raw, self._at)
        self._at += size
        return values

    def _need(self, size: int, what: str) -> None:
        if self._at + size > self.size:
            place = f"{size} bytes from byte {self._at}"
            raise CheckpointError(
                f"{self.path}: {what} should take {place}, but the file has {self.size} bytes: {DAMAGED}"
            )

    def _string(self, what: str, errors: str = "replace") -> str:
        (length,) = self._take("<Q", f"the length of {what}")
        self._need(length, what)
        self._at += length
        try:
            return self._raw[self._at - length : self._at].decode("utf-8", errors)
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.path}: {what} is not UTF-8 text: {DAMAGED}") from None

    def _value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind == STRING:
            return self._string(what)
        if kind in SCALARS:
            return self._take("<" + SCALARS[kind], what)[0]
        if kind != ARRAY or depth == DEEPEST:
            known = "a type from 0 to 12" if kind != ARRAY else f"at most {DEEPEST} arrays in each other"
            raise CheckpointError(f"{self.path}: {what} should have {known}, not type {kind}: {DAMAGED}")
        inner, length = self._take("<IQ", what)
        if inner in SCALARS:
            self._need(length * struct.calcsize("<" + SCALARS[inner]), what)  # before the form is built
            return list(self._take(f"<{length}{SCALARS[inner]}", what))
        return [self._value(inner, what, depth + 1) for _ in range(length)]

    def _version(self) -> int:
        (version,) = self._take("<I", "the version")
        if version in (2, 3):
            return int(version)
        if version & 0xFFFF == 0:
            raise CheckpointError(f"{self.path} is a big-endian GGUF file; only little-endian ones are supported")
        raise CheckpointError(f"{self.path} has GGUF version {version}; versions 2 and 3 are supported")

    def _metadata(self, count: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for i in range(count):
            name = self._string(f"the name of key {i} of {count}", "strict")
            if name in out:
                raise CheckpointError(f"{self.path} has the key {name!r} twice: {DAMAGED}")
            (kind,) = self._take("<I", f"the type of key {name!r}")
            out[name] = self._value(kind, f"key {name!r}")
        return out

    def _alignment(self) -> int:
        value = self.value("general.alignment", int, 32)
        if value < 8 or value & (value - 1):
            raise CheckpointError(f"{self.path}: general.alignment should be a power of two from 8 on, not {value}")
        return int(value)

    def _entries(self, count: int) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for i in range(count):
            name = self._string(f"the name of tensor {i} of {count}", "strict")
            if name in found:
                raise CheckpointError(f"{self.path} has the tensor {name!r} twice: {DAMAGED}")
            (axes,) = self._take("<I", f"the number of axes of tensor {name!r}")
            if axes > 4:
                raise CheckpointError(f"{self.path}: tensor {name!r} should have at most 4 axes, not {axes}: {DAMAGED}")
            sizes = self._take(f"<{axes}Q", f"the shape of tensor {name!r}")
            if 0 in sizes:
                raise CheckpointError(f"{self.path}: tensor {name!r} has an axis of length 0: {DAMAGED}")
            kind, place = self._take("<IQ", f"the type and place of tensor {name!r}")
            found[name] = Entry(name, sizes[::-1], kind, place)
        start = -(-self._at // self.alignment) * self.alignment
        return {name: self._placed(entry, start) for name, entry in found.items()}

    def _placed(self, entry: Entry, start: int) -> Entry:
        """The entry with its place counted from the file's start; its bytes must be there."""
        placed = Entry(entry.name, entry.shape, entry.type, start + entry.start)
        if entry.start % self.alignment:
            raise CheckpointError(
                f"{self.path}: tensor {entry.name!r} should begin at a multiple of {self.alignment} bytes, "
                f"not at {entry.start}: {DAMAGED}"
            )
        if entry.type not in quants.SIZES:  # refused when it is read
            return placed
        block = quants.SIZES[entry.type][0]
        if (entry.shape[-1] if entry.shape else 1) % block:
            raise CheckpointError(
                f"{self.path}: rows of tensor {entry.name!r} should be a multiple of {block} long (type {entry.kind}), "
                f"not {entry.shape[-1]}: {DAMAGED}"
            )
        end = placed.start + self._bytes(placed)
        if end > self.size:
            raise CheckpointError(
                f"{self.path}: tensor {entry.name!r} should end at byte {end}, but the file has {self.size}: {DAMAGED}"
            )
        return placed
