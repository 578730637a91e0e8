"""One case in this process: what the command came to, and what is wrong with that."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz.cases import MARK, Case, Subjects, lay
from stemma.errors import StemmaError, printable

CODES = (0, 2, 3, 4, 5, 6, 130, 141)  # 1 is of errors without a code of their own: there should be none
SECONDS = 8.0  # of the processor for a case of a few kilobytes, and what ends it
LAST = 4 * SECONDS
MEMORY, TIMES = 400 * 2**20, 10  # bytes beyond what the process had, and times the bytes of the files
ADDRESSES = 8 * 2**30  # what libraries reserve and never touch counts too
FILE = 200 * 2**20  # the largest file that a command may write
LONGEST = 1500  # characters of an error
REACHING = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "socket.getaddrinfo",
    "ctypes.dlopen",
)
CONTROL = re.compile(r"(?!\r\n)[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass
class Tried:
    """`code`: the exit code; `problems`: what no command should do; `where`: where an unexpected error was raised."""

    code: int = 0
    out: str = ""
    err: str = ""
    seconds: float = 0.0
    memory: int = 0
    problems: list[str] = field(default_factory=list)
    where: str = ""


# ---------------------------------------------------------------- what is watched

_watched: list[tuple[str, tuple[str, ...]]] = []  # (event, what) of a case
_allowed: tuple[str, ...] = ()
_on = False


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _on:
        return
    if event == "open":
        path, _, flags = args
        if not isinstance(path, str | bytes) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        name = os.path.abspath(os.fsdecode(path))
        if not name.startswith(_allowed):
            _watched.append(("writes", (name,)))
    elif event in REACHING and not (event == "ctypes.dlopen" and args[0] is None):
        _watched.append((event, tuple(str(arg)[:100] for arg in args)))


def prepare(home: Path) -> None:
    """Make this process one that runs cases: limits, watching, standard streams in files of `home`."""
    global _allowed
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for name in ("cache", "tmp"):
        shutil.rmtree(home / name, ignore_errors=True)
        (home / name).mkdir()
    os.environ |= {
        "STEMMA_CACHE": str(home / "cache"),
        "TMPDIR": str(home / "tmp"),
        "COLUMNS": "80",
        "HF_HUB_OFFLINE": "1",
    }
    import tempfile

    tempfile.tempdir = None
    _allowed = (str(home.absolute()), "/dev/null", "/dev/shm/")
    sys.addaudithook(_audit)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(home / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(n, m, encoding="utf-8", closefd=False) for n, m in ((0, "r"), (1, "w"), (2, "w"))
    )


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def _said(number: int) -> str:
    size = os.fstat(number).st_size
    with contextlib.suppress(OSError):
        return os.pread(number, min(size, 10**6), 0).decode("utf-8", "replace")
    return ""


# ---------------------------------------------------------------- a case


def attempt(case: Case, subjects: Subjects, place: Path) -> Tried:
    """Run a case in a new folder `place`, which is removed again."""
    global _on
    tried = Tried()
    lay(case, subjects, place)
    before = set(_entries(place))
    back = os.getcwd()
    for number in (1, 2):
        os.ftruncate(number, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    held, begin = _status("VmRSS"), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, LAST)
    _watched.clear()
    os.chdir(place)
    try:
        _on = True
        _call(case, tried)
    finally:
        _on = False
        os.chdir(back)
        signal.setitimer(signal.ITIMER_PROF, 0)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    tried.seconds, tried.memory = time.process_time() - begin, max(0, _status("VmHWM") - held)
    tried.out, tried.err = _said(1), _said(2)
    tried.problems += judged(case, tried, place, before)
    shutil.rmtree(place, ignore_errors=True)
    return tried


def _call(case: Case, tried: Tried) -> None:
    _run(list(case.command), tried)
    if case.command[0] in ("convert", "merge") and tried.code == 0:
        again = Tried()
        _run(["show", next(word for word in case.command if word.startswith("out"))], again)
        if again.code:
            tried.problems.append(f"writes what cannot be read: exit {again.code}")


def _run(words: list[str], tried: Tried) -> None:
    from stemma.cli import main

    try:
        if words[0].startswith("python:"):
            with _quiet():
                CALLS[words[0].partition(":")[2]](*words[1:])
            return
        main(words)
    except SystemExit as end:
        tried.code = int(end.code or 0) if isinstance(end.code, int | None) else 1
        if tried.code == 70 and end.__context__ is not None:
            tried.where = _place(end.__context__)
    except StemmaError as error:
        tried.code = error.exit_code
        print(printable(f"error: {error}"), file=sys.stderr)
    except BaseException as error:
        tried.code = 70
        tried.where = _place(error)
        tried.problems.append(f"raises {type(error).__name__}: {' '.join(str(error).split())[:200]}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _place(error: BaseException) -> str:
    """The last line of Stemma's own that an error passed, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/stemma/" in f.filename and not f.filename.endswith("cli/__init__.py")]
    shown = dict.fromkeys(
        f"{f.filename.rpartition('/stemma/')[2]}:{f.lineno} {f.name}" for f in (*own[-2:], *frames[-1:])
    )
    return f"{type(error).__name__} at {', '.join(shown)}"


