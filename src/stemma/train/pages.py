"""Keep freed memory for the next step. Otherwise glibc (Linux) returns big blocks to the system, and each training step
on a CPU pays to get them back page by page."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_pages() -> bool:
    """Make glibc keep freed memory, for the rest of the process. Returns whether it did; False elsewhere and with other
    allocators."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    return all([mallopt(name, value) == 1 for name, value in settings])
