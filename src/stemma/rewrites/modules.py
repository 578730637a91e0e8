"""What a replaced module must be able to do, and how tensors of a checkpoint reach it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from stemma.errors import UsageError

if TYPE_CHECKING:
    from stemma.nn.model import Model

ALIGNED = 64  # bytes: where torch has memory begin. Products of weights that begin elsewhere may round otherwise


def aligned(value: Tensor) -> bool:
    """Whether a tensor begins where memory of its own would."""
    return value.data_ptr() % ALIGNED == 0


class Blocks(NamedTuple):
    """A quantised matrix as a file holds it. `data`: uint8, a row of bytes for each row of the matrix; `unpack`: any
    such rows -> float32; `kind`: the type's name."""

    data: Tensor
    unpack: Callable[[Tensor], Tensor]
    kind: str


class Rewritten(nn.Module):
    """A module in the place of a plain one, called in the same way.

    Where the model reads the plain module's `weight` itself (the embeddings of a tied head), a subclass has a property
    `weight` with the weight it computes with; in the place of the embeddings also `dtype` and `device`, if that weight
    costs work to make."""

    plain: type[nn.Module]  # the type that was replaced
    shapes: dict[str, torch.Size]  # of the plain module's parameters

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if isinstance(module, Rewritten):
            self.plain, self.shapes = module.plain, module.shapes
        else:
            self.plain, self.shapes = type(module), {name: p.shape for name, p in module.named_parameters()}
        self.key = ""  # with the seed, it determines the random numbers

    def load(self, name: str, value: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        """Take the plain module's tensor `name`, in the dtype of its file; `dtype` is what the model computes in. Keep
        no reference to `value`: it may be a slice of a mapped file."""
        raise NotImplementedError

    def load_blocks(self, name: str, blocks: Blocks, device: torch.device, dtype: torch.dtype) -> None:
        """The same for a tensor that the file has quantised; here it is dequantised."""
        self.load(name, blocks.unpack(blocks.data), device, dtype)

    def blocks(self, name: str) -> Blocks | None:
        """The plain module's tensor `name` as a file had it quantised; None if it is not kept so, or changed."""
        return None

    def empty_like(self, other: Rewritten) -> None:
        """Take on the shapes of `other`, a module of the same rewrite, where only loading tells them."""

    def reset_parameters(self, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
        """Initialise the parameters that the plain module does not have."""

    def reset(self, model: Model, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
        """The same where the values come from the model's own."""
        self.reset_parameters(generator, device, dtype)

    def trainable(self) -> Iterable[nn.Parameter]:
        """The parameters that learn where a rewrite freezes the model."""
        return ()

    def unmergeable(self) -> str | None:
        """Why no plain module computes the same; None if one does."""
        return None

    def merge(self) -> nn.Module:
        """A plain module that computes the same. This one stays as it is."""
        raise NotImplementedError

    def undo(self) -> nn.Module:
        """The module without what the rewrite added: the one it replaced, or the nearest plain one."""
        return self.merge()


class Wrapped(Rewritten):
    """A module that keeps the one it replaces as `base`, and adds to it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.base = base

    def load(self, name: str, value: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        load_tensor(self.base, name, value, device, dtype)

    def load_blocks(self, name: str, blocks: Blocks, device: torch.device, dtype: torch.dtype) -> None:
        load_tensor(self.base, name, blocks, device, dtype)

    def empty_like(self, other: Rewritten) -> None:
        if isinstance(self.base, Rewritten) and isinstance(other, Wrapped) and isinstance(other.base, Rewritten):
            self.base.empty_like(other.base)

    def merged_base(self) -> nn.Module:
        """The base as a plain module."""
        return self.base.merge() if isinstance(self.base, Rewritten) else self.base

    def unmergeable(self) -> str | None:
        return self.base.unmergeable() if isinstance(self.base, Rewritten) else None

    def undo(self) -> nn.Module:
        return self.base


def load_tensor(
    root: nn.Module,
    name: str,
    value: Tensor | Blocks,
    device: torch.device,
    dtype: torch.dtype,
    keep: bool = False,
) -> None:
    """Give `root` the tensor of a checkpoint that the plain model calls `name`. A replaced module takes it in its own
    way; a plain one gets a copy in `dtype`, or with `keep` the memory of `value` itself where its type, device, layout
    and alignment fit: nothing else may use that memory. `gate.3` is the fourth slice of a stacked parameter."""
    names = name.split(".")
    module = root
    for i, child in enumerate(names):
        if isinstance(module, Rewritten):
            inner = ".".join(names[i:])
            try:
                if isinstance(value, Blocks):
                    module.load_blocks(inner, value, device, dtype)
                else:
                    module.load(inner, value, device, dtype)
            except UsageError as error:  # values that cannot be stored
                raise UsageError(f"{name}: {error}") from None
            return
        if i < len(names) - 1 and child in module._modules:
            module = module.get_submodule(child)
            continue
        plain = value.unpack(value.data) if isinstance(value, Blocks) else value
        _set(module, names[i:], plain, device, dtype, keep)
        return


def replaced(root: nn.Module, name: str) -> bool:
    """Whether the tensor `name` of the plain model belongs to a replaced module."""
    module = root
    for child in name.split("."):
        if isinstance(module, Rewritten):
            return True
        if child not in module._modules:
            return False
        module = module.get_submodule(child)
    return isinstance(module, Rewritten)


def _set(
    module: nn.Module, names: list[str], value: Tensor, device: torch.device, dtype: torch.dtype, keep: bool
) -> None:
    """Set the parameter `names[0]` of a module, or slice `names[1]` of it."""
    old = getattr(module, names[0])
    learns = old is None or old.requires_grad
    if len(names) == 1:
        fits = value.dtype == dtype and value.device == device and value.is_contiguous() and aligned(value)
        held = _alone(value) if keep and fits else torch.empty(value.shape, dtype=dtype, device=device).copy_(value)
        setattr(module, names[0], nn.Parameter(held, requires_grad=learns))
        return
    place = torch.empty(0, device=device).device  # "cuda" is "cuda:0" of a tensor
    if (old.device, old.dtype) != (place, dtype):  # the first of its slices
        old = nn.Parameter(torch.empty(old.shape, dtype=dtype, device=device), requires_grad=learns)
        setattr(module, names[0], old)
    with torch.no_grad():
        old[int(names[1])].copy_(value)


def _alone(value: Tensor) -> Tensor:
    """The same memory as a tensor whose storage ends where it ends: what is copied or pickled with it is it alone."""
    start = value.storage_offset() * value.itemsize
    storage = value.untyped_storage()[start : start + value.nbytes]
    return torch.empty(0, dtype=value.dtype).set_(storage, 0, value.shape, value.stride())


def with_weight(module: nn.Module, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """A copy of a linear layer, an embedding or a head with another weight; all else is shared, or `bias` where
    given."""
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        raise UsageError(f"a {type(module).__name__} has no weight that could be replaced")
    new = copy.copy(module)
    new._parameters = dict(module._parameters)
    new.weight = nn.Parameter(weight)
    if bias is not None:
        new.bias = nn.Parameter(bias)
    return new
