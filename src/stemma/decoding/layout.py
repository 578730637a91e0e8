"""Where weights lie in memory, for decoding on a CPU.

One token a step makes every linear layer a product of a matrix with as many vectors as there are rows. For fp32 and few
rows torch hands that to a kernel that reads a matrix stored as [in, out] 1.2 to 1.5 times faster than one stored as
[out, in], where it has at least as many outputs as inputs; with more rows it is the other way round. So
such weights are turned over in memory when the number of rows asks for it; their shape, values and names stay, and
nothing is kept twice.
"""

from __future__ import annotations

import torch
from torch import nn

from stemma.nn.model import Model

FEW = 3  # rows up to which the turned matrix is the faster one


@torch.inference_mode(False)
@torch.no_grad()
def for_decoding(model: Model, rows: int) -> None:
    """Lay the weights of an fp32 model on the CPU as `rows` sequences at a time are decoded fastest. They stay ordinary
    tensors: a model that has decoded can be trained."""
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return
    turn = rows <= FEW
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    weights += [w for w in (model.embed.tokens.weight, getattr(model.lm, "weight", None)) if w is not None]
    for weight in weights:
        if weight.shape[0] >= weight.shape[1] and weight.is_contiguous() == turn:
            weight.data = weight.data.t().contiguous().t() if turn else weight.data.contiguous()
