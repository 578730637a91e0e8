"""Products with matrices by oneDNN: the same numbers up to rounding, and only where they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import stemma
from stemma import spec
from stemma.alignment.plans import resolve
from stemma.nn import products
from stemma.nn.mixed import Linear, linear
from stemma.text import Specials, Tokenizer
from stemma.train.config import Train

WIDTH, OUT = 96, 160
here = pytest.mark.skipif(not products.available(), reason="torch has no oneDNN for this processor")


def given(*shape: int, bias: bool = True) -> list[Tensor]:
    """Inputs, a matrix and perhaps a bias, fp64."""
    torch.manual_seed(1)
    shapes = [(*shape, WIDTH), (OUT, WIDTH), *([(OUT,)] if bias else [])]
    return [torch.randn(size, dtype=torch.float64) for size in shapes]


def computed(tensors: list[Tensor], slope: Tensor) -> list[Tensor]:
    """The product and its gradients in fp32."""
    leaves = [t.float().requires_grad_() for t in tensors]
    y = linear(*leaves)
    y.backward(slope.float())
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@here
@pytest.mark.parametrize("shape", [(200,), (4, 50), (2, 5, 20)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_and_gradients_are_exact_up_to_rounding(shape: tuple[int, ...], bias: bool) -> None:
    """As near to fp64 as torch's own products are, whatever the shape, and the same bits each time."""
    tensors = given(*shape, bias=bias)
    slope = torch.randn(OUT, *shape, dtype=torch.float64).movedim(0, -1)  # no contiguous gradient
    leaves = [t.clone().requires_grad_() for t in tensors]
    right = F.linear(*leaves)
    right.backward(slope)
    expected = [right.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
    with products.onednn():
        assert products.fits(tensors[0].float(), tensors[1].float())
        found, again = computed(tensors, slope), computed(tensors, slope)
    for a, b, exact in zip(found, again, expected, strict=True):
        assert a.shape == exact.shape and torch.equal(a, b)
        assert float((a - exact).abs().max()) <= 2e-6 * float(exact.abs().max())


@here
def test_other_products_are_those_of_torch() -> None:
    """Outside of the block, after it, of few numbers, in other types, and under autocast: the same bits."""
    x, weight = (t.float() for t in given(200, bias=False))
    layer = Linear(WIDTH, OUT, bias=False)
    layer.weight.data.copy_(weight)
    plain, low = F.linear(x, weight), F.linear(x.bfloat16(), weight.bfloat16())
    with products.onednn():
        own = layer(x)
        assert products.fits(x, layer.weight) and torch.equal(own, products.linear(x, layer.weight, None))
        assert torch.equal(linear(x[:8], weight), F.linear(x[:8], weight))
        assert torch.equal(linear(x.bfloat16(), weight.bfloat16()), low)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16
        with products.onednn(False):
            assert torch.equal(linear(x, weight), plain)
    assert torch.equal(linear(x, weight), plain)


def test_runs_of_alignment_choose_it_and_older_runs_do_not(tmp_path: Path) -> None:
    """A plan without the setting multiplies as it did."""
    sizes = {"layers": 1, "d_model": 16, "heads": 2, "kv_heads": 2, "d_ff": 24, "vocab": 300, "context": 64}
    model = stemma.build("llama", **sizes)
    model.tokenizer = Tokenizer.train("bpe", ["a text"], 300, Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>"))
    model.save(tmp_path / "base")
    plan = resolve("dpo", str(tmp_path / "base"), "builtin:captain", template="plain")
    assert plan.train.products == "onednn" and spec.from_dict(type(plan), spec.to_dict(plan)) == plan
    assert "products" not in spec.to_dict(Train()) and spec.from_dict(Train, {}).products == "torch"
