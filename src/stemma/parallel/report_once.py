"""Only one rank reports a shared error. Imports torch only where there are several ranks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

TIMEOUT = 5.0  # seconds to reach the launcher's store


def should_report(sentence: str, lost: bool = False) -> bool:
    """Whether this rank prints the error `sentence`: the first of the ranks that end with it. A rank that ends because
    it lost another (`lost`) prints only if no rank has printed anything yet. The counts are in the launcher's store,
    since other ranks may be gone; if it cannot be reached, every rank prints."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    try:
        with _store() as store:
            before = int(store.add("stemma/reported", 1)) - 1
            again = int(store.add(f"stemma/reported/{sentence}", 1)) - 1
    except (RuntimeError, ValueError, OSError, LookupError):
        return True
    return not (before if lost else again)


@contextlib.contextmanager
def _store() -> Iterator[Any]:
    """The store by which the ranks found each other. Raises LookupError where there is none (yet)."""
    from datetime import timedelta

    import torch.distributed as dist

    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and not dist.is_initialized():
        raise LookupError("no launcher keeps a store")
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*place, is_master=False, timeout=timedelta(seconds=TIMEOUT), wait_for_workers=False)
    yield dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
