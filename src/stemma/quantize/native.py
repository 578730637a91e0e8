"""Products of quantised matrices on a CPU, in C that is compiled when a process first needs it: `kernels.c` (NF4 and
int8) and `blocks.c` (the types of GGUF files).

Plain PyTorch computes the same everywhere: it is used where there is no C compiler, under autograd, autocast and
`torch.compile`, and for more than a few vectors at once. Products differ from it by the rounding of fp32 sums; weights
made whole are equal bit for bit.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stemma.quantize import packing

ROWS, BYTE_ROWS = 16, 4  # vectors at once up to which a product of codes of 4 (8) bits beats making the weight
SOURCES = tuple(str(Path(__file__).with_name(name)) for name in ("kernels.c", "blocks.c"))
BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")  # types of blocks.c
FLAGS = ("-O3", "-ffp-contract=off", "-fPIC", "-fopenmp-simd")
# for this processor with threads, then without what a compiler does not know. OpenMP is not linked: torch's is used
ATTEMPTS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ())
TYPES: dict[str, Any] = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "i": ctypes.c_int}
ARGUMENTS = {  # of each function: pointers, sizes, small numbers
    "nf4_product": "pppnnni",
    "nf4_weights": "ppni",
    "int8_product": "ppppnnni",
    "blocks_product": "ipnppnnni",
    "blocks_weights": "ipnpnni",
    "packed_product": "ipnppnnni",
    "packed_weights": "ipnpnni",
}
PLAIN = "in plain PyTorch, which makes the weight for each"
TIMEOUT = 60  # seconds for the compiler


class Kernels(NamedTuple):
    """The compiled functions, and what compiled them."""

    library: ctypes.CDLL
    compiler: str


class _NF4(ctypes.Structure):
    """`weights` of kernels.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "levels", "absmax", "codes8", "nested", "absmax2", "offset")),
        ("block", ctypes.c_int64),
    )


@functools.cache
def kernels() -> Kernels | None:
    """The kernels, compiled in under a second into a folder that is gone afterwards; None where that fails."""
    try:
        words = shlex.split(os.environ.get("CC") or "cc")
        compiler = shutil.which(words[0]) if words and os.name == "posix" else None
        if compiler is None:
            return None
        with tempfile.TemporaryDirectory(prefix="stemma-") as folder:
            found = next(_compiled([compiler, *words[1:]], Path(folder)), None)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return None if found is None else Kernels(found, Path(compiler).name)


def _compiled(compiler: list[str], folder: Path) -> Iterator[ctypes.CDLL]:
    """The library by each of ATTEMPTS that compiles and loads."""
    for number, flags in enumerate(ATTEMPTS):
        out = f"kernels{number}.so"
        objects = [Path(source).with_suffix(".o").name for source in SOURCES]
        steps = ((*FLAGS, *flags, "-c", *SOURCES), ("-shared", *objects, "-o", out))
        if not all(_ran([*compiler, *step], folder) for step in steps):
            continue
        try:
            library = ctypes.CDLL(str(folder / out))
        except OSError:  # threads of an OpenMP that torch does not have
            continue
        for name, kinds in ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = [TYPES[kind] for kind in kinds], None
        yield library


def _ran(command: list[str], folder: Path) -> bool:
    return subprocess.run(command, cwd=folder, capture_output=True, timeout=TIMEOUT).returncode == 0


def how() -> str:
    """How products of quantised matrices are computed on this machine's CPU, in words."""
    found = kernels()
    if found is None:
        return f"{PLAIN}: no C compiler (cc, or $CC) was of use"
    return f"by kernels that {found.compiler} compiled for this processor"


