"""Signals that ask a run to stop, or to write a checkpoint and go on."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Catch SIGINT, SIGTERM and SIGHUP (a closed terminal, unless nohup ignores it) in the main thread: the yielded
    function tells whether one came. A second SIGINT interrupts at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def handle(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            if callable(old := before.get(signal.SIGINT)):
                old(number, frame)  # which ends the process if it is asked a third time
            raise KeyboardInterrupt
        asked.append(number)

    caught = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before: dict[int, Any] = {}
    before |= {
        s: signal.signal(s, handle)
        for s in caught
        if s != getattr(signal, "SIGHUP", None) or signal.getsignal(s) is not signal.SIG_IGN
    }
    try:
        yield lambda: bool(asked)
    finally:
        for s, old in before.items():
            signal.signal(s, old)


@contextlib.contextmanager
def save_requested() -> Iterator[Callable[[], bool]]:
    """Catch SIGUSR1, with which schedulers warn before they end a job, in the main thread: the yielded function tells
    whether one came since it was asked last."""
    asked: list[int] = []
    number = getattr(signal, "SIGUSR1", None)
    if number is None or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def told() -> bool:
        came = bool(asked)
        asked.clear()
        return came

    before = signal.signal(number, lambda *_: asked.append(1))
    try:
        yield told
    finally:
        signal.signal(number, before)
