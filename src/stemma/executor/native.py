"""The executor's library: C compiled for this processor when it is first needed, and kept for the next process.

It lies in `$XDG_CACHE_HOME/stemma` (`~/.cache/stemma`), under a name with a hash of the sources, the compiler, the
flags and the processor: a folder that several machines share has one for each. A file that another user could have
written is not loaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch  # noqa: F401  its OpenMP is the one that the library uses

FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fPIC", "-fopenmp-simd")
# for this processor with threads, then without what a compiler does not know. OpenMP is not linked: torch's is used
ATTEMPTS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ())
TIMEOUT = 120  # seconds for the compiler
FUNCTIONS = {
    "tape_size": 2,
    "tape_run": 2,
    "tape_reads": 1,
    "many_size": 1,
    "many_run": 1,
    "packed_tile": 0,
}  # pointers that each takes
QUANTIZE = Path(__file__).resolve().parent.parent / "quantize"  # whose kernels stored.c takes in


class Library(NamedTuple):
    """The compiled library, where it lies, and what compiled it."""

    code: ctypes.CDLL
    path: Path
    compiler: str


def wanted() -> bool:
    """Whether the environment lets C compute (`STEMMA_EXECUTOR=off` does not)."""
    return os.environ.get("STEMMA_EXECUTOR") != "off"


@functools.cache
def library() -> Library | None:
    """The library, from the cache or compiled (a few seconds); None where that fails."""
    try:
        words = shlex.split(os.environ.get("CC") or "cc")
        compiler = shutil.which(words[0]) if words and os.name == "posix" else None
        return None if compiler is None else next(_found([compiler, *words[1:]]), None)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def sources() -> list[Path]:
    """The C files and headers, in the order of their names."""
    return sorted(p for p in Path(__file__).parent.iterdir() if p.suffix in (".c", ".h"))


def folder() -> Path:
    """Where compiled libraries are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stemma"


def _found(compiler: list[str]) -> Iterator[Library]:
    """The library by each of ATTEMPTS that is kept or compiles, and that loads."""
    for flags in ATTEMPTS:
        path = folder() / f"executor-{_mark(compiler, flags)}.so"
        if not _own(path):
            made = _compiled(compiler, flags, path)
            if made is None:
                continue
            path = made
        try:
            code = ctypes.CDLL(str(path))
        except OSError:  # threads of an OpenMP that torch does not have
            continue
        for name, pointers in FUNCTIONS.items():
            function: Any = getattr(code, name)
            function.argtypes, function.restype = [ctypes.c_void_p] * pointers, ctypes.c_int64
        yield Library(code, path, Path(compiler[0]).name)


def _mark(compiler: list[str], flags: tuple[str, ...]) -> str:
    """A hash of all that the compiled code follows from."""
    seen = hashlib.sha256()
    for path in (*sources(), *sorted(QUANTIZE.glob("*.c"))):
        seen.update(path.name.encode() + b"\0" + path.read_bytes())
    real = Path(compiler[0]).resolve()
    seen.update(repr((compiler, str(real), real.stat().st_mtime_ns, FLAGS, flags, processor())).encode())
    return seen.hexdigest()[:20]


@functools.cache
def processor() -> str:
    """The processor's kind and instructions."""
    lines = {platform.machine(), platform.processor()}
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        text = ""
    wanted = ("flags", "Features", "model name", "CPU part")
    lines |= {line for line in text.splitlines() if line.startswith(wanted)}
    return "\n".join(sorted(lines))


def _facts(name: str) -> str:
    """The first line of this name in /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return ""
    lines = (line.split(":", 1) for line in text.splitlines())
    return next((line[1].strip() for line in lines if len(line) == 2 and line[0].strip() == name), "")


def processor_name() -> str:
    """What the processor calls itself."""
    return _facts("model name") or platform.processor() or platform.machine()


def vendor() -> str:
    """Who made the processor, as it says itself."""
    return _facts("vendor_id")


def instructions() -> list[str]:
    """The vector instructions of the processor that the library has code for."""
    have = set((_facts("flags") or _facts("Features")).split())
    wanted = (
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512_vnni",
        "avx_vnni",
        "avx512_bf16",
        "asimd",
    )
    return [name for name in wanted if name in have]


def _own(path: Path) -> bool:
    """Whether a kept file is there, is this user's, and can be written by nobody else."""
    try:
        found, above = path.stat(), path.parent.stat()
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    return all(s.st_uid == os.getuid() and not s.st_mode & others for s in (found, above))


def _compiled(compiler: list[str], flags: tuple[str, ...], path: Path) -> Path | None:
    """Compile into `path`, or where that folder cannot be used into one that ends with the process."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as place:
            if not _compile(compiler, flags, Path(place)):
                return None
            os.replace(Path(place) / "executor.so", path)
        if _own(path):
            return path
    except OSError:
        pass
    place = _passing()
    return Path(place) / "executor.so" if _compile(compiler, flags, Path(place)) else None


@functools.cache
def _passing() -> str:
    held = tempfile.TemporaryDirectory(prefix="stemma-")
    _HELD.append(held)
    return held.name


_HELD: list[tempfile.TemporaryDirectory[str]] = []


def _compile(compiler: list[str], flags: tuple[str, ...], place: Path) -> bool:
    files = [str(p) for p in sources() if p.suffix == ".c"]
    objects = [Path(name).with_suffix(".o").name for name in files]
    steps = ((*FLAGS, *flags, "-c", *files), ("-shared", *objects, "-o", "executor.so"))
    return all(
        subprocess.run([*compiler, *step], cwd=place, capture_output=True, timeout=TIMEOUT).returncode == 0
        for step in steps
    )
