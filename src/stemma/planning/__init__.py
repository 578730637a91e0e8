"""What a run will need before it is begun: memory, time and money on a mesh of devices, without weights or text."""

from stemma.planning.estimate import Estimate, estimate
from stemma.planning.hardware import HARDWARE, Device, fleet
from stemma.planning.outlook import Outlook
from stemma.planning.probe import timed
from stemma.planning.search import suggest

__all__ = ["HARDWARE", "Device", "Estimate", "Outlook", "estimate", "fleet", "suggest", "timed"]
