"""One voice: of processes that end for one reason, one says it. Imports torch only where there are several."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

PATIENCE = 5.0  # seconds to reach the launcher's store


def speaks(sentence: str, lost: bool = False) -> bool:
    """Whether this process is the one that says the `sentence` with which it ends: alone always; among several the
    first that has it. One that ends because another did (`lost`) speaks if no process has spoken yet. What is said is
    counted in the launcher's store, as other processes may be gone; where it cannot be reached, each speaks."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    try:
        with _store() as store:
            before = int(store.add("stemma/said", 1)) - 1
            again = int(store.add(f"stemma/said/{sentence}", 1)) - 1
    except (RuntimeError, ValueError, OSError, LookupError):
        return True
    return not (before if lost else again)


@contextlib.contextmanager
def _store() -> Iterator[Any]:
    """The store by which the processes found each other. Raises LookupError where there is none (yet)."""
    from datetime import timedelta

    import torch.distributed as dist

    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and not dist.is_initialized():
        raise LookupError("no launcher keeps a store")
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*place, is_master=False, timeout=timedelta(seconds=PATIENCE), wait_for_workers=False)
    yield dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
