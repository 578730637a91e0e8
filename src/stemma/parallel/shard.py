"""A model spread over a mesh, and what each process holds of it: plain local tensors that an optimiser can work on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from stemma.errors import UsageError
from stemma.nn.attention import Attention
from stemma.nn.model import Model
from stemma.nn.stack import Block
from stemma.parallel.processes import World
from stemma.parallel.tables import slice_, summed


@dataclass(frozen=True)
class Layout:
    """Where the local part of a tensor belongs: the mesh, a placement a dimension of it, and the whole's shape. `axes`:
    those along which processes hold different parts."""

    grid: Any
    placements: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        pairs = zip(self.grid.mesh_dim_names, self.placements, strict=True)
        return tuple(axis for axis, place in pairs if not place.is_replicate())

    def whole(self, local: Tensor) -> DTensor:
        """The distributed tensor of which `local` is this process's part."""
        return DTensor.from_local(
            local.detach(), self.grid, self.placements, run_check=False, shape=self.shape, stride=self.stride
        )

    def box(self) -> tuple[slice, ...]:
        """Which part of the whole is local."""
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        sizes, starts = compute_local_shape_and_global_offset(self.shape, self.grid, self.placements)
        return tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))


class Step(nn.Module):
    """An objective's loss as the forward pass of one module, so that sharding has a root whose weights are gathered
    while it runs."""

    def __init__(self, objective: Any, model: Model, nets: Mapping[str, Model]) -> None:
        super().__init__()
        self.objective, self.model, self.nets = objective, model, nn.ModuleDict(nets)
        self.found: Any = None

    def forward(self, batch: Any) -> dict[str, Tensor]:
        self.found = self.objective.loss(self.model, batch, dict(self.nets.items()))
        sums: dict[str, Tensor] = self.found.sums
        return sums


class Through:
    """An objective whose loss goes through the root of a sharded model; all else is the objective's own."""

    def __init__(self, objective: Any, root: Step) -> None:
        self._objective, self._root = objective, root

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def loss(self, model: Model, batch: Any, nets: Any = None) -> Any:
        sums = self._root(batch)
        found, self._root.found = self._root.found, None
        found.sums = sums
        return found


def shard(root: Step, grid: Any) -> None:
    """Shard parameters, gradients and with them the optimiser among the processes of `grid`, a block at a time; what
    stands outside of the blocks is gathered for the whole step (Zhao et al. 2023, arXiv:2304.11277)."""
    for module in list(root.modules()):
        if isinstance(module, Block):
            if isinstance(cross := module.cross, Attention):  # its keys are made before the block runs
                fully_shard([cross.k, cross.v], mesh=grid)
            fully_shard(module, mesh=grid)
            register_fsdp_forward_method(module, "reread")
    fully_shard(root, mesh=grid)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are divided by the targets of all processes already
            module.set_force_sum_reduction_for_comms(True)


class Spread:
    """What one process holds of the model and the nets that learn with it, by the names of the whole.

    `parameters()` and `named()` are plain tensors that share memory with the local parts, `collect()` gives them their
    gradients. `layouts` has those that are parts of a larger tensor."""

    def __init__(self, learners: Any, world: World, root: Step) -> None:
        self.model, self.nets, self.world = learners.model, learners.nets, world
        if (world.shape.tp > 1 or world.shape.fsdp > 1) and len(root.nets):
            raise UsageError(f"mesh {world.shape}: networks beside the model are not split yet; use dp")
        if world.shape.tp > 1:
            slice_(self.model, world.part("tp"))
        if world.shape.fsdp > 1:
            if self.model.arch.streams is not None:
                raise UsageError(f"mesh {world.shape}: fsdp does not know two streams yet; use dp")
            shard(root, world.part("fsdp"))
        self.source = dict(learners.named())
        self.layouts: dict[str, Layout] = {}
        self.held: dict[str, nn.Parameter] = {}
        for name, p in self.source.items():
            if isinstance(p, DTensor):
                self.layouts[name] = Layout(p.device_mesh, tuple(p.placements), p.shape, p.stride())
            self.held[name] = nn.Parameter(_local(p).detach(), requires_grad=p.requires_grad)
        self._learners = learners

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(self.held.values())

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.held.items()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As of a module: an optimiser may go by names."""
        return self.named()

    def tensors(self) -> dict[str, Tensor]:
        """Local parameters and kept buffers by name, without gradients."""
        found = {name: _local(t).detach() for name, t in self._learners.tensors().items()}
        return found | {name: p.detach() for name, p in self.held.items()}

    def collect(self) -> None:
        """Move gradients to the local parameters, summed over all processes that hold the same part."""
        names = list(self.source)
        flags = torch.tensor([self.source[n].grad is not None for n in names], dtype=torch.int32)
        flags = flags.to(self.world.device)
        self.world.add([flags], "dp")
        ready: list[Tensor] = []
        for name, there in zip(names, flags.tolist(), strict=True):
            if not there:
                continue
            p, held = self.source[name], self.held[name]
            held.grad = torch.zeros_like(held) if p.grad is None else self._part(name, p.grad)
            p.grad = None
            ready.append(held.grad)
        self.world.add(ready, "dp")
        self.world.add([p.grad for n, p in self.held.items() if p.grad is not None and summed(n)], "tp")

    def _part(self, name: str, grad: Tensor) -> Tensor:
        """The local part of a gradient, laid out as its parameter is."""
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
            self.world.add([squares[axes]], *axes)
        return torch.stack(list(squares.values())).sum().sqrt()

    def whole(self) -> dict[str, Tensor]:
        """Every tensor of the model and its nets in full, on the CPU of the leading process; nothing elsewhere."""
        found: dict[str, Tensor] = {}
        for name, local in self.tensors().items():
            full = self.layouts[name].whole(local).full_tensor() if name in self.layouts else local
            if self.world.leads:
                found[name] = full.cpu()
        return found


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
