"""Bytes of a training step as it runs on the meta device: what is alive at each moment, and what more layers add."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Bytes = NDArray[np.int64]
ADD = torch.ops.aten.add.Tensor
NUMBER = torch.ops.aten._local_scalar_dense.default


class Bytestream:
    """Bytes over a step, one entry an allocation: `held` without kept gradients, `grads` kept for weights, `phase` the
    number of layer boundaries that were passed."""

    def __init__(self, held: list[int], grads: list[int], phase: list[int]) -> None:
        self.held, self.grads = np.asarray(held, dtype=np.float64), np.asarray(grads, dtype=np.float64)
        self.starts = np.flatnonzero(np.diff(np.asarray(phase), prepend=-1))

    def total(self, shards: int, accumulated: bool) -> NDArray[np.float64]:
        """Bytes at each moment where a device keeps one of `shards` parts of a gradient. `accumulated`: in the last of
        several micro-batches, when all gradients are there from the start."""
        return self.held + (self.grads[-1] if accumulated else self.grads) / shards


class Storage:
    """Bytes of one storage; `layers`: the stack whose traced cycle made it; `weight`: whose gradient it holds."""

    __slots__ = ("layers", "ref", "size", "weight")

    def __init__(self, size: int, layers: Layers | None) -> None:
        self.size, self.layers = size, layers
        self.ref: Any = None
        self.weight: Any = None


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are made within it."""

    def __init__(self) -> None:
        super().__init__()
        alone()  # measured before this mode is on
        self.bytes = self.grads = 0
        self.backward = False
        self.inside: Layers | None = None  # whose cycle is running forward
        self.layers: list[Layers] = []
        self.more = self.more_grads = 0  # of layers that are not run
        self.phase = 0
        self._known: dict[int, Any] = {}
        self._made: dict[Any, list[Any]] = {}
        self._held: list[int] = []
        self._grads: list[int] = []
        self._phase: list[int] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled: torch need not load its compiler to leave it alone

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and hasattr(args[0], "values") and (found := valued(func, args, kwargs)) is not None:
            out = found
        elif func is NUMBER:
            return 0  # a number that an objective reports; here it has none
        elif func is ADD and self.backward and in_place(*args):
            return args[0]
        else:
            out = self.run(func, args, kwargs)
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return out

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation. One that makes new tensors runs once for each kind of inputs: torch's kernels for the meta
        device are Python, which takes ten times as long as to make tensors of known shapes."""
        if not fresh(func):
            return func(*args, **kwargs)
        try:
            made = self._made.get(key := (func, _kind(args), _kind(tuple(kwargs.items()))))
        except TypeError:  # an argument without a hash
            return func(*args, **kwargs)
        if made is not None:
            found = [torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype in made]
            return found[0] if len(func._schema.returns) == 1 else tuple(found)
        out = func(*args, **kwargs)
        outs = out if isinstance(out, tuple) else (out,)
        if all(isinstance(one, Tensor) and self.new(one) for one in outs):  # `_unsafe_view` says so and is a view
            self._made[key] = [(one.shape, one.stride(), one.dtype) for one in outs]
        return out

    def new(self, tensor: Tensor) -> bool:
        """Whether a tensor's storage was not there before."""
        return tensor.device.type == "meta" and id(tensor.untyped_storage()) not in self._known

    def see(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it is gone."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known or tensor.device.type != "meta":
            return
        made = Storage(storage.nbytes(), self.inside)
        made.ref = weakref.ref(storage, partial(self.gone, key, made))
        self._known[key] = made
        self.bytes += made.size
        if made.layers is not None:
            made.layers.bytes += made.size
        self.note()

    def gone(self, key: int, made: Storage, _: Any) -> None:
        self._known.pop(key, None)
        if made.weight is None:
            self.bytes -= made.size
        if made.layers is not None:
            made.layers.bytes -= made.size

    def spare(self, tensors: Any) -> None:
        """Count nothing for tensors that were there before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[id(storage)] = storage

    def keep(self, layers: Layers | None, weight: Tensor) -> None:
        """A weight's gradient is complete and stays."""
        assert weight.grad is not None
        made = self._known.get(id(weight.grad.untyped_storage()))
        if not isinstance(made, Storage) or made.weight is not None:
            return
        made.weight = weight
        self.bytes -= made.size
        self.grads += made.size
        if layers is not None:
            layers.grads += made.size
        self.note()

    def note(self) -> None:
        self._held.append(self.bytes + self.more)
        self._grads.append(self.grads + self.more_grads)
        self._phase.append(self.phase)

    @property
    def moments(self) -> int:
        return len(self._held)

    def add(self, size: int, start: int) -> None:
        """Add bytes to the moments from `start` to the last but one."""
        for i in range(start, len(self._held) - 1):
            self._held[i] += size

    def settle(self, layers: Sequence[Layers]) -> None:
        """Read again what the layers that are not run hold."""
        for one in layers:
            one.held, one.kept = one.more * one.bytes, one.more * one.grads
        self.more = sum(one.held for one in self.layers)
        self.more_grads = sum(one.kept for one in self.layers)
        self.note()

    def boundary(self) -> None:
        self.phase += 1
        self.note()

    def stream(self) -> Bytestream:
        return Bytestream(self._held, self._grads, self._phase)


class Layers:
    """The layers of a stack while it runs: `cycle` of them, from number `first` on, stand for each of `more` cycles
    that are left out.

    Their activations and gradients are counted as they are made, and added `more` times where none is half-way: before
    the last layer in the forward pass, below the cycle in the backward pass. The first and last layers, which may
    differ, are no part of the cycle."""

    def __init__(self, live: Live, stack: Any, first: int, cycle: int, more: int, inner: int) -> None:
        self.live, self.stack, self.first, self.cycle, self.more, self.inner = live, stack, first, cycle, more, inner
        self.bytes = self.grads = self.held = self.kept = self.calls = 0
        self.starts: list[int] = []  # moments at which layers began
        live.layers.append(self)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of the cycle."""
        span = range(self.first * self.inner, (self.first + self.cycle) * self.inner)
        return [self.stack.blocks[self.stack.order[at][0]] for at in span]

    def watch(self) -> list[Any]:
        """Put hooks on the stack; they are to be removed."""
        ends = [self.stack.register_forward_pre_hook(self.begin), self.stack.register_forward_hook(self.end)]
        return ends + [block.register_forward_hook(self.after) for block in self.stack.blocks]

    def begin(self, *_: Any) -> None:
        self.calls = 0
        self.starts = [self.live.moments] * 2

    def end(self, *_: Any) -> None:
        """The stack has run forward; what its other layers hold was there when its last layer began."""
        if self.more:
            before = self.held
            self.live.settle([self])
            self.live.add(self.held - before, self.starts[-2])

    def after(self, block: Any, inputs: Any, out: Tensor) -> None:
        """A block has run forward."""
        if self.live.backward:
            return
        self.calls += 1
        layer, part = divmod(self.calls, self.inner)  # of the next block
        if part:
            return
        self.live.boundary()
        self.starts.append(self.live.moments)
        if out.requires_grad:
            out.register_hook(partial(self.before, layer))
        if self.more and layer == self.first:
            self.live.inside = self
        elif self.more and layer == self.first + self.cycle:
            self.live.inside = None

    def before(self, layer: int, grad: Tensor) -> None:
        """The backward pass has come down to where a layer begins."""
        self.live.boundary()
        if self.more and layer == self.first:
            self.live.settle([self])


@contextmanager
def watched(live: Live, weights: Sequence[tuple[nn.Parameter, Layers | None]]) -> Iterator[None]:
    """Count the gradients of `weights` and the layers of `live` while this is open."""
    hooks = [hook for layers in live.layers for hook in layers.watch()]
    hooks += [p.register_post_accumulate_grad_hook(partial(live.keep, layers)) for p, layers in weights]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for p, _ in weights:
            p.grad = None


@functools.cache
def fresh(func: Any) -> bool:
    """Whether an operation returns new tensors only, no view and no argument."""
    returns = func._schema.returns
    return bool(returns) and all(str(r.type) == "Tensor" and r.alias_info is None for r in returns)


def _kind(args: Any) -> Any:
    """What the shapes of an operation's results depend on."""
    if isinstance(args, Tensor):
        return args.shape, args.stride(), args.dtype
    if isinstance(args, (tuple, list)):
        return tuple(map(_kind, args))
    return type(args), args


def with_values(values: Tensor) -> Tensor:
    """A tensor on the meta device whose values are known, so that a loss can branch on them."""
    found: Any = torch.empty_like(values, device="meta")
    found.values = values
    return found


def valued(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operation on tensors whose values are known; None where some are not."""
    tensors = [a for a in tree_leaves(args) if isinstance(a, Tensor)]
    if not all(hasattr(a, "values") and isinstance(a.values, Tensor) for a in tensors):
        return None
    real = tree_map(lambda a: a.values if isinstance(a, Tensor) else a, args)
    found = func(*real, **kwargs)
    if kwargs.get("device") == torch.device("cpu"):
        return found  # a copy that is read on the host
    return tree_map(lambda a: with_values(a) if isinstance(a, Tensor) else a, found)


def in_place(a: Any, b: Any, *_: Any) -> bool:
    """Whether autograd would add `b` into `a`, a gradient that nothing else holds. It never does while a dispatch mode
    looks on, so that the step of a real run has one tensor fewer."""
    if torch.is_grad_enabled() or not isinstance(b, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return (a._use_count(), torch._C._storage_Use_Count(a.untyped_storage()._cdata)) == alone()


@functools.cache
def alone() -> tuple[int, int]:
    """The counts of references, of a tensor and of its storage, that `in_place` reads of a gradient that nothing else
    holds."""
    found: list[tuple[int, int]] = []

    class Count(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is ADD and not torch.is_grad_enabled():
                found.append(_counts(*args))
            return func(*args, **(kwargs or {}))

    def _counts(a: Any, b: Any, *_: Any) -> tuple[int, int]:
        return a._use_count(), torch._C._storage_Use_Count(a.untyped_storage()._cdata)

    leaf = torch.empty(2, device="meta", requires_grad=True)
    with Count():
        x = leaf.exp()
        (x.exp() * x.sin()).backward(torch.empty(2, device="meta"))
    return found[0]
