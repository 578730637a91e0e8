"""A model sharded over a mesh. Each rank holds plain local tensors that any optimiser can work on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate

from stemma.errors import UsageError
from stemma.nn.attention import Attention
from stemma.nn.model import Model
from stemma.nn.stack import Block
from stemma.parallel.processes import World
from stemma.parallel.tables import slice_matrices, sums_over_slices

GATHERED = 2**27  # entries of whole matrices that a rank holds at once
MEANS = {"row": -1, "column": -2}  # slots of an optimiser that are means along a dimension of their parameter


@dataclass(frozen=True)
class ShardLayout:
    """Where the local part of a tensor belongs: the mesh, a placement for each mesh dimension, the shape and stride of
    the whole. `axes`: the mesh axes along which ranks hold different parts."""

    grid: Any
    placements: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(axis for axis, dim in self._split() if dim is not None)

    def along(self, *dims: int) -> tuple[str, ...]:
        """The axes that split one of the dimensions `dims` (-1: the last)."""
        places = {d % len(self.shape) for d in dims}
        return tuple(axis for axis, dim in self._split() if dim in places)

    def _split(self) -> Iterator[tuple[str, int | None]]:
        for axis, place in zip(self.grid.mesh_dim_names, self.placements, strict=True):
            yield axis, getattr(place, "dim", None)

    def slot(self, name: str) -> ShardLayout:
        """The layout of an optimiser's slot: that of the parameter. A mean along a dimension lacks that dimension, and
        is replicated where it was split."""
        if name not in MEANS or len(self.shape) < 2:
            return self
        gone = MEANS[name] % len(self.shape)
        sizes = self.shape[:gone] + self.shape[gone + 1 :]
        return self._moved(sizes, lambda dim: None if dim == gone else dim - (dim > gone))

    def stacked(self, n: int) -> ShardLayout:
        """The layout of `n` such tensors stacked along a new first dimension."""
        return self._moved(torch.Size((n, *self.shape)), lambda dim: dim + 1)

    def _moved(self, shape: torch.Size, to: Callable[[int], int | None]) -> ShardLayout:
        """The same parts of another shape: dimension `d` becomes `to(d)`, or goes (None)."""
        places: list[Any] = []
        for place, (_, dim) in zip(self.placements, self._split(), strict=True):
            there = None if dim is None else to(dim)
            if there is None:
                places.append(Replicate())
            elif hasattr(place, "split_factor"):
                places.append(type(place)(there, split_factor=place.split_factor))
            else:
                places.append(type(place)(there))
        stride = torch.empty(shape, device="meta").stride()
        return replace(self, placements=tuple(places), shape=shape, stride=stride)

    def whole(self, local: Tensor) -> DTensor:
        """The distributed tensor whose part on this rank is `local`."""
        return DTensor.from_local(
            local.detach(), self.grid, self.placements, run_check=False, shape=self.shape, stride=self.stride
        )

    def box(self) -> tuple[slice, ...]:
        """The slices of the whole that are local."""
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        sizes, starts = compute_local_shape_and_global_offset(self.shape, self.grid, self.placements)
        return tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))


class StepModule(nn.Module):
    """An objective's loss as the forward pass of one module: the root of FSDP. `gathered`: blocks whose weights are
    used outside of their own forward pass."""

    def __init__(
        self, objective: Any, model: Model, nets: Mapping[str, Model], gathered: Iterable[nn.Module] = ()
    ) -> None:
        super().__init__()
        self.objective, self.model, self.nets = objective, model, nn.ModuleDict(nets)
        self.gathered = set(gathered)
        self.found: Any = None

    def forward(self, batch: Any) -> dict[str, Tensor]:
        self.found = self.objective.loss(self.model, batch, dict(self.nets.items()))
        sums: dict[str, Tensor] = self.found.sums
        return sums


class RootObjective:
    """An objective whose loss runs through the root module; the rest is the objective's own."""

    def __init__(self, objective: Any, root: StepModule) -> None:
        self._objective, self._root = objective, root

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def loss(self, model: Model, batch: Any, nets: Any = None) -> Any:
        sums = self._root(batch)
        found, self._root.found = self._root.found, None
        found.sums = sums
        return found


