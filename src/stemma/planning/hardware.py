"""Devices and what their makers say of them. Prices are the user's to give: they differ by seller and month."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stemma.errors import UsageError, did_you_mean

GB = 1e9
NODE = 8  # devices of one node, as in the makers' own machines


@dataclass(frozen=True)
class Device:
    """`memory` in bytes; `peak`: dense bf16 operations a second; `bandwidth` of the memory, `link` to a neighbour in
    the node and `network`, a device's part of what leaves the node (each one direction), bytes a second. `share`: of
    the peak that a well-fed training step is assumed to reach, where no probe says better."""

    name: str
    memory: float
    peak: float
    bandwidth: float
    link: float
    network: float
    share: float = 0.4

    def reach(self, step: int, members: int) -> float:
        """Bytes a second that each of so many devices, every `step`th of the fleet, gets on a ring through all of them.
        A ring that leaves the node uses the network's parts of all its members there."""
        near = max(1, NODE // step)
        return self.link if members <= near else min(self.link, near * self.network)


# Dense figures throughout: a maker's number "with sparsity" is halved. `link` is half of a two-way figure. `network` is
# that of the maker's own node (DGX A100: 8 x 200 Gb/s; DGX H100, H200, B200 and AMD's platform of eight MI300X: 8 x 400
# Gb/s); for L40S and RTX 4090 one port of 100 Gb/s shared by eight is assumed.
HARDWARE = {
    device.name.lower(): device
    for device in (
        # NVIDIA H100 Tensor Core GPU datasheet, SXM: 80 GB, 1,979 TFLOPS sparse, 3.35 TB/s, NVLink 900 GB/s both ways
        Device("H100", 80 * GB, 989e12, 3.35e12, 450 * GB, 50 * GB),
        # NVIDIA H200 datasheet, SXM: 141 GB, the H100's arithmetic, 4.8 TB/s, NVLink 900 GB/s both ways
        Device("H200", 141 * GB, 989e12, 4.8e12, 450 * GB, 50 * GB),
        # NVIDIA A100 datasheet, SXM: 312 TFLOPS dense, NVLink 600 GB/s both ways; 1,555 and 2,039 GB/s
        Device("A100-40", 40 * GB, 312e12, 1.555e12, 300 * GB, 25 * GB),
        Device("A100-80", 80 * GB, 312e12, 2.039e12, 300 * GB, 25 * GB),
        # NVIDIA L40S datasheet: 48 GB, 362 TFLOPS dense, 864 GB/s, PCIe 4 x16 (64 GB/s both ways)
        Device("L40S", 48 * GB, 362e12, 0.864e12, 32 * GB, 1.5625 * GB),
        # NVIDIA Ada GPU architecture whitepaper, RTX 4090: 24 GB, 165.2 TFLOPS (sums in fp32), 1,008 GB/s, PCIe 4
        Device("RTX4090", 24 * GB, 165e12, 1.008e12, 32 * GB, 1.5625 * GB),
        # NVIDIA DGX B200 datasheet, an eighth: 1,440 GB, 72 PFLOPS fp8 dense-half of sparse, so 2.25 PFLOPS bf16;
        # 64 TB/s; NVLink 14.4 TB/s both ways
        Device("B200", 180 * GB, 2250e12, 8.0e12, 900 * GB, 50 * GB),
        # AMD Instinct MI300X datasheet: 192 GB, 1,307 TFLOPS dense, 5.3 TB/s, seven links of 128 GB/s both ways
        Device("MI300X", 192 * GB, 1307e12, 5.3e12, 448 * GB, 50 * GB),
        # a plain server core count varies: 16 GB, half a TFLOPS, two memory channels; `--probe` measures this machine
        Device("CPU", 16 * GB, 0.5e12, 0.04e12, 1 * GB, 1 * GB),
    )
}


NEEDED = ("memory", "peak", "bandwidth")  # of a device that is not known
PCIE, PORT = 32 * GB, 1.5625 * GB  # link and network where nobody says: PCIe 4 x16, and a port of 100 Gb/s for eight


def fleet(text: str, given: Mapping[str, float] | None = None) -> tuple[int, Device]:
    """Parse `"64xH100"` or `"H100"`. `given` (fields of a `Device`) replace those of the device, or describe one that
    is not known. Raises UsageError for anything else."""
    figures: dict[str, Any] = dict(given or {})
    found = re.fullmatch(r"(?:(\d+)\s*[x*]\s*)?(.+)", text.strip(), re.IGNORECASE)
    name = found.group(2).strip() if found else ""
    count = int(found.group(1) or 1) if found else 0
    if name and count < 1:
        raise UsageError(f"--gpus {text!r} names no device; write such as 64xH100")
    if name.lower() in HARDWARE:
        return count, replace(HARDWARE[name.lower()], **figures)
    if name and all(key in figures for key in NEEDED):
        return count, Device(name, **{"link": PCIE, "network": PORT} | figures)
    known = [d.name for d in HARDWARE.values()]
    lacking = [f"--{key}" for key in NEEDED if key not in figures]
    raise UsageError(
        f"no device {text!r} is known; write such as 64xH100, of {', '.join(known)}, or describe it by "
        f"{', '.join(lacking or map('--{}'.format, NEEDED))}{did_you_mean(name.upper(), known)}"
    )
