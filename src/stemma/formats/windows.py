"""Sliding windows by layer in a config.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stemma.declare.family import Design
from stemma.errors import CheckpointError
from stemma.nn.masks import layer_mask
from stemma.nn.parts import Causal, Cycle, Mask, Sliding

NAMES = {"sliding_attention": True, "full_attention": False}


LAYERS = 10_000  # more than any model has


def whole(name: str, value: Any, limit: int | None = None) -> int:
    """A count of tokens, or of layers up to `limit`. Raises CheckpointError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (limit is not None and value > limit):
        reach = "from 1 up" if limit is None else f"from 1 to {limit}"
        raise CheckpointError(f"{name}={value!r} should be a whole number {reach}")
    return value


def mask_of(types: Any, window: Any) -> Mask:
    """The mask of layers of these types, in the shortest cycle that gives them."""
    if not isinstance(types, Sequence) or isinstance(types, str) or not types:
        raise CheckpointError(f"layer_types={types!r} should be a list of one name a layer")
    if wrong := [t for t in types if not isinstance(t, str) or t not in NAMES]:
        raise CheckpointError(f"layer_types holds {wrong[0]!r}; known: {', '.join(NAMES)}")
    return repeating([NAMES[t] for t in types], window)


def repeating(slides: Sequence[bool], window: Any) -> Mask:
    """The mask of layers with a window (True) and without, in the shortest cycle that gives them."""
    period = next(p for p in range(1, len(slides) + 1) if all(s == slides[i % p] for i, s in enumerate(slides)))
    return cycle_of(slides[:period], window)


def cycle_of(slides: Sequence[bool], window: Any) -> Mask:
    """The mask that repeats a pattern of layers with a window (True) and without."""
    if any(slides):
        whole("sliding_window", window)
    masks: list[Causal | Sliding] = [Sliding(window) if s else Causal() for s in slides]
    return Cycle(tuple(masks)) if len(set(masks)) > 1 else masks[0]


def types_of(mask: Any, design: Design) -> list[str]:
    """The type of each layer."""
    words = {ours: theirs for theirs, ours in NAMES.items()}
    return [words[isinstance(layer_mask(mask, i), Sliding)] for i in range(design.dims.layers)]


def window_of(mask: Mask) -> int | None:
    """The window of the layers that have one."""
    masks = mask.masks if isinstance(mask, Cycle) else (mask,)
    return next((m.window for m in masks if isinstance(m, Sliding)), None)
