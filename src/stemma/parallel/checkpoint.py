"""Sharded tensors on disk, by torch.distributed.checkpoint: each rank writes its own parts, and any number of ranks
reads them back, each the parts that it needs."""

from __future__ import annotations

import collections
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata

from stemma import disk
from stemma.errors import CheckpointError, brief
from stemma.parallel.processes import lost_connection
from stemma.parallel.shard import ShardLayout

SHARDS = "shards"  # the folder of a checkpoint that holds them
KINDS = ("model", "optimizer")
Kinds = Mapping[str, Mapping[str, Tensor]]


# the only names that the metadata of a checkpoint may refer to
KNOWN = {
    **{(kind.__module__, kind.__name__): kind for kind in (
        metadata.Metadata, metadata.MetadataIndex, metadata.StorageMeta, metadata.TensorStorageMetadata,
        metadata.ChunkStorageMetadata, metadata.TensorProperties, metadata._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo, torch.Size, collections.OrderedDict,
    )},
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    **{("torch", str(t).removeprefix("torch.")): t for t in vars(torch).values() if isinstance(t, torch.dtype)},
    **{(module, name): (lambda *parts: "/".join(parts)) for module in ("pathlib", "pathlib._local")
       for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")},
}  # fmt: skip


class Unpickler(pickle.Unpickler):
    """Reads the pickle that describes a checkpoint's shards, and nothing that could run code: a name outside of
    `KNOWN` is refused before anything is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (found := KNOWN.get((module, name))) is None:
            raise pickle.UnpicklingError(f"its metadata refers to {module}.{name}, which no checkpoint needs")
        return found


class Reader(dcp.FileSystemReader):
    """torch's reader of shards, with a metadata file that is data and files that lie in the folder."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """The checked metadata. Raises UnpicklingError for anything but plain tensors in files of this folder."""
        path = Path(self._get_metadata_path(kwargs.get("rank")))
        disk.regular(path)
        with open(path, "rb") as file:
            found = Unpickler(file).load()
        try:
            tensors = all(type(about) is metadata.TensorStorageMetadata for about in found.state_dict_metadata.values())
            inside = all(
                Path(part.relative_path).name == part.relative_path and not part.transform_descriptors
                for part in found.storage_data.values()
            )
        except (AttributeError, TypeError):
            tensors = inside = False
        for name in {part.relative_path for part in found.storage_data.values()} if inside else ():
            disk.regular(path.with_name(name))
        if not tensors or not inside:
            raise pickle.UnpicklingError("its metadata describes something other than tensors in files of its folder")
        found.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return found

    def tensors(self) -> dict[str, metadata.TensorStorageMetadata]:
        """What the folder holds, by name."""
        return dict(self.read_metadata().state_dict_metadata)


def write(folder: Path, tensors: Kinds, layouts: Mapping[str, ShardLayout], *, then: str = disk.AGAIN) -> None:
    """Write the local `tensors` of all ranks, `{"model": ..., "optimizer": ...}`; every rank calls it. Optimiser slots
    (`name:slot`) have their parameter's layout (`ShardLayout.slot`) if they have its shape."""
    state: dict[str, Any] = {}
    for kind, held in tensors.items():
        for key, tensor in held.items():
            layout = _layout(kind, key, layouts)
            fits = layout is not None and tensor.shape == _local_shape(layout)
            state[f"{kind}/{key}"] = layout.whole(tensor) if layout is not None and fits else tensor.detach()
    try:
        with _quiet():
            dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, sync_files=True))
    except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
        _raise_if_rank_lost(error)
        raise disk.refused(f"the shards of a checkpoint in {folder}", _cause(error), then=then) from error


def read(folder: Path, layouts: Mapping[str, ShardLayout] | None = None) -> dict[str, dict[str, Tensor]]:
    """The tensors in `folder`: the local parts by `layouts` (every rank calls it), or all in full without them."""
    try:
        with _quiet():
            reader = Reader(folder)
            state: dict[str, Any] = {}
            for key, about in reader.tensors().items():
                kind, _, name = key.partition("/")
                layout = _layout(kind, name, layouts or {})
                if layout is not None and about.size == layout.shape:
                    state[key] = layout.whole(torch.empty(_local_shape(layout), dtype=about.properties.dtype))
                else:
                    state[key] = torch.empty(about.size, dtype=about.properties.dtype)
            dcp.load(state, storage_reader=reader, no_dist=layouts is None)
    except CheckpointError:
        raise
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, dcp.api.CheckpointException) as error:
        _raise_if_rank_lost(error)
        raise CheckpointError(f"the checkpoint {folder.parent} is damaged: {_line(error)}") from None
    except Exception as error:  # metadata of another shape can fail anywhere
        raise CheckpointError(
            f"the checkpoint {folder.parent} is damaged: its metadata describes no tensors that Stemma wrote "
            f"({type(error).__name__})"
        ) from None
    found: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    for key, tensor in state.items():
        kind, _, name = key.partition("/")
        if kind not in found:
            raise CheckpointError(
                f"the checkpoint {folder.parent} is damaged: its metadata names a tensor {brief(key)}"
            )
        found[kind][name] = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


def cut(file: Path, kind: str, layouts: Mapping[str, ShardLayout]) -> dict[str, Tensor]:
    """The local parts of the tensors in a safetensors file. Reads nothing else of it."""
    found: dict[str, Tensor] = {}
    try:
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                part = tensors.get_slice(key)
                layout = _layout(kind, key, layouts)
                fits = layout is not None and list(part.get_shape()) == list(layout.shape)
                found[key] = part[layout.box()].contiguous() if layout is not None and fits else tensors.get_tensor(key)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {file.parent} is damaged: {error}") from None
    return found


def _layout(kind: str, key: str, layouts: Mapping[str, ShardLayout]) -> ShardLayout | None:
    if kind == "model":
        return layouts.get(key)
    name, _, slot = key.rpartition(":")
    return None if name not in layouts else layouts[name].slot(slot)


def _local_shape(layout: ShardLayout) -> tuple[int, ...]:
    return tuple(s.stop - s.start for s in layout.box())


def _raise_if_rank_lost(error: BaseException) -> None:
    """Re-raise an error that means a lost rank: it is no fault of the disk or of a file."""
    if lost_connection(error):
        raise error if isinstance(error, RuntimeError) else RuntimeError(str(error)) from None


def _cause(error: BaseException) -> BaseException:
    """The first failure of a rank; without one, the error itself."""
    if isinstance(error, dcp.api.CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


def _line(error: BaseException) -> str:
    return " ".join(str(_cause(error)).split())[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's warnings about one process, and about plain tensors among distributed ones: both are meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
