"""A tape under construction: buffers, instructions, and the weights that they read where they lie."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from stemma.executor.structs import constants, structures

KINDS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
NONE = -1  # no buffer


class NotLowered(Exception):
    """What stands in the way of a tape, in words."""


def number(name: str) -> int:
    """A constant of the C headers."""
    return constants()[name]


def struct(name: str, **fields: Any) -> Any:
    """A structure of the C headers. What is not given is 0."""
    return structures()[name](**fields)


class Tape:
    """Instructions over buffers. Structures and tensors that C reads are kept alive with it."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.widths: list[tuple[int, bool]] = []
        self.names: dict[str, int] = {}
        self.steps: list[tuple[int, int, Any]] = []
        self.weights: list[Tensor] = []  # what is read in place

    # ------------------------------------------------------------ buffers

    def buffer(self, name: str, width: int, private: bool = False) -> int:
        """The number of a buffer of this name and width, made where there is none. `private`: every thread may fill its
        own."""
        key = f"{name} {width}"
        if key not in self.names:
            self.names[key] = len(self.widths)
            self.widths.append((width, private))
        return self.names[key]

    # ------------------------------------------------------------ weights

    def vector(self, x: Tensor | None) -> Any:
        """Numbers side by side, or none."""
        if x is None:
            return struct("vector")
        self._check(x)
        if not x.is_contiguous():
            raise NotLowered("a vector of the model is not contiguous")
        return struct("vector", kind=number(KINDS[x.dtype]), data=x.data_ptr())

    def plain(self, x: Tensor) -> Tensor:
        """A tensor whose memory C reads. Raises NotLowered for one that has none."""
        if type(x) not in (Tensor, nn.Parameter) or x.device.type != "cpu":
            raise NotLowered(f"its weights are not plain tensors in the memory of the CPU ({type(x).__name__})")
        self.weights.append(x)
        return x

    def matrix(self, x: Tensor) -> Any:
        """A matrix of floats, row after row."""
        self._check(x)
        if x.stride(-1) != 1:
            raise NotLowered("a matrix of the model lies column after column")
        rows, width = x.shape
        kind, stride = number(KINDS[x.dtype]), x.stride(0) * x.element_size()
        return struct("matrix", kind=kind, out=rows, **{"in": width}, data=x.data_ptr(), stride=stride)

    def lookup(self, x: Tensor, source: int, offset: int = 0, factor: float = 1.0) -> Any:
        """Rows of a table."""
        table = self.matrix(x)
        vector = struct("vector", kind=table.kind, data=table.data)
        fields = {"source": source, "offset": offset, "stride": table.stride, "rows": table.out}
        return struct("lookup", **fields, table=vector, factor=factor)

    def lookup_whole(self, table: Any, source: int, factor: float) -> Any:
        """Rows of a matrix of any kind."""
        return struct("lookup", source=source, rows=table.out, whole=self.array("matrix", [table]), factor=factor)

    def _check(self, x: Tensor) -> None:
        self.plain(x)
        if x.dtype not in KINDS:
            raise NotLowered(f"its weights are of type {str(x.dtype).removeprefix('torch.')}")

    # ------------------------------------------------------------ instructions

    def add(self, operation: str, step: Any, sync: int = 1) -> None:
        """Append an instruction. `sync`: see `instruction` of tape.h."""
        self.kept.append(step)
        self.steps.append((number(operation), sync, step))

    def fill(self, to: int) -> int:
        """The `sync` of an instruction that fills the rows of a buffer."""
        return 2 if self.widths[to][1] else 1

    def array(self, name: str, items: list[Any]) -> int:
        """The address of structures side by side."""
        made = (structures()[name] * len(items))(*items)
        self.kept.append(made)
        return ctypes.addressof(made)

    def product(self, source: int, parts: list[Any]) -> None:
        """Products of one buffer with several matrices; those that want it in one form share an instruction."""
        while parts:
            form = form_of(parts[0])
            same = [p for p in parts if form_of(p) == form]
            parts = [p for p in parts if form_of(p) != form]
            step = struct("product_step", **{"from": source}, count=len(same), parts=self.array("part", same))
            self.add("PRODUCT", step)

    def finish(self, logits: int, tail: int, stream: int) -> Any:
        """The tape as C reads it. `tail`: the number of the head's first instruction, which reads `stream`."""
        items = [struct("instruction", operation=o, sync=s, step=ctypes.addressof(x)) for o, s, x in self.steps]
        buffers = [struct("buffer", width=width, private=private) for width, private in self.widths]
        return struct(
            "tape",
            count=len(items),
            buffers=len(buffers),
            logits=logits,
            tail=tail,
            stream=stream,
            vocab=self.widths[logits][0],
            instructions=self.array("instruction", items),
            buffer=self.array("buffer", buffers),
        )


def form_of(p: Any) -> str:
    """The form in which a product wants its vectors."""
    kind = p.w.kind
    if number("Q8_0") <= kind <= number("Q6_K"):
        return "8 bits"
    if kind == number("BF16"):
        return "bf16"
    return "halves" if kind == number("NF4") else "plain"


def part(
    w: Any,
    to: int,
    *,
    bias: Any = None,
    raw: int | None = None,
    beside: int = NONE,
    residual: int = NONE,
    residual_factor: float = 1.0,
    times: int = NONE,
    act: str = "NO_ACTIVATION",
    scale: float = 1.0,
    factor: float = 1.0,
    cap: float = 0.0,
    check: bool = False,
) -> Any:
    """A product and what follows it (see `part` of tape.h). `raw`: where the product goes first, `to` by default."""
    return struct(
        "part",
        w=w,
        bias=struct("vector") if bias is None else bias,
        raw=to if raw is None else raw,
        to=to,
        beside=beside,
        residual=residual,
        residual_factor=residual_factor,
        times=times,
        act=number(act),
        check=check,
        scale=scale,
        factor=factor,
        cap=cap,
    )
