"""Files that are either whole or not there: write beside, flush to disk, rename over."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stemma.errors import CheckpointError, ResourceError, UsageError


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write under `path` into a ResourceError of one sentence."""
    try:
        yield
    except OSError as error:
        full = "the disk is full; free some space and run the command again"
        why = full if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
        raise ResourceError(f"cannot write {path}: {why}") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold `folder` alone among processes, waiting for whoever holds it; a process that dies lets go. Gives whether the
    system can lock (some file systems, and Windows, cannot: then everyone goes ahead)."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            warnings.warn(f"waiting for another process that is writing {folder}", stacklevel=3)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(handle)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold `folder` alone among processes, without waiting; a process that dies lets go. Raises UsageError if another
    one holds it. Where the system cannot lock (see `locked`), everyone goes ahead."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another process is training in {folder}; wait until it ends, or choose another directory"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def write(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` (text is UTF-8) in one step; a crash leaves the old file. Raises ResourceError."""
    payload = content.encode("utf-8") if isinstance(content, str) else content
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with disk(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(scratch, "wb") as out:
                out.write(payload)
                out.flush()
                os.fsync(out.fileno())
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


def read(path: Path) -> str:
    """The UTF-8 text of `path`, line ends untouched. Raises CheckpointError if it cannot be read or is not text."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def parse(path: Path, text: str) -> dict[str, Any]:
    """`text`, which was read from `path`, as a JSON object. Raises CheckpointError naming line and column."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}; an object was expected")
    return value
