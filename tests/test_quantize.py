"""NF4 against bitsandbytes' CPU code, bit for bit, and against its own definition."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stemma import quantize
from stemma.errors import UsageError
from stemma.formats.gguf import quants
from stemma.quantize import native
from stemma.quantize.normal_float import CHUNK, LEVELS, dynamic, levels
from stemma.rewrites.nf4 import NF4Linear
from stemma.rewrites.weight_only import weight_only

# rows of whole blocks, odd sizes, one block, less than one; in these bitsandbytes reads its own codes back rightly
SHAPES = ((256, 128), (100, 193), (1000, 99), (1, 64), (7, 33), (1, 5))


@pytest.fixture
def eager() -> Iterator[None]:
    """Without compiling, which bitsandbytes asks of some of its functions."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("eager")
def test_codes_scales_and_values_are_those_of_bitsandbytes(dtype: torch.dtype, double: bool) -> None:
    theirs = pytest.importorskip("bitsandbytes.functional")
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(dynamic(), theirs.create_dynamic_map())
    for shape, block in itertools.product(SHAPES, (32, 64, 128)):
        weight = (0.02 * torch.randn(shape, generator=generator)).to(dtype)
        weight[0, :4] *= 10
        if shape[0] > 100:
            weight[3] = 0
        codes, state = theirs.quantize_4bit(weight, blocksize=block, quant_type="nf4", compress_statistics=double)
        ours = quantize.nf4(weight, block, double)
        where = f"{shape} {block}"
        assert torch.equal(ours.codes, codes.flatten()), where
        assert torch.equal(ours.absmax, state.absmax), where
        if double:
            assert torch.equal(ours.absmax2, state.state2.absmax) and torch.equal(ours.offset, state.offset), where
        found = theirs.dequantize_4bit(codes, state)
        assert torch.equal(ours.dequantize(dtype).flatten(), found.flatten()), where


def test_a_code_is_the_nearest_level_of_its_block() -> None:
    weight = torch.randn(50, 131, generator=torch.Generator().manual_seed(1))
    found = quantize.nf4(weight, 64, double=False)
    flat = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    scale = flat.abs().amax(1, keepdim=True)
    assert torch.equal(found.scales, scale[:, 0])
    nearest = (flat[..., None] / scale[..., None] - levels()).abs().argmin(-1).flatten()[: weight.numel()]
    assert torch.equal(found.indices.flatten().long(), nearest)
    assert torch.equal(
        found.dequantize(), (levels()[nearest] * scale.expand_as(flat).flatten()[: weight.numel()]).view_as(weight)
    )


def test_the_paper_s_numbers() -> None:
    """Section 3: 0.5 bits of scales a weight, 0.127 with double quantisation; errors of a normal distribution."""
    weight = torch.randn(512, 4096, generator=torch.Generator().manual_seed(2))
    double, single = quantize.nf4(weight), quantize.nf4(weight, double=False)
    assert double.bits_per_weight == pytest.approx(4.127, abs=5e-4) and single.bits_per_weight == 4.5
    assert (single.dequantize() - weight).square().mean().sqrt().item() == pytest.approx(0.0919, abs=2e-3)
    assert (double.dequantize() - weight).square().mean().sqrt().item() == pytest.approx(0.0919, abs=3e-3)
    assert len(LEVELS) == 16 and list(LEVELS) == sorted(LEVELS) and LEVELS[7] == 0
    # quantiles: section 3 of the paper, an even number of levels on both sides of an exact zero
    normal = torch.distributions.Normal(0.0, 1.0)
    edge = 1 - (1 / 32 + 1 / 30) / 2
    up, down = normal.icdf(torch.linspace(edge, 0.5, 9)[:-1]), -normal.icdf(torch.linspace(edge, 0.5, 8)[:-1])
    made = torch.cat([up, down, torch.zeros(1)]).sort().values
    assert (made / made.max() - levels()).abs().max() < 1e-6


def test_quantising_takes_little_memory() -> None:
    """Nothing that is made on the way is as large as the weight."""
    made: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            made.extend(t.nbytes for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor))
            return out

    for weight in (torch.randn(2048, 512), torch.randn(2048, 512).bfloat16()):
        plain = torch.nn.Linear(512, 2048, device="meta")
        wanted = quantize.nf4(weight)
        for module in (NF4Linear(64, True, plain), weight_only("int8", plain)):
            made.clear()
            with Sizes():
                module.store(weight, torch.device("cpu"), torch.float32)
            views = {weight.nbytes, weight.numel()}  # the weight itself, and what is kept of it
            assert max({*made} - views) <= 4 * CHUNK < weight.numel() * 4 / 3
            assert isinstance(module, NF4Linear) is torch.equal(module.codes, wanted.codes)


def test_zeros_and_equal_scales_come_back_exactly() -> None:
    for weight in (torch.zeros(3, 128), torch.ones(300, 64), torch.full((1, 7), -0.25)):
        assert torch.equal(quantize.nf4(weight).dequantize(), weight)


@pytest.mark.parametrize(
    ("tensor", "block", "words"),
    [
        (torch.ones(4), 63, "block=63 is no block size"),
        (torch.ones(4, dtype=torch.long), 64, "this tensor is of torch.int64"),
        (torch.tensor([1.0, float("nan")]), 64, "cannot hold inf or nan"),
        (torch.ones(0, 4), 64, "shape (0, 4)"),
    ],
)
def test_what_cannot_be_quantised_is_refused(tensor: torch.Tensor, block: int, words: str) -> None:
    with pytest.raises(UsageError) as error:
        quantize.nf4(tensor, block)
    assert words in str(error.value)


