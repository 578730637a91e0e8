"""What a run will need before it is begun: memory, time and money on a mesh of devices, without weights or text.

Nothing here but `probe`, which runs steps, imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stemma.planning.estimate import Estimate, Outlook, estimate, suggest
from stemma.planning.hardware import HARDWARE, Device, fleet

if TYPE_CHECKING:
    from stemma.planning.probe import timed

__all__ = ["HARDWARE", "Device", "Estimate", "Outlook", "estimate", "fleet", "suggest", "timed"]


def __getattr__(name: str) -> Any:
    if name != "timed":
        raise AttributeError(f"module 'stemma.planning' has no attribute {name!r}")
    from stemma.planning.probe import timed

    return timed
