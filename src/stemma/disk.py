"""Files: replaced whole or not at all, JSON, JSON lines, locks of folders, and one sentence when the system refuses."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stemma.errors import (
    CheckpointError,
    MalformedError,
    ResourceError,
    StemmaError,
    UsageError,
    brief,
    nearest,
    printable,
)

AGAIN = "run the command again"
DEPTH, DIGITS = 100, 40  # of JSON: the deepest nesting and the longest integer that are read
_SURROGATES = re.compile("[\ud800-\udfff]")
BROKEN = object()  # what `read_jsonl` gives for a line that is not JSON


def nearest_path(path: str | Path) -> str:
    """`; did you mean 'runs/llama'?`: for a path that leads nowhere, the one here whose names are most like its own
    (of its last folder too, if that is not here); else an empty string."""
    path = Path(path)
    folders = [path.parent] if path.parent.is_dir() else _alike(path.parent)
    found = [other for folder in folders for other in _alike(folder / path.name)]
    return f"; did you mean {str(found[0])!r}?" if found else ""


def _alike(path: Path) -> list[Path]:
    if path.exists():
        return [path]
    try:
        names = [name for name in os.listdir(path.parent) if not name.startswith(".")]
    except OSError:
        return []
    return [path.parent / name for name in nearest(path.name, names)]


# ---------------------------------------------------------------- refusals


_TORCH = ("inline_container", "basic_ios::clear")  # all that torch says of a write that failed


def reason(error: BaseException) -> tuple[str, str]:
    """(why a write failed, what to do about it). Libraries wrap the system's error, so its text counts too."""
    number = error.errno if isinstance(error, OSError) else None
    text = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
    if any(words in text for words in _TORCH) or re.search(r"\d+ requested and \d+ written", text):  # of numpy
        return "the disk is full, or the file too large for it", "free some space"
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text:
        return "the disk is full", "free some space"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS) or "Permission denied" in text:
        return text, "make it writable"
    return text, "check the disk"


def is_refusal(error: BaseException) -> bool:
    """Whether the system refused a write, as the system says it or as torch and safetensors do."""
    words = ("No space left", "File too large", *_TORCH)
    return isinstance(error, OSError) or (isinstance(error, Exception) and any(w in str(error) for w in words))


def refused(what: object, error: BaseException, *, note: str = "", then: str = AGAIN) -> ResourceError:
    """The error to raise when `what` could not be written. `note`: what became of the old file; `then`: what to do
    once the cause is removed."""
    why, remedy = reason(error)
    return ResourceError("; ".join(filter(None, (f"cannot write {what}: {why}", note, f"{remedy} and {then}"))))


def instead(error: ResourceError, then: str) -> ResourceError:
    """The same refusal with another thing to do than to run the command again."""
    text = str(error)
    return ResourceError(text.removesuffix(AGAIN) + then if text.endswith(AGAIN) else f"{text}; {then}")


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error to raise when the system refuses to read `path`."""
    remedy = "move it away" if isinstance(error, IsADirectoryError) else "make it readable"
    return CheckpointError(f"{path} cannot be read: {error.strerror or error}; {remedy}")


@contextlib.contextmanager
def writing(what: object, *, note: str = "", then: str = AGAIN) -> Iterator[None]:
    """Turn an OSError of the block, or what a library makes of one, into the ResourceError of `refused`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, StemmaError) or not is_refusal(error):
            raise
        raise refused(what, error, note=note, then=then) from error


# ---------------------------------------------------------------- whole files


