"""The memory of tuning adapters beside a 4-bit base as it was published, line by line (QLoRA: Dettmers et al. 2023).

What a run of one's own needs is traced (`outlook`); this is arithmetic on a declaration.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from stemma.declare.family import Design, Family
from stemma.declare.tuning import SFT, LoRA
from stemma.nn.model import count
from stemma.planning.device import build

BLOCK, NESTED = 64, 256  # weights to a scale, and scales to a scale of scales (section 3)
GPU = 48e9  # bytes of the GPU of the paper's example
FULL = 12  # bytes a parameter of tuning all: weights and gradients of 16 bits, two numbers of 32 of Adam


class Line(NamedTuple):
    """A part of the memory, and what it comes from."""

    what: str
    bytes: float
    how: str


class Example(NamedTuple):
    """A published tuning. `full`: bytes of weights, gradients and optimiser where all weights learn."""

    parameters: int
    quantised: int
    learned: int
    context: int
    lines: tuple[Line, ...]
    full: float

    @property
    def memory(self) -> float:
        """Bytes at once."""
        return sum(line.bytes for line in self.lines)


def example(family: Family, design: Design) -> Example | None:
    """The tuning of a size of a family whose adapters stand beside weights in NF4; None for any other."""
    stages = family.tuning.stages if family.tuning is not None else ()
    stage = next((s for s in stages if isinstance(s, SFT) and isinstance(s.adapter, LoRA)), None)
    if stage is None or not isinstance(adapter := stage.adapter, LoRA) or adapter.base != "nf4":
        return None
    if design.arch.structure != "decoder" or design.dims.experts is not None or adapter.rank is None:
        return None
    return _example(design, adapter, stage.context or design.dims.context)


def _example(design: Design, adapter: LoRA, context: int) -> Example:
    """One row of `context` tokens at a time, with gradient checkpointing."""
    dims, rank = design.dims, adapter.rank or 0
    layers, total = dims.layers, count(design.arch, dims)
    decoder: Any = build(design.arch, replace(dims, layers=1)).decoder
    shapes = {
        path.rpartition(".")[2]: (m.out_features, m.in_features)
        for path, m in decoder.blocks[0].named_modules()
        if isinstance(m, nn.Linear)
    }
    quantised = layers * sum(out * width for out, width in shapes.values())
    learned = layers * sum(rank * sum(shapes[name]) for name in adapter.targets if name in shapes)
    single = 32 / BLOCK
    bits = 8 / BLOCK + 32 / (BLOCK * NESTED) if adapter.double else single
    saved = f", not {single:g}: the scales are quantised too" if adapter.double else ""
    inside = sum(sum(shape) for shape in shapes.values())
    lines = (
        Line("base", quantised / 2, f"{quantised:,} weights of the blocks' linear layers in 4 bits"),
        Line("its scales", quantised * bits / 8, f"{bits:.3f} bits a weight{saved}"),
        Line("other weights", 2.0 * (total - quantised), f"{total - quantised:,} in 16 bits: embeddings, head, norms"),
        Line("adapters", 2.0 * learned, f"{learned:,} weights of rank {rank} in 16 bits"),
        Line("their gradients", 2.0 * learned, "in 16 bits"),
        Line("optimiser", 8.0 * learned, "Adam's two numbers of 32 bits; paged: it may leave the GPU for a while"),
        Line(
            "input gradients",
            2.0 * context * (layers * dims.d_model + inside),
            f"{layers} blocks' inputs, and one block's own: the others compute theirs again (gradient checkpointing)",
        ),
        Line("logits", 10.0 * context * dims.vocab, "in 16 bits, and in 32 with their gradient"),
    )
    return Example(total, quantised, learned, context, lines, float(FULL * total))
