"""What can go wrong, in one place.

Every error that a user can cause is a `StemmaError`: one clear sentence that names the thing, the value
and what would be right. The command line prints that sentence without a traceback and leaves with the
class's `exit_code`; Python callers catch the class they expect.
"""

from __future__ import annotations

import difflib
import errno
import importlib.util
import itertools
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

HEAD, TAIL = 1000, 300  # characters of a longer message that are kept: what is wrong, and what to do


def one_line(text: str) -> str:
    """A message, which may quote a file or a library, in one line of bounded length."""
    text = re.sub(r"\s*[\r\n]+\s*", " ", text.strip())
    if len(text) <= HEAD + TAIL:
        return text
    return f"{text[:HEAD]} ... ({len(text):,} characters) ... {text[-TAIL:]}"


class StemmaError(Exception):
    """Base of all errors that Stemma raises on purpose, with a message of one line. `exit_code` is what the command
    line returns."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(one_line(a) if isinstance(a, str) else a for a in args))


class UsageError(StemmaError):
    """A request that cannot mean anything: an unknown name, a value out of range, options that clash."""

    exit_code = 2


class DataError(StemmaError):
    """Text that cannot be used: missing, empty, binary, malformed."""

    exit_code = 3


class RewardError(DataError):
    """A reward that cannot be had: a function that raises, hangs or returns no number. A run that it stops writes a
    checkpoint first, and goes on from there once the reward is mended."""


class CheckpointError(StemmaError):
    """Weights, config or tokenizer files that are damaged, incomplete or do not fit the model."""

    exit_code = 4


class NotFinite(CheckpointError):
    """Logits that are not finite. `rows`: of the batch; the others may go on with their `logits`."""

    def __init__(self, rows: Sequence[int], logits: Any) -> None:
        super().__init__("the model's logits are not finite: its weights are damaged, or too large for their type")
        self.rows, self.logits = list(rows), logits


class MalformedError(CheckpointError):
    """A file that was read but is not UTF-8 text, or not JSON."""


class ResourceError(StemmaError):
    """The machine said no: disk full, out of memory, network unreachable, a missing optional package."""

    exit_code = 5


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    if package in sys.modules:
        return sys.modules[package] is not None
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a parent is missing; the module was removed
        return False


def require(package: str, what: str, pip: str) -> None:
    """Raise ResourceError with the line that installs an optional package, unless it is there. `what` says what needs
    it; `pip` is what pip installs."""
    if not installed(package):
        raise ResourceError(f"{what} needs {package}: pip install {pip}")


class LostError(ResourceError):
    """Another process of the mesh ended, or cannot be reached; it may have said why."""


class VerifyError(StemmaError):
    """A check that Stemma was asked to make did not hold."""

    exit_code = 6


_NO_MEMORY = (
    "can't allocate memory",  # torch's allocator on a CPU
    "cannot allocate memory",
    "out of memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN
    "unable to mmap",
    "storage size calculation overflowed",
)


def no_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: libraries say so in errors of many kinds."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    text = str(error).lower()
    if isinstance(error, SystemError):  # what numpy's allocations may end with
        return "without setting an exception" in text
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)


def brief(value: object, most: int = 200) -> str:
    """`repr(value)` for a message: cut to `most` characters, and never an error itself."""
    if isinstance(value, (str, bytes)) and len(value) > most:
        return f"{value[:most]!r}... ({len(value):,} characters)"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a value that holds itself
        return f"a {type(value).__name__} that is too large to be shown"
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def printable(text: object) -> str:
    """`text` with control characters shown (`\\x1b`), but for tabs and ends of lines: what comes from a file, a model
    or another's command is printed through this, so that it cannot steer the terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", str(text))


_CONTROL = re.compile(r"(?!\r\n)[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def nearest(word: str, known: Iterable[str], limit: int = 1, cutoff: float = 0.5) -> list[str]:
    """The `limit` known words most like `word` (none if nothing is alike: `cutoff`, of difflib's ratio), of the first
    10,000."""
    return difflib.get_close_matches(str(word), list(itertools.islice(known, 10_000)), n=limit, cutoff=cutoff)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, else an empty string."""
    found = nearest(word, known)
    return f"; did you mean {found[0]!r}?" if found else ""
