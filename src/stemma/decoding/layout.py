"""The memory layout of weights, for decoding by PyTorch on a CPU: the step executor reads them as they are.

With one token a step, a linear layer multiplies a matrix with one vector a row. In fp32 and with few rows, torch's
kernel reads a matrix stored as [in, out] 1.2 to 1.5 times faster than one stored as [out, in], if it has at least as
many outputs as inputs; with more rows it is the other way round. So such weights are transposed in memory where that is
faster. Their shapes, values and names stay, and nothing is stored twice.
"""

from __future__ import annotations

import torch
from torch import nn

from stemma import executor
from stemma.decoding.inputs import sole_user
from stemma.nn.model import Model

FEW = 3  # rows up to which [in, out] is the faster layout


@torch.inference_mode(False)
@torch.no_grad()
def lay_out(model: Model, rows: int) -> None:
    """Store the weights of an fp32 model on the CPU, which PyTorch decodes with, in the fastest layout for `rows` rows.
    They stay ordinary tensors, so the model can be trained afterwards. While other threads compute with the model they
    stay where they are."""
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return
    if isinstance(executor.of(model), executor.Executor):
        return
    transposed = rows <= FEW
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    tables = [dict(m.named_parameters(recurse=False)) for m in (model.embed.tokens, model.lm) if m is not None]
    weights += [own["weight"] for own in tables if "weight" in own]  # those of replaced modules are made when asked for
    with sole_user(model) as sole:
        for weight in weights if sole else ():
            if weight.shape[0] >= weight.shape[1] and weight.is_contiguous() == transposed:
                weight.data = weight.data.t().contiguous().t() if transposed else weight.data.contiguous()
