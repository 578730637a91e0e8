"""The matrices of a model's modules, in the kinds that products.c and its neighbours multiply with."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stemma.executor.assemble import NotLowered, Tape
from stemma.nn.mixed import Linear


def matrix_of(tape: Tape, module: nn.Module | Tensor) -> tuple[Any, Any]:
    """The matrix and the bias of a module; of a tensor or an embedding, its rows. Raises NotLowered for what has no
    kind."""
    if isinstance(module, Tensor):
        return tape.matrix(module), tape.vector(None)
    weight = getattr(module, "weight", None)
    if type(module) is nn.Embedding:
        return tape.matrix(module.weight), tape.vector(None)
    if type(module) in (Linear, nn.Linear) and isinstance(weight, Tensor):
        return tape.matrix(weight), tape.vector(module.bias)  # type: ignore[arg-type]
    raise NotLowered(f"the tape has no kind of product for {type(module).__name__}")
