"""What a run will need before it is begun: memory, time and money on a mesh of devices, without weights or text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stemma.planning.estimate import Estimate, estimate
from stemma.planning.hardware import HARDWARE, Device, fleet
from stemma.planning.outlook import Outlook
from stemma.planning.search import suggest

if TYPE_CHECKING:
    from stemma.planning.probe import timed

__all__ = ["HARDWARE", "Device", "Estimate", "Outlook", "estimate", "fleet", "suggest", "timed"]


def __getattr__(name: str) -> Any:
    if name != "timed":
        raise AttributeError(f"module 'stemma.planning' has no attribute {name!r}")
    from stemma.planning.probe import timed  # with the loop, which a plan does not need

    return timed