# ---------------------------------------------------------------- kernels


@pytest.fixture
def kernels() -> Iterator[None]:
    """Within this, without gradients; skipped where no compiler makes the kernels."""
    if native.kernels() is None:
        pytest.skip(native.how())
    with torch.no_grad():
        yield


def close(found: torch.Tensor | None, x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a product is as near to the exact one as sums in fp32 are."""
    assert found is not None
    exact, sizes = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    return bool(((found - exact).abs() <= 2**-21 * sizes).all())


@pytest.mark.usefixtures("kernels")
def test_products_of_codes_are_those_of_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    for (out, width), block, double in itertools.product(((5, 64), (33, 192), (7, 4096)), (32, 64), (True, False)):
        weight = torch.randn(out, width, generator=generator)
        weight[0, :7] *= 20
        weight[1] = 0
        q = quantize.nf4(weight, block, double)
        where = f"{out}x{width} {block} {double}"
        with monkeypatch.context() as patch:
            patch.setattr(native, "kernels", lambda: None)
            plain = q.dequantize()
            assert q.product(weight) is None
        assert torch.equal(q.dequantize(), plain), where
        for rows in (1, 2, 5, native.ROWS):
            x = torch.randn(rows, width, generator=generator)
            x[0, 3] = 100
            found = q.product(x)
            assert close(found, x, plain), where
            assert found is not None and torch.equal(found[:1], q.product(x[:1])), f"{where}: other rows change a row"
    x = torch.randn(1, 2, 4096, generator=generator).bfloat16()
    found = q.product(x)
    assert found is not None and found.shape == (1, 2, 7) and found.dtype == torch.bfloat16
    assert (found.float() - x.float() @ plain.T).abs().max() < 2**-7 * (x.float() @ plain.T).abs().max()


@pytest.mark.usefixtures("kernels")
def test_products_of_bytes_are_those_of_the_weight() -> None:
    generator = torch.Generator().manual_seed(4)
    for out, width in ((5, 64), (3, 77), (9, 1)):
        codes = torch.randint(-127, 128, (out, width), generator=generator).to(torch.int8)
        scale = torch.rand(out, 1, generator=generator)
        for rows in (1, native.BYTE_ROWS):
            x = torch.randn(rows, width, generator=generator)
            assert close(native.int8_product(codes, scale, x), x, codes * scale)


@pytest.mark.usefixtures("kernels")
def test_products_of_a_files_blocks_are_those_of_the_weight() -> None:
    """The weights bit for bit, whatever the bytes; rows longer than what is unpacked at a time."""
    made = {number: row for number, row in quants.QUANTISED.items() if not quants.NAMES[number].startswith("IQ")}
    assert set(native.BLOCKS) == {quants.NAMES[number] for number in made}  # PyTorch multiplies by the others
    for number, (size, struct, _) in made.items():
        kind = quants.NAMES[number]
        raw = np.random.default_rng(number).integers(0, 256, (33, 5 * 256 // size * struct.itemsize), dtype=np.uint8)
        for some in (raw, raw & 0x3B):  # any numbers; small ones
            codes = torch.from_numpy(some)
            expected = torch.from_numpy(quants.dequantise(some.reshape(-1), number)).view(33, 1280)
            found = native.blocks_weights(kind, codes, 1280)
            assert found is not None and torch.equal(found.nan_to_num(9), expected.nan_to_num(9)), kind
        for rows in (1, native.ROWS):
            x = torch.randn(rows, 1280, generator=torch.Generator().manual_seed(8))
            assert close(native.blocks_product(kind, codes, x), x, expected), kind


@pytest.mark.usefixtures("kernels")
def test_what_the_kernels_leave_to_torch() -> None:
    weight = torch.randn(6, 96, generator=torch.Generator().manual_seed(5))
    x, q = torch.ones(1, 96), quantize.nf4(weight, 32)
    assert q.product(x) is not None
    assert quantize.nf4(weight, 64).product(x) is None  # blocks that go on in the next row
    assert q.product(torch.ones(native.ROWS + 1, 96)) is None and q.product(torch.ones(0, 96)) is None
    with torch.enable_grad():
        assert q.product(x) is None
    with torch.autocast("cpu"):
        assert q.product(x) is None
    assert q.product(x.to("meta")) is None
    codes = torch.ones(6, 96, dtype=torch.int8)
    assert native.int8_product(codes, torch.ones(6, 1), torch.ones(native.BYTE_ROWS + 1, 96)) is None


@pytest.mark.usefixtures("kernels")
def test_older_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of eight numbers, and no vectors."""
    kinds = [("-mavx2", "-mfma")] if torch.backends.cpu.get_cpu_capability().startswith("AVX") else []
    weight = torch.randn(9, 320, generator=torch.Generator().manual_seed(6))
    x = torch.randn(5, 320, generator=torch.Generator().manual_seed(7))
    for flags in ((), *kinds):
        monkeypatch.setattr(native, "ATTEMPTS", (flags,))
        native.kernels.cache_clear()
        for block in (32, 64):
            q = quantize.nf4(weight, block)
            assert close(q.product(x), x, q.dequantize()), flags
    native.kernels.cache_clear()


def test_a_machine_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for compiler in ("no-such-compiler", "false", "'"):
        monkeypatch.setenv("CC", compiler)
        native.kernels.cache_clear()
        assert native.kernels() is None and "in plain PyTorch" in native.how(), compiler
    weight = torch.ones(2, 64)
    assert torch.equal(quantize.nf4(weight).dequantize(), weight)
    native.kernels.cache_clear()