def sync(path: Path) -> None:
    """Force a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path, *, note: str = "", then: str = AGAIN) -> Iterator[Path]:
    """A temporary name beside `path`. When the block ends, the file under it is forced to disk and takes the place of
    `path`; if the block fails, `path` stays as it was. Raises ResourceError for an OSError of the block."""
    with writing(path, note=note, then=then), _beside(path) as scratch:
        yield scratch


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield scratch
        sync(scratch)
        os.replace(scratch, path)
        with contextlib.suppress(OSError):  # some file systems cannot force a folder to disk
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


def write(path: Path, content: str | bytes, *, then: str = AGAIN) -> None:
    """Replace `path` by `content` (text as UTF-8) in one step. Raises ResourceError."""
    with replacing(path, then=then) as scratch:
        scratch.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


# ---------------------------------------------------------------- text and JSON


def regular(path: Path) -> None:
    """Raises CheckpointError if `path` is there and is no file, such as a pipe, which could be read forever. (The text
    that a user names, as `<(zcat x)`, may be a pipe; files of models and runs may not.)"""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise CheckpointError(f"{path} is a pipe or a device, not a file; move it away")


def read_bytes(path: Path) -> bytes:
    """The content of `path`. Raises CheckpointError."""
    try:
        regular(path)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except OSError as error:
        raise unreadable(path, error) from error


def read_text(path: Path) -> str:
    """The UTF-8 text of `path`, line ends untouched. Raises CheckpointError, MalformedError."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise MalformedError(f"{path} is not UTF-8 text: byte {error.start} is {byte:#x}") from error


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError (JSONDecodeError where it is no JSON), also for what no file of a
    model or a run has: integers of more than `DIGITS` digits, values nested more than `DEPTH` deep."""
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEPTH} deep") from None
    check_depth(value)
    return value


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"it has an integer of {len(text):,} digits")
    return int(text)


def check_depth(value: Any) -> None:
    """Raises ValueError if maps and lists are nested more than `DEPTH` deep in `value`."""
    level = [value]
    for _ in range(DEPTH):
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list)))
        level = [item for items in inner for item in items if isinstance(item, (dict, list))]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEPTH} deep")


def parse(path: Path, text: str) -> Any:
    """The JSON value of `text`, which was read from `path`. Raises MalformedError with line and column."""
    try:
        return from_json(text)
    except json.JSONDecodeError as error:
        raise MalformedError(f"{path} is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from error
    except ValueError as error:
        raise MalformedError(f"{path} cannot be read as JSON: {error}") from error


def parse_object(path: Path, text: str) -> dict[str, Any]:
    """The JSON object of `text`, which was read from `path`. Raises MalformedError."""
    value = parse(path, text)
    if not isinstance(value, dict):
        raise MalformedError(f"{path} holds a JSON {type(value).__name__}; an object was expected")
    return value


def typed(path: Path, value: Any, shape: Any, place: str = "") -> Any:
    """`value`, which was read from `path`, if it has a `shape`: a type (`float` takes whole numbers too), `[shape]` for
    a list, `{name: shape}` for an object with at least these keys (`"name?"`: may be absent or null), `{str: shape}`
    for an object whose values have one shape, `Any` for anything. Raises MalformedError that names the place."""
    kind = type(shape) if isinstance(shape, (dict, list)) else (int, float) if shape is float else shape
    if shape is not Any:
        fits = isinstance(value, kind) and not (isinstance(value, bool) and shape is not bool)
        if not fits or (isinstance(value, int) and abs(value) >= 2**63):
            raise MalformedError(f"{path} is damaged: {place or 'it'} is {brief(value, 60)}, not {_WORDS[_key(shape)]}")
    if isinstance(shape, list):
        for number, item in enumerate(value):
            typed(path, item, shape[0], f"{place}[{number}]")
    for name, inner in shape.items() if isinstance(shape, dict) else ():
        if name is str:
            for key, item in value.items():
                typed(path, item, inner, f"{place}.{brief(key, 60)}")
        elif name.endswith("?"):
            if value.get(name[:-1]) is not None:
                typed(path, value[name[:-1]], inner, f"{place}.{name[:-1]}".lstrip("."))
        elif name not in value:
            raise MalformedError(f"{path} is damaged: {place or 'it'} has no {name}")
        else:
            typed(path, value[name], inner, f"{place}.{name}".lstrip("."))
    return value


def shape_of(value: Any) -> Any:
    """The shape, as of `typed`, of an object: equal keys, and values of the same kinds."""
    if isinstance(value, dict):
        return {name: shape_of(item) for name, item in value.items()}
    return type(value) if type(value) in (int, float, str) else Any


def _key(shape: Any) -> type:
    return type(shape) if isinstance(shape, (dict, list)) else shape


_WORDS: dict[type, str] = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "an object"}


def read_json(path: Path) -> Any:
    """The JSON value in a file. Raises CheckpointError, MalformedError."""
    return parse(path, read_text(path))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError, MalformedError."""
    return parse_object(path, read_text(path))


def to_json(value: Any, *, indent: int | None = 2, ascii: bool = False) -> str:
    """`value` as JSON with a final newline. Lone surrogates, which are no UTF-8, are escaped as with `ascii`."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii)
    if not text.isascii() and _SURROGATES.search(text):
        text = json.dumps(value, indent=indent)
    return text + "\n"


def write_json(path: Path, value: Any, *, indent: int | None = 2, ascii: bool = False) -> None:
    """Replace `path` by `value` as JSON in one step. Raises ResourceError."""
    write(path, to_json(value, indent=indent, ascii=ascii))


# ---------------------------------------------------------------- JSON lines


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of each line that is not blank; `BROKEN` for one that is not JSON. Raises
    CheckpointError if the file cannot be read."""
    try:
        regular(path)
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.isspace():
                    continue
                value: Any = BROKEN
                with contextlib.suppress(ValueError):
                    value = from_json(line)
                yield number, value
    except OSError as error:
        raise unreadable(path, error) from error


@contextlib.contextmanager
def write_jsonl(path: Path) -> Iterator[Callable[[Any], None]]:
    """Replace `path` by the values that the block adds, a line each, in one step. Raises ResourceError."""
    with contextlib.ExitStack() as held:
        with writing(path):
            scratch = held.enter_context(_beside(path))
            out = open(scratch, "wb")  # noqa: SIM115

        def add(value: Any) -> None:
            with writing(path):
                out.write(to_json(value, indent=None).encode("utf-8"))

        try:
            yield add
            with writing(path):
                out.close()
                held.close()
        finally:
            with contextlib.suppress(OSError):
                out.close()


class Appender:
    """A file of JSON lines that grows: each line is written whole or not at all. `then`: what to do after a refusal."""

    def __init__(self, path: Path, *, then: str = AGAIN) -> None:
        self.path, self.then = path, then
        with writing(path, then=then):
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115

    def add(self, value: Any) -> None:
        """Append a line. Raises ResourceError."""
        line, size = memoryview(json.dumps(value).encode() + b"\n"), os.fstat(self.file.fileno()).st_size
        with writing(self.path, then=self.then):
            try:
                while line:
                    line = line[os.write(self.file.fileno(), line) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self.file.fileno(), size)
                raise

    def sync(self) -> None:
        """Force what was appended to the disk. Raises ResourceError."""
        with writing(self.path, then=self.then):
            os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


# ---------------------------------------------------------------- standard streams


def abandon(*names: str) -> None:
    """Point these standard streams at /dev/null: what is left in their buffers cannot be written, also not at exit."""
    for name in names:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), getattr(sys, name).fileno())


def tell(text: str, end: str = "\n") -> bool:
    """Print a line on stderr, with control characters shown. Returns False if nobody reads it any more (a closed
    terminal or pipe, a full disk): then the program goes on in silence."""
    try:
        print(printable(text), end=end, file=sys.stderr, flush=True)
    except (OSError, AttributeError):
        abandon("stderr")
        return False
    return True


# ---------------------------------------------------------------- locks


@contextlib.contextmanager
def lock(folder: Path, *, busy: str = "") -> Iterator[bool]:
    """Hold `folder` alone among processes; a process that dies lets go. If another one holds it, wait, or with `busy`
    raise UsageError(busy). Yields False, without a lock, where the system cannot lock (Windows, some file systems)."""
    handle = _locked(folder, busy)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _locked(folder: Path, busy: str) -> int | None:
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if busy:
                raise UsageError(busy) from None
            warnings.warn(f"waiting for another process that is writing {folder}", stacklevel=4)
            fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return handle
