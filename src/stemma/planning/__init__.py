"""What a run will need before it is begun: memory, time and money on a mesh of devices, without weights or text."""

from stemma.planning.estimate import Estimate, Outlook, estimate, suggest
from stemma.planning.hardware import HARDWARE, Device, fleet
from stemma.planning.probe import probe

__all__ = ["HARDWARE", "Device", "Estimate", "Outlook", "estimate", "fleet", "probe", "suggest"]
