"""Exact counts of parameters, without building every layer of every size."""

from __future__ import annotations

import functools
from dataclasses import replace

from stemma.nn.model import count
from stemma.nn.parts import Arch, Dims


@functools.cache
def _count(arch: Arch, dims: Dims) -> int:
    return count(arch, dims)


def parameters(arch: Arch, dims: Dims) -> int:
    """`count(arch, dims)`, from networks of one and two layers a stack: every further layer adds what the second did.

    Layers that share weights are counted by their groups.
    """
    stacks = ["groups" if dims.groups else "layers"]
    if arch.structure == "encoder-decoder":
        stacks.append("decoder_layers")
    wanted = {"layers": dims.layers, "groups": dims.groups or dims.layers, "decoder_layers": dims.depth}
    few = {"layers": 2, "groups": 1 if dims.groups else None, "decoder_layers": 1 if len(stacks) > 1 else None}
    few |= {} if dims.groups else {"layers": 1}
    first = _count(arch, replace(dims, **few))
    total = first
    for stack in stacks:
        more = _count(arch, replace(dims, **few | {stack: 2}))
        total += (wanted[stack] - 1) * (more - first)
    return total
