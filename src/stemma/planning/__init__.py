"""What a run will need before it is begun: memory, time and money on a mesh of devices, without weights or text."""

from stemma.planning.hardware import HARDWARE, Device, fleet

__all__ = ["HARDWARE", "Device", "fleet"]
