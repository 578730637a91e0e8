"""Safetensors files, mapped and written tensor by tensor. The library checks the header of a file that is read.

A file is the length of the header (u64, little endian), the header (JSON, then spaces), and the data without holes.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stemma.errors import CheckpointError
from stemma.rewrites.modules import ALIGNED

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Place(NamedTuple):
    """A tensor of a file: the name of its type, its shape, and where its bytes begin and end."""

    kind: str
    shape: list[int]
    start: int
    end: int


class SafeFile:
    """The tensors of a file by name. Raises CheckpointError for a file that is damaged."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        self._whole: mmap.mmap | None = None
        try:
            safe_open(path, framework="pt")
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} is damaged or cut short ({path.stat().st_size} bytes): {first_line(error)}; "
                "copy or download it again"
            ) from None
        header.pop("__metadata__", None)
        self.places = {
            name: Place(about["dtype"], about["shape"], *(8 + size + at for at in about["data_offsets"]))
            for name, about in header.items()
        }

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU, in a mapping of its own: its pages are read when they are touched, and given back
        with it."""
        _, _, start, end = self.places[name]
        before = start % mmap.ALLOCATIONGRANULARITY
        if start == end:
            return self._tensor(name, bytearray(), 0)
        return self._tensor(name, self._map(end - start + before, start - before), before)

    def mapped(self, name: str) -> Tensor:
        """One tensor in a mapping of the whole file, for those that a model keeps: there may be more tensors than a
        process may have mappings."""
        if self._whole is None:
            self._whole = self._map(0, 0)
        return self._tensor(name, self._whole, self.places[name].start)

    def _map(self, size: int, start: int) -> mmap.mmap:
        """Bytes of the file (0: all), copied when they are changed."""
        try:
            with open(self.path, "rb") as file:
                return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY, offset=start)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path} cannot be read: {first_line(error)}") from None

    def _tensor(self, name: str, raw: Any, at: int) -> Tensor:
        kind, shape, start, end = self.places[name]
        dtype = TYPES[kind]
        if start == end:
            return torch.empty(shape, dtype=dtype)
        data = torch.frombuffer(raw, dtype=torch.uint8, count=end - start, offset=at)
        return _little(data, dtype).view(dtype).reshape(shape)


def _little(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes of numbers of `dtype` from or to little-endian order."""
    return data if sys.byteorder == "little" else data.view(-1, dtype.itemsize).flip(1).reshape(-1)


def first_line(error: BaseException) -> str:
    """The first line of another library's error."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


class Entry(NamedTuple):
    """A tensor to write: what is known of it before, and a function that makes it, on any device and in any layout."""

    shape: Sequence[int]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_shard(path: Path, names: Mapping[str, Entry]) -> None:
    """One file. Every tensor of a multiple of `ALIGNED` bytes begins at one, so that it can be mapped: the header is
    filled up to such a place, and other tensors come last. Otherwise widest types first, then by name, as the library
    has it."""
    order = sorted(names, key=lambda n: (names[n].nbytes % ALIGNED != 0, -names[n].dtype.itemsize, n))
    kinds = {dtype: kind for kind, dtype in TYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        entry = names[name]
        start, end = end, end + entry.nbytes
        header[name] = {"dtype": kinds[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    head += b" " * (-(8 + len(head)) % ALIGNED)
    with open(path, "wb", buffering=0) as out:
        _put(out, memoryview(len(head).to_bytes(8, "little") + head))
        for name in order:
            entry = names[name]
            tensor = entry.make().to(device="cpu", dtype=entry.dtype).contiguous()
            assert list(tensor.shape) == list(entry.shape), name
            _put(out, _little(tensor.reshape(-1).view(torch.uint8), entry.dtype).numpy().data)


def _put(out: io.RawIOBase, data: memoryview) -> None:
    """Write all of `data`; the system may take less at a time."""
    while data:
        data = data[out.write(data) :]
