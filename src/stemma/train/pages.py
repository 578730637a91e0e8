"""Memory that a step gives back is used by the next one: on Linux, glibc otherwise returns big blocks to the system and
gets them back page by page, which a training step on a CPU pays for each time."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_pages() -> bool:
    """Tell glibc to keep what is freed, for the rest of the process. Returns whether it did: elsewhere, and under
    another allocator, there is nothing to tell."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    return all([mallopt(name, value) == 1 for name, value in settings])