def shard(root: StepModule, grid: Any) -> None:
    """Shard parameters, gradients and optimiser state over `grid`, block by block (Zhao et al. 2023, arXiv:2304.11277).
    What is outside of the blocks, and `root.gathered` blocks, is gathered for the whole step."""
    for module in list(root.modules()):
        if isinstance(module, Block) and module not in root.gathered:
            if isinstance(cross := module.cross, Attention):  # its keys are made before the block runs
                fully_shard([cross.k, cross.v], mesh=grid)
            fully_shard(module, mesh=grid)
            register_fsdp_forward_method(module, "reread")
    fully_shard(root, mesh=grid)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are divided by the targets of all processes already
            module.set_force_sum_reduction_for_comms(True)


class ShardedParts:
    """Shapes, norms, sums and matrix functions of whole parameters, of which this rank holds parts: what
    `train.optimisers.Whole` is for one process. All ranks call it in the same order."""

    def __init__(self, world: World, layouts: Mapping[nn.Parameter, ShardLayout]) -> None:
        self.world, self.layouts = world, layouts

    def shape(self, p: Tensor) -> torch.Size:
        """The shape of the whole parameter."""
        layout = self._layout(p)
        return p.shape if layout is None else layout.shape

    def all_reduce(self, tensors: Sequence[Tensor], parameters: Sequence[Tensor], *dims: int) -> None:
        """Add up partial sums over the ranks, in place: one tensor for each parameter, a sum along its dimensions
        `dims` (none named: along all)."""
        together: dict[tuple[str, ...], list[Tensor]] = {}
        for tensor, p in zip(tensors, parameters, strict=True):
            if (layout := self._layout(p)) is not None:
                together.setdefault(layout.along(*dims) if dims else layout.axes, []).append(tensor)
        for axes, held in together.items():
            self.world.all_reduce(held, *axes)

    def norms(self, tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
        """The norm of each whole tensor; `tensors` are parts, laid out as `parameters` are."""
        squares = [torch.linalg.vector_norm(t).square() for t in tensors]
        self.all_reduce(squares, parameters)
        return [s.sqrt() for s in squares]

    def matrices(
        self, work: Callable[[Tensor], Tensor], tensors: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> list[Tensor]:
        """The local parts of `work(matrix)` (n ... M N -> n ... M N) for each whole matrix. Split matrices are
        gathered, and each of the ranks that hold their parts works on a share of the matrices."""
        found: dict[int, Tensor] = {}
        alike: dict[Any, list[int]] = {}
        for i, p in enumerate(parameters):
            layout = self._layout(p)
            alike.setdefault((self.shape(p), None if layout is None else layout.placements), []).append(i)
        for places in alike.values():
            layout = self._layout(parameters[places[0]])
            split = None if layout is None or not layout.along(-1, -2) else layout
            for some in self._portions(places, split):
                stack = torch.stack([tensors[i] for i in some])
                found |= dict(zip(some, self._shared(work, stack, split).unbind(), strict=True))
        return [found[i] for i in range(len(parameters))]

    def _portions(self, places: list[int], split: ShardLayout | None) -> Iterator[list[int]]:
        """As many matrices at a time as may be gathered at once (`GATHERED`): a multiple of the ranks that work."""
        size = len(places)
        if split is not None:
            others = self.world.rank_along(*split.axes)[1]
            size = others * max(1, GATHERED // (split.shape.numel() * others))
        yield from (places[i : i + size] for i in range(0, len(places), size))

    def _shared(self, work: Callable[[Tensor], Tensor], stack: Tensor, split: ShardLayout | None) -> Tensor:
        if split is None:
            return work(stack) if stack.numel() else stack
        whole = split.stacked(len(stack)).whole(stack).full_tensor()
        number, others = self.world.rank_along(*split.axes)
        out = torch.zeros_like(whole)
        if len(whole[number::others]):
            out[number::others] = work(whole[number::others])
        self.world.all_reduce([out], *split.axes)  # one rank has the result of a matrix, the others zeros
        return out[(slice(None), *split.box())]

    def _layout(self, p: Tensor) -> ShardLayout | None:
        return self.layouts.get(p)  # type: ignore[call-overload]


class ShardedLearners:
    """The parameters this rank holds, under the names of the whole model and nets.

    `parameters()` and `named()` are plain tensors that share memory with the local parts; `collect()` gives them their
    gradients. `layouts` has an entry for each that is a part of a larger tensor."""

    def __init__(self, learners: Any, world: World, root: StepModule) -> None:
        self.model, self.nets, self.world = learners.model, learners.nets, world
        self.root = root
        if world.shape.tp > 1:
            if len(root.nets):
                raise UsageError(
                    f"mesh {world.shape}: tp does not slice networks beside the model ({', '.join(root.nets)}); use "
                    "fsdp instead"
                )
            slice_matrices(self.model, world.submesh("tp"))
        if world.shape.fsdp > 1:
            shard(root, world.submesh("fsdp"))
        self.source = dict(learners.named())
        self.layouts: dict[str, ShardLayout] = {}
        self.held: dict[str, nn.Parameter] = {}
        for name, p in self.source.items():
            if isinstance(p, DTensor):
                self.layouts[name] = ShardLayout(p.device_mesh, tuple(p.placements), p.shape, p.stride())
            self.held[name] = nn.Parameter(_local(p).detach(), requires_grad=p.requires_grad)
        self.parts = ShardedParts(world, {self.held[name]: layout for name, layout in self.layouts.items()})
        self._learners = learners

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(self.held.values())

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.held.items()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As `nn.Module.named_parameters`, for optimisers that go by names."""
        return self.named()

    def tensors(self, frozen: bool = False) -> dict[str, Tensor]:
        """Local parameters that learn and persistent buffers by name, detached; with `frozen`, the other parameters
        too."""
        found = {name: _local(t).detach() for name, t in self._learners.tensors(frozen).items()}
        return found | {name: p.detach() for name, p in self.held.items() if frozen or p.requires_grad}

    def refresh(self) -> None:
        """Free gathered weights, after the local parts changed."""
        for module in self.root.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def collect(self) -> None:
        """Move gradients to the local parameters, summed over all ranks that hold the same part."""
        names = list(self.source)
        flags = torch.tensor([self.source[n].grad is not None for n in names], dtype=torch.int32)
        flags = flags.to(self.world.device)
        self.world.all_reduce([flags], "dp")
        ready: list[Tensor] = []
        for name, there in zip(names, flags.tolist(), strict=True):
            if not there:
                continue
            p, held = self.source[name], self.held[name]
            held.grad = torch.zeros_like(held) if p.grad is None else self._part(name, p.grad)
            p.grad = None
            ready.append(held.grad)
        self.world.all_reduce(ready, "dp")
        self.world.all_reduce(
            [p.grad for n, p in self.held.items() if p.grad is not None and sums_over_slices(n)], "tp"
        )

    def _part(self, name: str, grad: Tensor) -> Tensor:
        """The local part of a gradient, in its parameter's layout."""
        if isinstance(grad, DTensor):
            layout = self.layouts[name]
            grad = grad.redistribute(layout.grid, layout.placements).to_local()
        return grad.detach()

    def norm(self) -> Tensor:
        """The norm of the whole gradient."""
        squares: dict[tuple[str, ...], Tensor] = {}
        for name, p in self.held.items():
            if p.grad is None:
                continue
            axes = self.layouts[name].axes if name in self.layouts else ()
            own = torch.linalg.vector_norm(p.grad.float()).square()
            squares[axes] = squares[axes] + own if axes in squares else own
        for axes in sorted(squares):
            self.world.all_reduce([squares[axes]], *axes)
        return torch.stack(list(squares.values())).sum().sqrt()

    def whole(self, everywhere: bool = False) -> dict[str, Tensor]:
        """Every tensor of the model and the nets that learn in full, on the CPU of the main rank, and nothing
        elsewhere; with `everywhere`, on every rank's own device."""
        found: dict[str, Tensor] = {}
        for name, local in self.tensors(frozen=True).items():
            full = self.layouts[name].whole(local).full_tensor() if name in self.layouts else local
            if everywhere:
                found[name] = full
            elif self.world.is_main:
                found[name] = full.cpu()
        return found


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
