"""The names engine: a table of rows maps a publisher's tensors to ours and back, bit for bit.

A row maps one tensor of the file to one or more of the model's; `{i}` runs over layers. The same rows serve both
directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from stemma.declare.family import Design
from stemma.errors import CheckpointError, nearest


class Op(Protocol):
    """A rearrangement between one tensor of a file and several of the model's. It only moves numbers, so both ways are
    exact."""

    def shape(self, parts: list[torch.Size]) -> Sequence[int]:
        """The shape in the file, from the model's shapes."""

    def read(self, tensor: Tensor, parts: list[torch.Size]) -> Sequence[Tensor]:
        """The model's tensors."""

    def write(self, tensors: list[Tensor]) -> Tensor:
        """The file's tensor."""


@dataclass(frozen=True)
class Shaped:
    """A reshape: the tensor has the shape `inner` in the file."""

    inner: tuple[int, ...]

    def shape(self, parts: list[torch.Size]) -> Sequence[int]:
        return self.inner

    def read(self, tensor: Tensor, parts: list[torch.Size]) -> Sequence[Tensor]:
        return [tensor.reshape(parts[0])]

    def write(self, tensors: list[Tensor]) -> Tensor:
        return tensors[0].reshape(self.inner)


@dataclass(frozen=True)
class ByHead:
    """Several matrices (or vectors) packed head by head: all rows of head 0, then those of head 1, ..."""

    heads: int

    def shape(self, parts: list[torch.Size]) -> Sequence[int]:
        return [sum(p[0] for p in parts), *parts[0][1:]]

    def read(self, tensor: Tensor, parts: list[torch.Size]) -> Sequence[Tensor]:
        cut = tensor.unflatten(0, (self.heads, -1)).split([p[0] // self.heads for p in parts], 1)
        return [t.flatten(0, 1) for t in cut]

    def write(self, tensors: list[Tensor]) -> Tensor:
        return torch.cat([t.unflatten(0, (self.heads, -1)) for t in tensors], 1).flatten(0, 1)


@dataclass(frozen=True)
class InHeads:
    """A transposed matrix with its outputs split into heads: (in, heads, width) in the file."""

    heads: int

    def shape(self, parts: list[torch.Size]) -> Sequence[int]:
        return [parts[0][1], self.heads, parts[0][0] // self.heads]

    def read(self, tensor: Tensor, parts: list[torch.Size]) -> Sequence[Tensor]:
        return [tensor.flatten(1).t()]

    def write(self, tensors: list[Tensor]) -> Tensor:
        return tensors[0].t().unflatten(1, (self.heads, -1))


@dataclass(frozen=True)
class Row:
    """`theirs` in the file is `ours` in the model, concatenated along the model's first axis if there are several, and
    transposed if `transposed`; or rearranged by `op`. `aliases`: other names of the same tensor in files."""

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    aliases: tuple[str, ...] = ()
    op: Op | None = None

    def at(self, i: int) -> Row:
        """The row of layer `i`."""
        return replace(
            self,
            theirs=self.theirs.replace("{i}", str(i)),
            ours=tuple(o.replace("{i}", str(i)) for o in self.ours),
            aliases=tuple(a.replace("{i}", str(i)) for a in self.aliases),
        )

    def read(self, tensor: Tensor, shapes: Mapping[str, torch.Size]) -> list[tuple[str, Tensor]]:
        """The model's tensors from the file's. Raises CheckpointError for a wrong shape."""
        parts = [shapes[o] for o in self.ours]
        if self.op is not None:
            if list(tensor.shape) != (expected := list(self.op.shape(parts))):
                raise CheckpointError(
                    f"tensor {self.theirs!r} has shape {list(tensor.shape)}, but this config needs {expected}"
                )
            return list(zip(self.ours, self.op.read(tensor, parts), strict=True))
        want = list(parts[0])
        want[0] = sum(p[0] for p in parts)
        transposed = self.transposed and len(want) == 2
        expected = want[::-1] if transposed else want
        if list(tensor.shape) != expected:
            raise CheckpointError(
                f"tensor {self.theirs!r} has shape {list(tensor.shape)}, but this config needs {expected}"
            )
        if transposed:
            tensor = tensor.t()
        return list(zip(self.ours, tensor.split([p[0] for p in parts]), strict=True))

    def write(self, state: Mapping[str, Tensor]) -> Tensor:
        """The file's tensor from the model's."""
        if self.op is not None:
            return self.op.write([state[o] for o in self.ours]).contiguous()
        tensor = state[self.ours[0]] if len(self.ours) == 1 else torch.cat([state[o] for o in self.ours])
        return tensor.t().contiguous() if self.transposed and tensor.ndim == 2 else tensor


def row(theirs: str, *ours: str, transposed: bool = False, aliases: Iterable[str] = (), op: Op | None = None) -> Row:
    """A `Row` with the model's names as arguments."""
    return Row(theirs, ours, transposed, tuple(aliases), op)


def linear(theirs: str, *ours: str, bias: bool = True, transposed: bool = False) -> Iterator[Row]:
    """The rows of a linear layer, or of several packed into one: weight, and bias if `bias`."""
    yield row(f"{theirs}.weight", *(f"{o}.weight" for o in ours), transposed=transposed)
    if bias:
        yield row(f"{theirs}.bias", *(f"{o}.bias" for o in ours))


def expand(rows: Iterable[Row], design: Design) -> list[Row]:
    """The rows with each `{i}` row repeated for every layer of its stack."""
    layers = depths(design)
    out: list[Row] = []
    for r in rows:
        if "{i}" in r.theirs:
            out += [r.at(i) for i in range(layers[r.ours[0].split(".")[0]])]
        else:
            out.append(r)
    return out


def depths(design: Design) -> dict[str, int]:
    """Layers of each stack."""
    both = design.arch.structure == "encoder-decoder"
    return {"encoder": design.dims.layers, "decoder": design.dims.depth if both else design.dims.layers}


@dataclass
class Ledger:
    """Accounts for every tensor of the file and of the model, and for the unused keys of the config."""

    loaded: dict[str, str] = field(default_factory=dict)  # the model's name -> the file's
    tied: dict[str, str] = field(default_factory=dict)  # the file's name -> the file's name it repeats
    new: list[str] = field(default_factory=list)  # the model's names, initialised because the user asked for it
    ignored: dict[str, str] = field(default_factory=dict)  # the file's name -> why
    config: dict[str, str] = field(default_factory=dict)  # keys of config.json that change nothing here -> why

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} loaded, {len(self.tied)} tied, {len(self.new)} new, {len(self.ignored)} ignored"]
        lines += [f"tied: {name} repeats {other}" for name, other in self.tied.items()]
        lines += [f"new: {name}" for name in self.new]
        lines += [f"ignored: {name} ({why})" for name, why in self.ignored.items()]
        return "\n".join(lines)


def missing(name: str, theirs: Iterable[str], where: str) -> CheckpointError:
    """The error for a tensor that a file should hold."""
    like = nearest(name, theirs)
    hint = f"; the nearest name in it is {like[0]!r}" if like else ""
    return CheckpointError(f"tensor {name!r} is missing from {where}{hint}")
