"""The device and the precision of a plan."""

from __future__ import annotations

import torch

from stemma.errors import ResourceError
from stemma.train.config import Plan, Precision

MIN_WIDTH = 192  # from this d_model on, bf16 on a CPU gains more than its casts cost


def pick_device(plan: Plan) -> torch.device:
    """The device of a plan. Raises ResourceError for `cuda` where there is none."""
    name = plan.train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ResourceError("train.device=cuda, but this torch sees no CUDA device")
    return torch.device(name)


def pick_precision(plan: Plan, device: torch.device) -> Precision:
    """`fp32` or `bf16`: what `auto` means for this model on this machine."""
    if plan.train.precision != "auto":
        return plan.train.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if plan.dims.d_model >= MIN_WIDTH and _cpu_multiplies_bf16() else "fp32"


def _cpu_multiplies_bf16() -> bool:
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
