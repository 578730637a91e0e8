"""Ranks in a grid of three axes: copies of the model (`dp`), shards of its state (`fsdp`), slices of its matrices
(`tp`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stemma.errors import ResourceError, UsageError
from stemma.parallel.mesh import AXES, Mesh, mesh

LOST = (  # in torch's messages when the rank at the other end of a connection ended or does not answer
    "Connection closed by peer",
    "Connection reset",
    "Connection was likely closed",
    "Broken pipe",
    "Connection refused",
    "NCCL",
    "Timed out",
)


def lost_connection(error: BaseException) -> bool:
    """Whether an error means that another rank is gone."""
    return any(words in str(error) for words in LOST)


class World:
    """The ranks of a mesh, seen from one of them. Joins the process group of the launcher (`torchrun`)."""

    def __init__(self, shape: Mesh, device: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        there = int(os.environ.get("WORLD_SIZE", "1"))
        if there != shape.size:
            raise UsageError(
                f"mesh {shape} needs {shape.size} processes and there are {there}; start them with "
                f"`torchrun --nproc-per-node {shape.size} -m stemma ...`"
            )
        if not dist.is_initialized():
            if device == "cuda":
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            try:
                dist.init_process_group("nccl" if device == "cuda" else "gloo")
            except (RuntimeError, ValueError) as error:
                raise ResourceError(f"the processes of mesh {shape} did not find each other: {error}") from None
        self.shape, self.device = shape, device
        self.check_same_config({"mesh": str(shape), "device": device})
        self.grid = init_device_mesh(device, (shape.dp, shape.fsdp, shape.tp), mesh_dim_names=AXES)
        self.rank = dist.get_rank()
        self.reader = self.grid.get_local_rank("dp") * shape.fsdp + self.grid.get_local_rank("fsdp")

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def submesh(self, axis: str) -> Any:
        """The ranks along one axis that include this one."""
        return self.grid[axis]

    def rank_along(self, *axes: str) -> tuple[int, int]:
        """(number of this rank among those along `axes`, how many they are)."""
        number, size = 0, 1
        for axis in axes:
            there = getattr(self.shape, axis)
            number, size = number * there + self.grid.get_local_rank(axis), size * there
        return number, size

    def all_reduce(self, tensors: Iterable[Tensor], *axes: str) -> None:
        """Sum each tensor over the ranks along `axes`, in place. All tensors of a call have one dtype."""
        held = list(tensors)
        if not held or all(getattr(self.shape, axis) == 1 for axis in axes):
            return
        flat = torch.cat([t.reshape(-1) for t in held])
        for axis in axes:
            if getattr(self.shape, axis) > 1:
                dist.all_reduce(flat, group=self.grid.get_group(axis))
        for tensor, total in zip(held, flat.split([t.numel() for t in held]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def sum_counts(self, counts: dict[str, int], *axes: str) -> dict[str, int]:
        """Integers summed over the ranks along `axes`."""
        values = torch.tensor(list(counts.values()), dtype=torch.int64, device=self.device)
        self.all_reduce([values], *axes)
        return dict(zip(counts, values.tolist(), strict=True))

    def broadcast(self, value: Any) -> Any:
        """The main rank's value, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather_readers(self, values: list[Any]) -> list[Any]:
        """The lists of all readers of rows, in their order. Called by every rank."""
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, (self.reader, values))
        by_reader = dict(reversed(found))  # of the slices of one reader, the first speaks
        return [value for reader in sorted(by_reader) for value in by_reader[reader]]

    def check_same_config(self, settings: Mapping[str, Any]) -> None:
        """Raise UsageError, on every rank, if one was started with other settings than the main rank."""
        settings_of: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(settings_of, dict(settings))
        for number, other in enumerate(settings_of):
            for name, first, here in _differing(settings_of[0], other):
                raise UsageError(
                    f"process {number} of the mesh was started with {name}={here} and process 0 with {name}={first}; "
                    "start all of them by the same command"
                )

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier()

    @staticmethod
    def shutdown() -> None:
        """End the process group, so that the launcher sees an orderly end."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _differing(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two nested tables differ: dotted paths, and both values."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in {**a, **b}:
            yield from _differing(a.get(name), b.get(name), f"{path}.{name}" if path else name)
    elif a != b:
        yield path, a, b


def init_world(text: str | None, device: str) -> World | None:
    """Join the mesh `text`; None without one. Raises UsageError if a launcher started several processes and there is no
    mesh."""
    if text is None:
        if (there := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
            raise UsageError(f"there are {there} processes and no mesh; say what they do, such as --mesh fsdp={there}")
        return None
    return World(mesh(text), device)
