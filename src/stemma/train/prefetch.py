"""Batches prefetched in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any


class Prefetch:
    """Calls `make` in a thread, at most `depth` results ahead of `take`. An error in the thread is raised by the `take`
    of its result. `close` ends the thread and drops results that were not taken, so a result must hold whatever is
    needed to make the next ones again."""

    def __init__(self, make: Callable[[], Any], depth: int) -> None:
        self._made: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(make,), daemon=True, name="stemma-batches")
        self._thread.start()

    def _run(self, make: Callable[[], Any]) -> None:
        error: BaseException | None = None
        while error is None and not self._closed.is_set():
            made = None
            try:
                made = make()
            except BaseException as caught:
                error = caught
            while not self._closed.is_set():
                try:
                    self._made.put((made, error), timeout=0.1)
                    break
                except queue.Full:
                    continue

    def take(self) -> Any:
        """The next result."""
        made, error = self._made.get()
        if error is not None:
            raise error
        return made

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._closed.set()
        self._thread.join()