def readable(*tensors: Tensor | None) -> bool:
    """Whether the kernels can read these tensors: plain ones in the memory of the CPU, outside of compiled graphs."""
    plain = all(t is None or (type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu") for t in tensors)
    return plain and not torch.compiler.is_compiling()


def few(x: Tensor, most: int) -> bool:
    """Whether a product with `x` (... D) may run in a kernel: at most so many vectors, no gradients, no autocast."""
    rows = x.numel() // max(1, x.shape[-1])
    return 0 < rows <= most and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


class NF4Matrix(NamedTuple):
    """The parts of an NF4 matrix (`NF4Tensor`) with the tables of both codes."""

    codes: Tensor
    absmax: Tensor
    block: int
    absmax2: Tensor | None
    offset: Tensor | None
    levels: Tensor
    dynamic: Tensor

    def product(self, x: Tensor, out: int) -> Tensor | None:
        """`x w^T` for w of `out` rows, ... D -> ... out, in the dtype of `x`; None where no kernel does it."""
        width = x.shape[-1]
        found = self._kernels(x) if width % self.block == 0 and few(x, ROWS) else None
        if found is None:
            return None
        halves = x.reshape(-1, width // 2, 2).mT.float().contiguous()  # even entries, odd entries
        y = torch.empty(len(halves), out)
        where, threads = ctypes.byref(self.struct()), torch.get_num_threads()
        found.library.nf4_product(where, halves.data_ptr(), y.data_ptr(), len(halves), out, width, threads)
        return y.view(*x.shape[:-1], out).to(x.dtype)

    def weights(self) -> Tensor | None:
        """All weights, flat, fp32; None where no kernel makes them, and where the last block is not full."""
        blocks = len(self.absmax)
        found = self._kernels() if 2 * len(self.codes) == blocks * self.block else None
        if found is None:
            return None
        y = torch.empty(blocks * self.block)
        found.library.nf4_weights(ctypes.byref(self.struct()), y.data_ptr(), blocks, torch.get_num_threads())
        return y

    def _kernels(self, x: Tensor | None = None) -> Kernels | None:
        return kernels() if readable(x, self.codes, self.absmax, self.absmax2, self.offset) else None

    def struct(self) -> _NF4:
        """As the kernels read it. It holds no reference to the tensors."""
        scales = (self.absmax, None) if self.absmax2 is None else (None, self.absmax)
        parts = (self.codes, self.levels, *scales, self.dynamic, self.absmax2, self.offset)
        return _NF4(*(None if t is None else t.data_ptr() for t in parts), self.block)


def int8_product(codes: Tensor, scale: Tensor, x: Tensor) -> Tensor | None:
    """`x (scale * codes)^T` for codes E D and scales of E rows, ... D -> ... E, in the dtype of `x`; None where no
    kernel does it."""
    found = kernels() if few(x, BYTE_ROWS) and readable(codes, scale, x) else None
    if found is None:
        return None
    out, width = codes.shape
    wide, gains = x.reshape(-1, width).float().contiguous(), scale.float()
    y = torch.empty(len(wide), out)
    pointers = (codes.data_ptr(), gains.data_ptr(), wide.data_ptr(), y.data_ptr())
    found.library.int8_product(*pointers, len(wide), out, width, torch.get_num_threads())
    return y.view(*x.shape[:-1], out).to(x.dtype)


def blocks_product(kind: str, codes: Tensor, x: Tensor) -> Tensor | None:
    """`x w^T` for a matrix in blocks of a GGUF file, a row of bytes each row: ... D -> ... E, in the dtype of `x`; None
    where no kernel does it."""
    found = kernels() if kind in BLOCKS and few(x, ROWS) and readable(codes, x) else None
    if found is None:
        return None
    wide = x.reshape(-1, x.shape[-1]).float().contiguous()
    y = torch.empty(len(wide), len(codes))
    where = (BLOCKS.index(kind), codes.data_ptr(), codes.shape[1], wide.data_ptr(), y.data_ptr())
    found.library.blocks_product(*where, len(wide), len(codes), wide.shape[1], torch.get_num_threads())
    return y.view(*x.shape[:-1], len(codes)).to(x.dtype)


def packed_product(kind: str, codes: Tensor, out: int, x: Tensor) -> Tensor | None:
    """The same for a matrix of `out` rows that `packing.packed` packed."""
    found = kernels() if few(x, ROWS) and readable(codes, x) else None
    if found is None:
        return None
    wide = x.reshape(-1, x.shape[-1]).float().contiguous()
    y = torch.empty(len(wide), out)
    where = (BLOCKS.index(kind), codes.data_ptr(), codes.shape[1] // packing.ROWS, wide.data_ptr(), y.data_ptr())
    found.library.packed_product(*where, len(wide), out, wide.shape[1], torch.get_num_threads())
    return y.view(*x.shape[:-1], out).to(x.dtype)


def packed_weights(kind: str, codes: Tensor, out: int, width: int) -> Tensor | None:
    """The weights of a packed matrix, fp32; None where no kernel makes them."""
    found = kernels() if readable(codes) else None
    if found is None:
        return None
    y = torch.empty(out, width)
    where = (BLOCKS.index(kind), codes.data_ptr(), codes.shape[1] // packing.ROWS, y.data_ptr())
    found.library.packed_weights(*where, out, width, torch.get_num_threads())
    return y


def blocks_weights(kind: str, codes: Tensor, width: int) -> Tensor | None:
    """Rows of `width` numbers from rows of bytes, fp32; None where no kernel makes them."""
    found = kernels() if kind in BLOCKS and readable(codes) else None
    if found is None:
        return None
    codes, y = codes.contiguous(), torch.empty(len(codes), width)
    where = (BLOCKS.index(kind), codes.data_ptr(), codes.shape[1], y.data_ptr())
    found.library.blocks_weights(*where, len(codes), width, torch.get_num_threads())
    return y
