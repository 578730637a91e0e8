"""Products of the step executor with weights of few bits: against the numbers of the blocks, between processors, and
alone or among others."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels
import stemma
from stemma.decoding.sessions import begin
from stemma.errors import UsageError
from stemma.executor import Executor
from stemma.executor import of as executor_of
from stemma.formats import gguf as files
from stemma.formats.gguf import quants, types
from stemma.quantize import blocks as made_blocks
from stemma.quantize import native, nf4, packing
from stemma.rewrites import LoRA, merge
from stemma.rewrites.lora import LoRALinear
from tiny import tiny

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")

NUMBERS = {name: number for number, name in quants.NAMES.items()}
HALVES = {"Q4_K": (0, 2), "Q6_K": (208,), "Q5_K": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,)}  # where scales stand


def blocks(kind: str, rows: int, width: int) -> Tensor:
    """Rows of blocks of random numbers about as large as weights."""
    generator = torch.Generator().manual_seed(len(kind) + rows)
    weights, struct, _ = quants.QUANTISED[NUMBERS[kind]]
    if kind in HALVES:
        raw = torch.randint(0, 256, (rows, width // weights, struct.itemsize), dtype=torch.uint8, generator=generator)
        for at in HALVES[kind]:
            scales = torch.randn(rows, width // weights, 1, generator=generator).mul(0.002).half()
            raw[..., at : at + 2] = scales.view(torch.uint8)
        return raw.flatten(1)
    gguf = pytest.importorskip("gguf")
    plain = (torch.randn(rows, width, generator=generator) * 0.05).numpy()
    return torch.from_numpy(gguf.quants.quantize(plain, getattr(gguf.GGMLQuantizationType, kind)))


def numbers(kind: str, raw: Tensor) -> Tensor:
    return torch.from_numpy(quants.dequantise(raw.numpy().reshape(-1), NUMBERS[kind])).view(len(raw), -1)


def vectors(count: int, width: int) -> Tensor:
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(5))
    x[:, :40] *= 9  # groups of other sizes
    x[-1, 32:64] = 0
    return x


def packed(kind: str, raw: Tensor, width: int) -> tuple[kernels.Matrix, Tensor]:
    data = packing.packed(kind, raw)
    return kernels.matrix(kind, data, len(raw), width, raw.shape[1]), data


def in_eight_bits(x: Tensor) -> Tensor:
    """The numbers that vectors are rounded to."""
    groups = x.unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / scale.where(scale > 0, 1)).round() * scale).flatten(-2)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return kernels.compiled(tmp_path_factory.mktemp("kinds"))


@pytest.mark.parametrize("kind", packing.LAYOUTS)
def test_products_with_packed_blocks(kind: str, library: ctypes.CDLL) -> None:
    """Those with vectors rounded to 8 bits are exact but for fp32 sums; the rounding costs half a percent. Rows of
    numbers are those of the file, bit for bit. Neither other vectors nor ranges of rows change a result."""
    raw, width = blocks(kind, 52, 512), 512
    w, data = packed(kind, raw, width)
    plain, x = numbers(kind, raw), vectors(23, width)
    found = kernels.times(library, w, x)
    exact = in_eight_bits(x).double() @ plain.double().T
    assert (found - exact).abs().max() < 2e-6 * exact.abs().max()
    wanted = x @ plain.T
    assert (found - wanted).norm() < 0.007 * wanted.norm()
    for count in (1, 2, 3, 5, 8):
        assert torch.equal(kernels.times(library, w, x[:count], ranges=3), found[:count])
    for r in (0, 17, 51):
        assert torch.equal(kernels.row(library, w, r), plain[r])
    assert torch.equal(packing.rows(kind, data, len(raw)), raw)
    ids = torch.tensor([3, 51, 3, 16])
    assert torch.equal(packing.rows(kind, data, len(raw), ids), raw[ids])


def test_processors_agree(library: ctypes.CDLL, tmp_path: Path) -> None:
    """Plain C computes what the vector instructions do: the same integers, then the same fp32 sums but for their last
    bits (a product and a sum are rounded apart)."""
    same = kernels.compiled(tmp_path, "-DPLAIN_C", "-O1")
    for kind in packing.LAYOUTS:
        w, _data = packed(kind, blocks(kind, 20, 512), 512)
        x = vectors(9, 512)
        a, b = kernels.times(library, w, x), kernels.times(same, w, x)
        assert (a - b).abs().max() < 1e-6 * a.abs().max(), kind
        assert torch.equal(kernels.times(same, w, x[:4]), b[:4]), kind


@pytest.mark.slow
def test_avx2_agrees_bit_for_bit(library: ctypes.CDLL, tmp_path: Path) -> None:
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2")
    narrow = kernels.compiled(tmp_path, "-mno-avx512f", "-O1")
    for kind in packing.LAYOUTS:
        w, _data = packed(kind, blocks(kind, 20, 512), 512)
        x = vectors(9, 512)
        assert torch.equal(kernels.times(library, w, x), kernels.times(narrow, w, x)), kind


def test_numbers_that_are_none_stay_so(library: ctypes.CDLL) -> None:
    w, _data = packed("Q8_0", blocks("Q8_0", 16, 64), 64)
    x = vectors(3, 64)
    x[0, 3], x[1, 40] = float("inf"), float("nan")
    found = kernels.times(library, w, x)
    assert not found[:2].isfinite().any() and found[2].isfinite().all()


def test_matrices_as_their_modules_keep_them(library: ctypes.CDLL) -> None:
    """int8, NF4 and blocks that are not packed: the kernels of `stemma.quantize`, whatever the number of vectors."""
    torch.manual_seed(0)
    wide, x = torch.randn(37, 256) * 0.05, vectors(7, 256)
    codes, scale = (wide / 0.002).round().clamp(-127, 127).to(torch.int8), torch.rand(37) * 0.01
    made = nf4(wide)
    struct = made.matrix.struct()
    cases = {
        "INT8": (kernels.matrix("INT8", codes, 37, 256, 256, scale), codes * scale[:, None]),
        "NF4": (kernels.matrix("NF4", made.codes, 37, 256, 128, None, ctypes.addressof(struct)), made.dequantize()),
    }
    raws = {}
    for kind in ("Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q5_K"):
        raws[kind] = blocks(kind, 37, 256)
        w = kernels.matrix("BLOCKS", raws[kind], 37, 256, raws[kind].shape[1], None, native.BLOCKS.index(kind))
        cases[kind] = w, numbers(kind, raws[kind])
    for kind, (w, plain) in cases.items():
        found, wanted = kernels.times(library, w, x, ranges=2), x @ plain.T
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max(), kind
        for count in (1, 2, 5):
            assert torch.equal(kernels.times(library, w, x[:count]), found[:count]), (kind, count)
        if kind != "NF4":
            assert torch.equal(kernels.row(library, w, 31), plain[31]), kind


# ---------------------------------------------------------------- models

WIDE = {"dims.d_model": 64, "dims.heads": 2, "dims.kv_heads": 1, "dims.head_dim": None, "dims.d_ff": 128}


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1"])
def test_a_model_in_few_bits_has_the_numbers_of_a_gguf_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, by the `gguf` package: embeddings, blocks and a head of its own. What is saved is what is computed
    with, as blocks too."""
    monkeypatch.setattr(types.Choice, "_more", lambda self, name, kind: kind)  # a head that is not wider than the rest
    plain = stemma.build(tiny("llama", **WIDE))
    plain.save(str(tmp_path / "plain"))
    stemma.save(plain, tmp_path / "a.gguf", dtype=kind)
    model, theirs = stemma.load(tmp_path / "plain", quantize=kind), stemma.load(tmp_path / "a.gguf")
    again = stemma.load(tmp_path / "a.gguf", quantize=kind)
    assert sum(p.numel() for p in model.parameters() if p.ndim > 1) == 0
    ids = torch.arange(3, 30)[None]
    assert torch.equal(model(ids).logits, theirs(ids).logits) and torch.equal(again(ids).logits, theirs(ids).logits)
    with torch.no_grad():
        assert (model(ids[:, :5]).logits - theirs(ids[:, :5]).logits).abs().max() < 1e-5
    model.save(str(tmp_path / "b.gguf"), layout="gguf")
    a, b = files.File(tmp_path / "a.gguf"), files.File(tmp_path / "b.gguf")
    assert {e.kind for e in b.entries.values()} == {"F32", kind.upper()}
    assert all(a.entries[n].kind == b.entries[n].kind and (a.raw(n) == b.raw(n)).all() for n in a)
    merged = dict(merge(model).named_parameters())
    assert all(torch.equal(p, merged[name]) for name, p in theirs.named_parameters())


