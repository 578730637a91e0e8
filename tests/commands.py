"""`stemma` commands in processes of their own that start at once: a process that has imported everything forks for each.

What a command gets besides its words: variables, limits, no right to read what is closed to it.
Started as a script this is the process that forks; orders come in as lines of JSON."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOOT = """
import sys
from stemma.data import shards
shards.SHARD = int(sys.argv.pop(1))
from stemma.cli import main
main()
"""


@dataclass
class Ended:
    """What a command came to: its exit code (negative: the signal that ended it) and what it said."""

    code: int
    out: str
    err: str


class Process:
    """A command that runs; `pid` is its own."""

    def __init__(self, starter: Starter, pid: int, folder: Path) -> None:
        self.starter, self.pid, self.folder = starter, pid, folder
        self.code: int | None = None

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        if self.code is None and (self.folder / "code").is_file() and (text := (self.folder / "code").read_text()):
            self.code = int(text)
        return self.code

    def wait(self, limit: float = 120) -> Ended:
        """Wait for its end. A command that takes longer than `limit` seconds is killed, and that is an error."""
        end = time.monotonic() + limit
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"still running after {limit} s: {self.said()}")
            time.sleep(0.002)
        assert self.code is not None
        return Ended(self.code, *self.said())

    def said(self) -> tuple[str, str]:
        read = [(self.folder / name).read_text("utf-8", "replace") for name in ("out", "err")]
        return read[0], read[1]

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)


class Starter:
    """Starts commands; ends with the `with` block. `modules`: what else to import first; `real`: each command is a
    Python of its own instead of a fork."""

    def __init__(self, *modules: str, real: bool = False) -> None:
        self.real = real
        self.folder = tempfile.TemporaryDirectory(prefix="stemma-commands-")
        self.count = 0
        env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        command = [sys.executable, __file__, *(["real"] if real else modules)]
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)

    def start(self, *args: str | Path, **more: Any) -> Process:
        """Start `stemma ARGS`. `env`: variables; `shard`: bytes of a shard of a store; `memory`: bytes of address
        space beyond those that the process begins with; `file`: bytes of a file at most; `closed`: obey the permissions
        of files as others than root do."""
        self.count += 1
        place = Path(self.folder.name, str(self.count))
        place.mkdir()
        for name in ("out", "err"):
            (place / name).touch()
        order = {"args": [str(a) for a in args], "place": str(place), "real": self.real, **more}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Process(self, int(self.process.stdout.readline()), place)

    def run(self, *args: str | Path, limit: float = 120, **more: Any) -> Ended:
        """Start `stemma ARGS` and wait for its end."""
        return self.start(*args, **more).wait(limit)

    def __enter__(self) -> Starter:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.folder.cleanup()


@functools.cache
def starter() -> Starter:
    """The one that tests of a process share; it ends with them."""
    made = Starter("stemma.train.sharded")
    atexit.register(made.__exit__)
    return made


# ---------------------------------------------------------------- in the process that forks


def _become(order: dict[str, Any]) -> None:
    """What a fork is turned into before the command begins."""
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(Path(order["place"], name), os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order.get("env", {}))
    for name, kind in (("memory", resource.RLIMIT_AS), ("file", resource.RLIMIT_FSIZE)):
        if name in order:
            held = 0
            if name == "memory" and not order["real"]:
                held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(kind, (held + order[name],) * 2)
    if order.get("closed"):
        _obey()


def _obey() -> None:
    """Give up root's right to pass over permissions (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH), here and in what is
    started from here."""
    libc = ctypes.CDLL(None, use_errno=True)
    for right in (1, 2):
        libc.prctl(24, right, 0, 0, 0)  # PR_CAPBSET_DROP
    head, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(head, held) == 0:
        for i in range(3):
            held[i] &= ~0b110
        libc.capset(head, held)


def _serve() -> None:
    if sys.argv[1:] != ["real"]:
        from stemma import families

        families.tree()  # imports all that is declared
        for module in ("stemma.cli.training", "stemma.train.run", "rich.console", "tokenizers", "torch.profiler"):
            importlib.import_module(module)
        for module in sys.argv[1:]:
            importlib.import_module(module)
        gc.collect()
        gc.freeze()  # what forks share stays shared
    while line := sys.stdin.readline():
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            pid = os.fork()
            if pid == 0:
                return _command(order)
            os.close(0)
            os.write(1, f"{pid}\n".encode())
            _, status = os.waitpid(pid, 0)
            place = Path(order["place"])
            (place / "code.tmp").write_text(str(os.waitstatus_to_exitcode(status)))
            (place / "code.tmp").rename(place / "code")
            os._exit(0)
    with contextlib.suppress(ChildProcessError):  # collect the processes between
        while True:
            os.waitpid(-1, 0)


def _command(order: dict[str, Any]) -> None:
    _become(order)
    shard = int(order.get("shard", 4_000_000))
    if order["real"]:
        os.execv(sys.executable, [sys.executable, "-c", BOOT, str(shard), *order["args"]])
    from stemma.cli import main
    from stemma.data import shards

    shards.SHARD = shard
    sys.argv = ["stemma", *order["args"]]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the fork has nothing else to end, and ending what it was forked from takes long


if __name__ == "__main__":
    _serve()
