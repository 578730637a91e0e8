"""Named tensors of a checkpoint, read one at a time and written atomically: safetensors, in shards or not, and the
older `pytorch_model.bin`, which is read without running any code in it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma.errors import CheckpointError, ResourceError

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


class Tensors:
    """The tensors of a directory, by name; nothing is read before `get`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.where: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        files = self._files()
        listed = self._index()
        for file in files:
            for name in self._names(file):
                self.where[name] = file
        if listed is not None and (absent := sorted(set(listed) - set(self.where))):
            name = absent[0]
            raise CheckpointError(f"the index names {name!r} in {listed[name]}, but that file does not hold it")

    def _index(self) -> dict[str, str] | None:
        for name in INDEX:
            path = self.directory / name
            if path.is_file() and not (self.directory / SINGLE[0]).is_file():
                return read_json(path).get("weight_map", {})
        return None

    def _files(self) -> list[Path]:
        if (self.directory / SINGLE[0]).is_file():
            return [self.directory / SINGLE[0]]
        listed = self._index()
        if listed is not None:
            files = [self.directory / f for f in sorted(set(listed.values()))]
            for file in files:
                if not file.is_file():
                    raise CheckpointError(f"{file.name} is missing from {self.directory}, though the index names it")
            return files
        if (self.directory / SINGLE[1]).is_file():
            return [self.directory / SINGLE[1]]
        raise CheckpointError(f"no weights in {self.directory}: it should hold {SINGLE[0]} (or shards, or {SINGLE[1]})")

    def _names(self, file: Path) -> list[str]:
        if file.suffix == ".bin":
            return list(self._bin(file))
        return list(self._safe(file).keys())

    def _safe(self, file: Path) -> Any:
        if file not in self._open:
            from safetensors import SafetensorError, safe_open

            try:
                self._open[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                size = file.stat().st_size
                raise CheckpointError(
                    f"{file} is damaged or cut short ({size} bytes): {error}; copy or download it again"
                ) from None
        return self._open[file]

    def _bin(self, file: Path) -> dict[str, Tensor]:
        if file not in self._open:
            try:
                state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:  # torch raises several kinds for a damaged or a hostile file
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise CheckpointError(f"{file} cannot be read as plain tensors: {first}") from None
            self._open[file] = {k: v for k, v in state.items() if isinstance(v, Tensor)}
        return self._open[file]

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __contains__(self, name: object) -> bool:
        return name in self.where

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        file = self.where[name]
        if file.suffix == ".bin":
            return tuple(self._bin(file)[name].shape)
        return tuple(self._safe(file).get_slice(name).get_shape())

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU, in the type that the file holds."""
        file = self.where[name]
        return self._bin(file)[name] if file.suffix == ".bin" else self._safe(file).get_tensor(name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError naming the file, and the line where it breaks."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#x}") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: line {error.lineno}: {error.msg}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} should hold a JSON object, not a {type(data).__name__}")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """`data` as indented JSON with a final newline."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def whole(directory: Path) -> Iterator[Path]:
    """A scratch folder beside `directory` whose files move into it only if the block ends well.

    Raises ResourceError if the disk is full or the place not writable; nothing half-written is left then.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise ResourceError(f"cannot write beside {directory}: {error.strerror}") from None
    try:
        yield scratch
        for file in scratch.iterdir():
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())
        directory.mkdir(exist_ok=True)
        for file in sorted(scratch.iterdir(), key=lambda f: f.name == "config.json"):  # the config last
            os.replace(file, directory / file.name)
    except Exception as error:  # safetensors wraps the system's error in its own
        number = getattr(error, "errno", None)
        if isinstance(error, OSError) or "No space left" in str(error):
            full = number == errno.ENOSPC or "No space left" in str(error)
            why = "the disk is full" if full else str(error)
            raise ResourceError(f"could not save to {directory}: {why}; nothing was written") from None
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write(directory: Path, names: Mapping[str, tuple[int, Callable[[], Tensor]]], shard_bytes: int) -> list[str]:
    """Write tensors as safetensors, in shards of at most `shard_bytes`; each is made only when its shard is written.

    `names` gives for each tensor its size in bytes and a function that makes it. Returns the files written.
    """
    from safetensors.torch import save_file

    shards: list[list[str]] = [[]]
    filled = 0
    for name, (size, _) in names.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    single = len(shards) == 1
    files, weight_map = [], {}
    for i, shard in enumerate(shards, 1):
        file = SINGLE[0] if single else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file({n: names[n][1]().contiguous() for n in shard}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
        files.append(file)
    if not single:
        total = sum(size for size, _ in names.values())
        write_json(directory / INDEX[0], {"metadata": {"total_size": total}, "weight_map": weight_map})
        files.append(INDEX[0])
    return files
