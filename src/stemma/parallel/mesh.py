"""The shape of a mesh: ranks along `dp` (copies of the model), `fsdp` (shards of its state) and `tp` (slices of its
matrices). Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from stemma.errors import UsageError, did_you_mean

AXES = ("dp", "fsdp", "tp")
DATA = ("dp", "fsdp")  # ranks along these read rows of their own


@dataclass(frozen=True)
class Mesh:
    """Ranks along each axis."""

    dp: int = 1
    fsdp: int = 1
    tp: int = 1

    @property
    def size(self) -> int:
        return self.dp * self.fsdp * self.tp

    @property
    def readers(self) -> int:
        """Ranks that read rows of their own."""
        return self.dp * self.fsdp

    def __str__(self) -> str:
        named = [f"{axis}={getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        return ",".join(named) or "dp=1"


def mesh(text: str) -> Mesh:
    """Parse `"dp=2"` or `"fsdp=4,tp=2"`. Raises UsageError for anything else."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, equals, number = (p.strip() for p in part.partition("="))
        if axis == "cp":
            raise UsageError(
                f"mesh {text!r} has no axis 'cp': torch shares out a row's tokens only on CUDA, and only for attention "
                "without a mask; for long rows use tp, such as fsdp=4,tp=2, or set train.recompute=['*.blocks.*']"
            )
        if axis not in AXES:
            raise UsageError(
                f"mesh {text!r} has no axis {axis!r}; the axes are dp (copies), fsdp (shards) and tp (slices of "
                f"matrices), such as fsdp=4,tp=2{did_you_mean(axis, AXES)}"
            )
        if not equals or not number.isdecimal() or int(number) < 1 or axis in sizes:
            raise UsageError(f"mesh {text!r} should give each axis once and a number of processes, such as fsdp=4,tp=2")
        sizes[axis] = int(number)
    return Mesh(**sizes)