def test_floats_are_rounded_as_the_gguf_package_does() -> None:
    gguf = pytest.importorskip("gguf")
    w = torch.randn(60, 96, generator=torch.Generator().manual_seed(0))
    w *= torch.logspace(-6, 3, 60)[:, None]
    w[3, :32], w[4, :32], w[5, 32:64] = 0, 0.7, torch.arange(32.0)
    for kind in made_blocks.ROUNDED:
        wanted = gguf.quants.quantize(w.numpy(), getattr(gguf.GGMLQuantizationType, kind))
        assert (made_blocks.rounded(kind, w).numpy() == wanted).all(), kind
        assert torch.equal(made_blocks.numbers(kind, torch.from_numpy(wanted)), numbers(kind, torch.from_numpy(wanted)))


def test_blocks_are_read_in_pytorch_as_in_numpy() -> None:
    """Bit for bit, whatever the bytes are."""
    for kind, (size, _) in made_blocks.READ.items():
        raw = torch.randint(0, 256, (50, 3 * size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        theirs = quants.dequantise(raw.numpy().reshape(-1), types.NUMBERS[kind]).reshape(50, -1)
        ours = made_blocks.numbers(kind, raw)
        assert torch.equal(ours.nan_to_num(1e9), torch.from_numpy(theirs).nan_to_num(1e9)), kind


def test_what_few_bits_cannot_hold_is_refused(tmp_path: Path) -> None:
    stemma.build(tiny("llama", **{**WIDE, "dims.d_model": 48})).save(str(tmp_path / "odd"))
    with pytest.raises(UsageError, match=r"q8_0 needs rows of a multiple of 32 weights, and a matrix has .* x 48"):
        stemma.load(tmp_path / "odd", quantize="q8_0")
    model = stemma.build(tiny("llama", **WIDE))
    with torch.no_grad():
        model.decoder.blocks[0].mlp.up.weight[3, 5] = float("inf")
    model.save(str(tmp_path / "inf"))
    with pytest.raises(UsageError, match=r"blocks.0.mlp.up.weight: Q4_0 cannot hold inf or nan"):
        stemma.load(tmp_path / "inf", quantize="q4_0")


def steps(model: Any, kind: str, ids: list[list[int]], alone: int | None = None, count: int = 6) -> tuple[Tensor, Any]:
    """Logits of steps after prompts, and the session's executor. `kind`: "executor", "modules" or "exact"; `alone`: the
    only row that goes on."""
    made = []
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        if kind == "exact":
            patch.setenv("STEMMA_EXECUTOR", "off")
        session = begin(model, ids, count)
        if kind == "modules":
            session.executor = None
        tokens = torch.arange(len(ids)) * 7
        if alone is not None:
            session.keep([alone])
            tokens = tokens[[alone]]
        for n in range(count):
            made.append(session.logits)
            session.step(tokens + n + 5)
    return torch.stack([*made, session.logits]), session.executor


LOADED = ("q8_0", "q4_0", "q4_1", "int8", "nf4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("wide")
    for name in ("llama", "gpt2", "gemma"):
        changes = dict(WIDE) if name != "gpt2" else {k: v for k, v in WIDE.items() if "kv" not in k}
        stemma.build(tiny(name, **changes), seed=3).save(str(where / name))
    return where


@pytest.mark.parametrize("kind", LOADED)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
def test_steps_in_few_bits(name: str, kind: str, folder: Path) -> None:
    """The tape's logits against those of the very numbers that the codes stand for: within what vectors in 8 bits cost,
    and for codes that multiply with fp32 vectors within rounding. A row among others is the same bits as alone."""
    model = stemma.load(folder / name, quantize=kind)
    texts = [[5, 6, 7], list(range(9, 29)), [30, 31]]
    found, executor = steps(model, "executor", texts)
    assert isinstance(executor, Executor), executor_of(model)
    for n in range(3):
        alone, _ = steps(model, "executor", texts, n)
        assert torch.equal(alone[1:, 0], found[1:, n])
    exact, none = steps(model, "exact", texts)
    assert none is None
    apart = (found - exact).norm() / exact.norm()
    assert apart < (0.02 if kind.startswith("q") else 1e-5), apart
    modules, _ = steps(model, "modules", texts)
    assert (found - modules).norm() < 1e-2 * exact.norm()


def test_prompts_are_rounded_as_steps_are(folder: Path) -> None:
    """A prompt's last logits are nearer to those of the same tokens read one by one than to those of exact products."""
    model = stemma.load(folder / "llama", quantize="q8_0")
    text = list(range(5, 25))
    with torch.inference_mode():
        whole, by_one = begin(model, [text], 3), begin(model, [text[:1]], 30)
        for token in text[1:]:
            by_one.step(torch.tensor([token]))
    exact, _ = steps(model, "exact", [text])
    near, far = (whole.logits - by_one.logits).norm(), (whole.logits - exact[0]).norm()
    assert near < far < 0.02 * exact.norm()


@pytest.mark.parametrize("kind", [None, "nf4", "q8_0", "keep"])
def test_adapters_beside_a_matrix(kind: str | None, folder: Path) -> None:
    """Two of them, one of which can be turned off, through the tape as through the modules."""
    first, second = LoRA(("*.attention.[qv]", "*.mlp.*"), 4), LoRA(("*.attention.q",), 3, name="other")
    model, same = (stemma.load(folder / "llama", quantize=kind, rewrites=(first, second)) for _ in range(2))
    layers = [m for of in (model, same) for m in of.modules() if isinstance(m, LoRALinear)]
    for n, m in enumerate(layers):
        m.up.data = torch.randn(m.up.shape, generator=torch.Generator().manual_seed(n % (len(layers) // 2))) * 0.05
    seen = []
    for strength in (1.0, 0.0, 0.5):
        for m in layers:
            if m.spec.name == "other":
                m.strength = strength
        found, executor = steps(model, "executor", [[5, 6, 7], [9]])
        exact, _ = steps(same, "exact", [[5, 6, 7], [9]])
        assert isinstance(executor, Executor), executor_of(model)
        assert (found - exact).norm() < (0.02 if kind == "q8_0" else 1e-5) * exact.norm()
        seen.append(exact)
    assert not torch.allclose(seen[0], seen[1])
