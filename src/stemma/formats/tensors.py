"""Tensors of a checkpoint by name, read one at a time and written atomically: safetensors, sharded or not, and the
older `pytorch_model.bin`, which is read without running its code."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma import disk
from stemma.errors import CheckpointError, ResourceError, brief
from stemma.formats.safe import TYPES, Entry, SafeFile, first_line, write_shard
from stemma.rewrites.modules import aligned

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SCRATCH = ".saving-"
UNCHANGED = "nothing there was changed"  # the note of a save that the system refused
HEADS = ("config.json", "params.json")  # the file without which nothing of a folder is read
KEPT = 4096  # bytes: a tensor of less costs no more as a copy


def weight_files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The weight files of a directory, and the file of each tensor if there is an index. Raises CheckpointError if
    there are none, or one that the index names is missing."""
    for single, index in zip(SINGLE, INDEX, strict=True):
        if (directory / single).is_file():
            return [directory / single], {}
        if (directory / index).is_file():
            listed = _index(directory / index)
            return [directory / name for name in sorted(set(listed.values()))], listed
    raise CheckpointError(f"no weights in {directory}: it should hold {SINGLE[0]} (or shards, or {SINGLE[1]})")


def _index(path: Path) -> dict[str, str]:
    listed = disk.read_object(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{path} should have a 'weight_map' that says which file holds each tensor")
    for name, shard in listed.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{path}: {name!r} should be in a file beside the index, not in {shard!r}")
        if not (path.parent / shard).is_file():
            raise CheckpointError(f"{shard} is missing from {path.parent}, though {path.name} names it")
    return listed


class Tensors:
    """The tensors of a directory by name. `get` reads; making this reads names only."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.where: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        files, listed = weight_files(directory)
        for file in files:
            for name in self._names(file):
                if name in self.where:
                    both = f"{self.where[name].name} and {file.name}"
                    raise CheckpointError(f"{directory} holds {name!r} twice: in {both}")
                self.where[name] = file
        for name, shard in listed.items():
            if name not in self.where or self.where[name].name != shard:
                raise CheckpointError(
                    f"the index of {directory} names {name!r} in {shard}, but that file does not hold it"
                )

    def _names(self, file: Path) -> list[str]:
        return list(self._bin(file)) if file.suffix == ".bin" else list(self._safe(file).places)

    def _safe(self, file: Path) -> SafeFile:
        if file not in self._open:
            self._open[file] = SafeFile(file)
        found: SafeFile = self._open[file]
        return found

    def _bin(self, file: Path) -> dict[str, Tensor]:
        if file not in self._open:
            self._open[file] = plain(file)
        return self._open[file]

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __contains__(self, name: object) -> bool:
        return name in self.where

    def meta_tensor(self, name: str) -> Tensor:
        """A tensor on the meta device, with the file's shape and dtype. Raises CheckpointError for a dtype of no
        weights."""
        file = self.where[name]
        if file.suffix == ".bin":
            tensor = self._bin(file)[name]
            shape = list(tensor.shape)
            kind = next((k for k, known in TYPES.items() if known == tensor.dtype), str(tensor.dtype))
        else:
            kind, shape = self._safe(file).places[name][:2]
        if kind not in TYPES:
            raise CheckpointError(
                f"tensor {name!r} in {file} is of type {kind}; weights should be one of {', '.join(TYPES)}"
            )
        return torch.empty(shape, dtype=TYPES[kind], device="meta")

    def blocks(self, name: str) -> None:
        """No tensor of these files is quantised."""

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU, in the file's dtype."""
        file = self.where[name]
        if file.suffix == ".bin":
            return self._bin(file)[name]
        return self._safe(file).get(name)

    def mapped(self, name: str) -> Tensor | None:
        """One tensor as its pages in the file, read when they are touched and copied when they are changed (a private
        mapping). None for a small one and for one that memory of its own would align otherwise: its products would
        round otherwise. None on Windows, where a file that is mapped cannot be replaced."""
        file = self.where[name]
        if os.name == "nt" or self.meta_tensor(name).nbytes < KEPT:
            return None
        tensor = self._bin(file)[name] if file.suffix == ".bin" else self._safe(file).mapped(name)
        return tensor if aligned(tensor) else None


def plain(file: Path) -> dict[str, Tensor]:
    """The tensors by name of a `torch.save` file, whose code is not run. Raises CheckpointError."""
    return {k: v.detach() for k, v in unpickled(file, "plain tensors").items() if isinstance(v, Tensor)}


def unpickled(file: Path, what: str, *classes: type) -> dict[str, Any]:
    """The dictionary (of `what`, for errors) in a `torch.save` file, memory-mapped where possible. Its code is not run,
    and only objects of `classes` are allowed. Raises CheckpointError."""
    disk.regular(file)
    how: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        with torch.serialization.safe_globals(list(classes)):
            data = torch.load(file, mmap=zipfile.is_zipfile(file), **how)  # before torch 1.6 it was no zip file
    except Exception as error:  # torch raises several kinds for a damaged or a hostile file
        if not isinstance(error, pickle.UnpicklingError):
            why = f"{first_line(error)}; copy or download it again"
        elif classes and (name := re.search(r"GLOBAL ([\w.]+)", str(error))):
            why = f"it holds {name[1]}, and of all classes only {', '.join(map(full_name, classes))} is read"
        else:  # torch goes on to say how the code in it could be run
            why = "it holds objects or code, which are not run, or is damaged"
        raise CheckpointError(f"{file} cannot be read as {what}: {why}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} should hold tensors by name, not a {type(data).__name__}")
    _usable(file, data)
    return data


def _usable(file: Path, data: Mapping[Any, Any]) -> None:
    """Raises CheckpointError for keys that are no text, and for tensors without plain values: sparse ones, quantised
    ones, those on the meta device."""
    for name, value in data.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{file} should hold tensors by name; a key is {brief(name)}, which is no text")
        if name == "model" and isinstance(value, Mapping):  # fairseq's
            _usable(file, value)
        if isinstance(value, Tensor):
            odd = "meta" if value.is_meta else "quantised" if value.is_quantized else str(value.layout)
            if odd != "torch.strided":
                raise CheckpointError(f"{file}: {brief(name)} is a tensor of another kind ({odd}); plain ones are read")


def full_name(kind: type) -> str:
    """The name of a class with its module."""
    return f"{kind.__module__}.{kind.__name__}"


def write_json(path: Path, data: Mapping[str, Any] | list[Any]) -> None:
    """Write JSON into a scratch folder, which is forced to disk as a whole."""
    path.write_text(disk.to_json(data), encoding="utf-8")


@contextlib.contextmanager
def whole(directory: Path, stale: Callable[[str], bool]) -> Iterator[Path]:
    """A scratch folder in `directory`. If the block succeeds, its files replace those of the same names and those that
    are `stale`; other files stay. If it fails, `directory` is unchanged. Files that replace others are forced to disk
    first; a new folder costs no such wait. Raises ResourceError if the disk refuses."""
    fresh = not directory.exists()
    scratch = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=directory))
        yield scratch
        new = [f.name for f in scratch.iterdir()]
        gone = [f.name for f in directory.iterdir() if not f.is_dir() and (f.name in new or stale(f.name))]
        for name in new if gone else ():  # else a power cut could take the old files before the new ones are there
            disk.sync(scratch / name)
        _swap(scratch, directory, new, gone)
        for left in directory.glob(SCRATCH + "*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    except ResourceError:
        raise
    except Exception as error:  # safetensors wraps the system's error in its own
        if disk.is_refusal(error):
            raise disk.refused(directory, error, note=UNCHANGED) from None
        raise
    finally:
        if scratch is not None and not any(scratch.glob("old/*")):
            shutil.rmtree(scratch, ignore_errors=True)
            if fresh:
                with contextlib.suppress(OSError):
                    directory.rmdir()  # which only an empty one allows


def _swap(scratch: Path, directory: Path, new: list[str], gone: list[str]) -> None:
    """Move the old files out (`gone`) and the new ones in, or undo both.

    config.json (params.json in Meta's layout) is moved out first and in last, so nothing can read a mixture of old and
    new files. If the process is killed in between, the old files are in `old` of the scratch folder."""
    old = scratch / "old"
    new = sorted(new, key=lambda name: name in HEADS)
    gone = sorted(gone, key=lambda name: name not in HEADS)
    old.mkdir()
    moves = [(directory / n, old / n) for n in gone] + [(scratch / n, directory / n) for n in new]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            os.replace(source, target)
            done.append((source, target))
    except BaseException as error:
        try:
            for source, target in reversed(done):
                os.replace(target, source)
        except OSError:
            raise ResourceError(
                f"cannot write {directory}: {error}; the files that were there are in {old}, move them back"
            ) from None
        raise
    shutil.rmtree(old, ignore_errors=True)


def interrupted(directory: Path) -> str | None:
    """A sentence about a save into `directory` that was killed while files were swapped; None if there was none."""
    for scratch in directory.glob(SCRATCH + "*/old"):
        return f"a save into {directory} was cut short; the files that were there before are in {scratch}"
    return None


def write(directory: Path, names: Mapping[str, Entry], shard_bytes: int) -> None:
    """Write tensors as safetensors, in shards of at most `shard_bytes`, one tensor in memory at a time."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, entry in names.items():
        if shards[-1] and filled + entry.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += entry.nbytes
    single = len(shards) == 1
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = SINGLE[0] if single else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_shard(directory / file, {name: names[name] for name in shard})
        weight_map |= dict.fromkeys(shard, file)
    if not single:
        total = sum(entry.nbytes for entry in names.values())
        write_json(directory / INDEX[0], {"metadata": {"total_size": total}, "weight_map": weight_map})