def _entries(place: Path) -> list[str]:
    return [str(path.relative_to(place)) for path in place.rglob("*") if not path.is_symlink() or path.exists()]


def judged(case: Case, tried: Tried, place: Path, before: set[str]) -> Iterator[str]:
    """What is wrong with what a command did."""
    said = tried.out + tried.err
    if (place / MARK).exists():
        yield "a payload ran"
    if tried.code == 70 and not any(problem.startswith("raises") for problem in tried.problems):
        yield f"exit 70: {' '.join(tried.err.split())[-300:]}"
    elif tried.code not in CODES and tried.code != 70 and "training diverged" not in tried.err:
        yield f"exit {tried.code}: {' '.join(tried.err.split())[-300:]}"
    if tried.code == 5 and "out of memory" in tried.err:
        yield f"out of memory: {' '.join(tried.err.split())[-300:]}"
    if tried.seconds > SECONDS:
        yield f"took {tried.seconds:.0f} s of the processor"
    if tried.memory > MEMORY + TIMES * sum(path.stat().st_size for path in place.rglob("*") if path.is_file()):
        yield f"held {tried.memory / 2**20:,.0f} MB more"
    if odd := CONTROL.search(said):
        yield f"prints {odd[0]!r}: {said[max(0, odd.start() - 60) : odd.end() + 20]!r}"
    if found := re.search("Traceback|panicked at|Exception ignored", said):
        yield f"prints {said[found.start() : found.start() + 200]!r}"
    if tried.code not in (0, 70, 130):
        errors = [line for line in tried.err.splitlines() if line.startswith("error: ")]
        if len(errors) != 1:
            yield f"prints {len(errors)} errors: {tried.err[-300:]!r}"
        elif len(errors[0]) > LONGEST:
            yield f"prints an error of {len(errors[0]):,} characters: {errors[0][:200]!r}"
        elif tried.err[tried.err.index(errors[0]) :].count("\n") > 1:
            yield f"prints an error of several lines: {tried.err[-400:]!r}"
    yield from (f"reaches out: {event} {what}" for event, what in dict.fromkeys(_watched))
    yield from _leftovers(case, tried.code, place, before)


def _leftovers(case: Case, code: int, place: Path, before: set[str]) -> Iterator[str]:
    """What a command left that is not whole."""
    new = sorted(set(_entries(place)) - before)
    if half := [name for name in new if re.search(r"\.tmp($|/)|\.saving-", name)]:
        yield f"leaves {half[0]}"
    if (
        code
        and case.command[0] in ("convert", "merge", "report", "show", "generate", "embed", "fill", "predict", "eval")
        and new
    ):
        yield f"leaves {new[0]} of what failed"
    if code == 0 and case.command[0] in ("convert", "report") and not new:
        yield "writes nothing"


# ---------------------------------------------------------------- Python's interface


def load(path: str) -> None:
    import torch

    import stemma

    model = stemma.load(path)
    with torch.no_grad():
        ids = torch.tensor([[1, 2, 3]]) % max(1, model.dims.vocab)
        model(ids, **({"decoder_input_ids": ids} if model.arch.structure == "encoder-decoder" else {}))


def chat(path: str) -> None:
    from stemma.text import Tokenizer

    tokenizer = Tokenizer.load(path)
    text = "Hello <s> wörld \x1b[2J 你好"
    if tokenizer.chat_template is not None:
        text = tokenizer.apply_chat([{"role": "user", "content": text}])
    ids = tokenizer.encode(text, allow_special=True)
    tokenizer.decode(ids)
    tokenizer.tokens(ids)
    tokenizer.save("again")
    Tokenizer.load("again")


def store(path: str) -> None:
    from stemma.data import Store, read

    class Letters:
        fingerprint, vocab_size = "letters", 256

        def encode_batch(self, texts: list[str], *, add_special: bool = False) -> list[list[int]]:
            return [list(text.encode()) for text in texts]

        def encode_spans(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
            return [([ord(c) % 256 for c in text], list(range(1, len(text) + 1))) for text in texts]

    made = Store.build(read(path), Letters(), Path("out"))  # type: ignore[arg-type]
    made.verify()
    assert all(made.text(i) and len(made[i]) for i in range(min(5, len(made))))


def metrics(path: str) -> None:
    from stemma.report import read
    from stemma.train import read_metrics

    read_metrics(path)
    read(path)


def plan(path: str) -> None:
    from stemma.train import overrides, resolve

    changes = overrides(path)
    name = changes.pop("name", "gpt2")
    resolve(str(name), data="builtin:asv", overrides=changes)


def talk(path: str) -> None:
    from stemma.conversations import read, writer
    from stemma.conversations.templates import NAMES
    from stemma.data import rows

    for _, row in rows.json_lines(Path(path)):
        if not isinstance(row, dict):
            continue
        with contextlib.suppress(StemmaError):
            for template in NAMES:
                writer(None, template).write(read(row))


CALLS: dict[str, Callable[..., None]] = {
    "load": load,
    "chat": chat,
    "store": store,
    "metrics": metrics,
    "plan": plan,
    "talk": talk,
}
