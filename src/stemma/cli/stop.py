"""Ctrl-C: one line and exit code 130, at any moment. Imported first, so that it holds while others are imported.

The first Ctrl-C raises KeyboardInterrupt; a second one, or one while modules are imported (which libraries may swallow
or turn into other errors), ends the process at once: files are written whole or not at all, so nothing is lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

PROGRAMS = ("stemma", "stemma.exe", "__main__.py", "-m")
_asked: list[int] = []


def requested() -> bool:
    """Whether Ctrl-C was pressed."""
    return bool(_asked)


def forgive() -> None:
    """A Ctrl-C was answered by the command itself, and the next one counts as the first."""
    _asked.clear()


def ending() -> None:
    """The command is at its end, whatever it came to: from here on Ctrl-C is ignored, also while Python itself ends."""
    if signal.getsignal(signal.SIGINT) is _handle:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def install() -> None:
    """Handle SIGINT in this process, if it is the program and nobody else handles or ignores it."""
    if threading.current_thread() is not threading.main_thread() or os.path.basename(sys.argv[0]) not in PROGRAMS:
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    again = requested()
    _asked.append(number)
    if again or _importing(frame):
        _leave()
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave() -> NoReturn:
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            os.write(2, b"error: stopped\n")
    os._exit(130)


install()
