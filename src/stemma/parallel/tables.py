"""Tensor parallelism as a table: which modules are split how, by path (Shoeybi et al. 2019, arXiv:1909.08053, section
3). Columns of q, k, v, up and gate, rows of o and down: one sum over the processes a branch, and heads stay whole."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from stemma.errors import UsageError
from stemma.nn.attention import BucketTable
from stemma.nn.heads import EMDHead
from stemma.nn.mlp import Experts
from stemma.nn.model import Model
from stemma.nn.norms import HeadNorm
from stemma.nn.positions import ALiBi, Buckets, Learned
from stemma.rewrites.modules import Rewritten


class Rows(ParallelStyle):
    """An embedding split by rows, as by `RowwiseParallel`, but waits for its output: an asynchronous sum is a tensor of
    another type, and a compiled stack that reads it loses the gradient's type."""

    def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
        def split(_: str, part: nn.Module, grid: Any) -> None:
            for name, p in list(part.named_parameters(recurse=False)):
                part.register_parameter(name, nn.Parameter(distribute_tensor(p.detach(), grid, [Shard(0)])))

        def enter(_: nn.Module, inputs: Any, grid: Any) -> Any:
            return (DTensor.from_local(inputs[0], grid, [Replicate()], run_check=False),)

        return distribute_module(module, device_mesh, split, enter, _gathered)


class Vocabulary(ParallelStyle):
    """A head whose vocabulary matrix (its own or the embeddings') and bias are split by rows; its other parameters are
    replicated. The logits are gathered."""

    def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
        def split(_: str, part: nn.Module, grid: Any) -> None:
            place = Shard(0) if part is module else Replicate()
            for name, p in list(part.named_parameters(recurse=False)):
                part.register_parameter(name, nn.Parameter(distribute_tensor(p.detach(), grid, [place])))

        def enter(_: nn.Module, inputs: Any, grid: Any) -> Any:
            x, tokens = inputs
            return DTensor.from_local(x, grid, [Replicate()], run_check=False), tokens

        return distribute_module(module, device_mesh, split, enter, _gathered)


def _gathered(_: nn.Module, out: Any, grid: Any) -> Any:
    return out.redistribute(grid, [Replicate()]).to_local()


# module path -> how it is split; paths that a model lacks are skipped
TENSOR: tuple[tuple[str, ParallelStyle], ...] = (
    ("embed.tokens", Rows()),
    ("lm", Vocabulary()),
    ("*.attention.[qkv]", ColwiseParallel()),
    ("*.attention.o", RowwiseParallel()),
    ("*.cross.[qkv]", ColwiseParallel()),
    ("*.cross.o", RowwiseParallel()),
    ("*.mlp.up", ColwiseParallel()),
    ("*.mlp.gate", ColwiseParallel()),
    ("*.mlp.down", RowwiseParallel()),
)
# bias tables have a column for each head
BIASES: tuple[tuple[str, ParallelStyle], ...] = (
    ("*.position.table", ColwiseParallel()),
    ("*.relative.table", ColwiseParallel()),
)
# replicated, but each rank sees only its own heads: gradients add up
SUMMED = ("*.attention.q_norm.*", "*.attention.k_norm.*")


def unsliceable(model: Model, n: int) -> str | None:
    """Why the matrices of this network cannot be split over `n` ranks; None if they can."""
    dims = model.dims
    if (why := dims.uneven(n)) is not None:
        return why
    if dims.inner != 1 and model.arch.streams is not None:
        return "tp does not know two streams"
    for path, module in model.named_modules():
        if isinstance(module, Rewritten):
            return f"tp does not know how to split {path}, which a rewrite replaced"
        if isinstance(module, Experts | HeadNorm | EMDHead):
            return f"tp does not know how to split {path}, of type {type(module).__name__}"
        relative = getattr(module, "relative", None)
        if isinstance(relative, nn.Module) and not isinstance(relative, BucketTable):
            return f"tp does not know how to split {path}.relative, of type {type(relative).__name__}"
    return None


def slice_matrices(model: Model, grid: Any) -> None:
    """Split the matrices of `model` over the ranks of `grid`. Raises UsageError for a network that cannot be split."""
    if (why := unsliceable(model, grid.size())) is not None:
        raise UsageError(f"this network cannot be trained on this mesh: {why}; use fsdp instead")
    plan: dict[str, ParallelStyle] = {}
    for path, module in model.named_modules():
        owner = model.get_submodule(path.rpartition(".")[0])
        table = BIASES + TENSOR if isinstance(owner, Buckets | BucketTable) else TENSOR
        if isinstance(module, ALiBi):
            heads = model.dims.heads // grid.size()
            module.own = slice(grid.get_local_rank() * heads, (grid.get_local_rank() + 1) * heads)
        if isinstance(owner, Learned):
            continue
        if isinstance(module, nn.Module) and (style := _style(table, path)) is not None:
            plan[path] = style
    parallelize_module(model, grid, plan)


def _style(table: tuple[tuple[str, ParallelStyle], ...], path: str) -> ParallelStyle | None:
    return next((style for pattern, style in table if fnmatchcase(path, pattern)), None)


def sums_over_slices(name: str) -> bool:
    """Whether the gradient of a parameter adds up over the slices."""
    return any(fnmatchcase(name, pattern) for pattern in SUMMED)
