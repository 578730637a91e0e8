"""What is written otherwise where training is compiled: the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.nn.cpu import BLOCK, CompiledCrossEntropy, gelu_tanh, relu
from stemma.objectives.vocabulary import nats


def both(f: Callable[[Tensor], Tensor], x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Value and gradient, not compiled and traced as compiled code is."""
    out = []
    for g in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        y = x.clone().requires_grad_()
        value = g(y)
        (value * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum().backward()
        assert y.grad is not None
        out.append((value.detach(), y.grad))
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_rectifier_has_the_same_bits(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[0, :3] = torch.tensor([0.0, -0.0, 1e-38], dtype=dtype)
    (value, grad), (other, its) = both(relu, x)
    assert torch.equal(value, other) and torch.equal(grad, its)
    assert torch.equal(value, F.relu(x)) and not torch.equal(grad, torch.zeros_like(grad))


def test_a_compiled_tanh_gelu_is_the_same_function() -> None:
    torch._dynamo.reset()
    x = torch.cat([torch.linspace(-12, 12, 4001, dtype=torch.float64), torch.tensor([0.0, -60.0, 60.0]).double()])
    (value, grad), (other, its) = both(gelu_tanh, x)
    assert torch.allclose(value, other, rtol=1e-12, atol=1e-14) and torch.allclose(grad, its, rtol=1e-12, atol=1e-14)
    (value, grad), (other, its) = both(gelu_tanh, x.float())
    assert torch.allclose(value, other, rtol=1e-5, atol=1e-6) and torch.allclose(grad, its, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [7, BLOCK, BLOCK + 5])
def test_causal_rows_in_blocks_have_the_bits_of_a_mask_filled_in(length: int) -> None:
    from stemma.nn.attention import Attention
    from stemma.nn.parts import Attention as Spec
    from stemma.nn.parts import Dims

    attention = Attention(Spec(), Dims(16, 1, 2, 32, 50, 256), 0.0)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 2, length, 8, generator=generator).requires_grad_() for _ in range(3))
    before = torch.ones(length, length, dtype=torch.bool).tril()
    found = attention.attend_plainly(q, k, v, None, True, 0.0)
    parts = []
    for i in range(0, length, BLOCK):
        end = min(i + BLOCK, length)
        scores = (q[:, :, i:end] * attention.scale) @ k[:, :, :end].transpose(-1, -2)
        parts.append(scores.masked_fill(~before[i:end, :end], float("-inf")).softmax(-1) @ v[:, :, :end])
    wanted = torch.cat(parts, 2)
    assert torch.equal(found, wanted)
    weights = torch.randn(found.shape, generator=generator)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), (q, k, v)),
        torch.autograd.grad((wanted * weights).sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_loss_is_the_same(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, goal = torch.randn(33, 501, generator=generator).to(dtype), torch.randint(501, (33,), generator=generator)
    for z, smoothing in ((0.0, 0.0), (1e-2, 0.1)):
        each = []
        for f in (nats, CompiledCrossEntropy.apply):
            x = logits.clone().requires_grad_()
            value = f(x, goal, z, smoothing)
            value.backward()
            assert x.grad is not None
            each.append((value.detach(), x.grad.float()))
        assert torch.allclose(each[0][0], each[1][0], rtol=1e-6)
        assert torch.allclose(each[0][1], each[1][1], rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
