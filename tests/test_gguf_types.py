"""GGUF's quantised types, out and in, and models in several files. What llama.cpp makes of them is in
test_llama_cpp_types.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import stemma
from stemma.cli.convert import convert
from stemma.errors import CheckpointError, ResourceError, UsageError
from stemma.formats.gguf import File, open_file, quants
from stemma.formats.gguf.quantise import quantise
from stemma.formats.gguf.types import NUMBERS, TYPES
from test_gguf import put, raw_file, text, write
from tiny import build, tiny

Q = gguf.GGMLQuantizationType
BITS = [word for word in TYPES if word not in ("float32", "float16", "bfloat16")]
# the root mean square of the errors of normal weights, by that of the weights: the types' own, with a hundredth of room
OWN = {"q8_0": 0.0054, "q6_k": 0.0176, "q5_k": 0.036, "q5_1": 0.0383, "q5_0": 0.0432, "q4_k": 0.072, "q4_1": 0.0792,
       "q4_0": 0.087}  # fmt: skip


def normal(rows: int = 24, width: int = 512, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def again(x: torch.Tensor, word: str) -> torch.Tensor:
    kind = NUMBERS[TYPES[word][0]]
    raw = quantise(x, kind, gguf)
    assert raw.shape == (*x.shape[:-1], x.shape[-1] // quants.SIZES[kind][0] * quants.SIZES[kind][1])
    return torch.from_numpy(quants.dequantise(raw.reshape(-1), kind)).view_as(x)


def off(x: torch.Tensor, word: str) -> float:
    return float(((again(x, word) - x).square().mean() / x.square().mean()).sqrt())


def wide(name: str = "llama", jitter: float = 0.1, **changes: Any) -> Any:
    """A tiny model whose rows are whole blocks."""
    fixed = {"dims.d_model": 256, "dims.heads": 4, "dims.d_ff": 512, "dims.head_dim": None, "dims.layers": 8}
    design = tiny(name, **{**fixed, **changes})
    model = build(design, jitter=jitter)
    model.design, model.family = design, stemma.families.tree()[name]
    return model


# ---------------------------------------------------------------- quantising


@pytest.mark.parametrize("word", BITS)
def test_errors_are_the_types_own(word: str) -> None:
    x = normal()
    assert 0.9 * OWN[word] < off(x, word) < OWN[word]
    shifted = off(x * 0.02 + 0.02, word)  # groups with a minimum gain by it, others lose nothing
    assert shifted < OWN[word] * (0.9 if word in ("q4_k", "q5_k", "q4_1", "q5_1") else 1.05)
    kind = NUMBERS[TYPES[word][0]]
    if kind not in (12, 13, 14):  # what the package makes is the package's
        np.testing.assert_array_equal(quantise(x, kind, gguf), gguf.quants.quantize(x.numpy(), Q(kind)))


@pytest.mark.parametrize("word", ["q4_k", "q5_k", "q6_k"])
def test_blocks_of_every_kind(word: str) -> None:
    """No group's error is above a few of its own steps, whatever lies in its block; what is on the grid comes back."""
    steps = {"q4_k": 15, "q5_k": 31, "q6_k": 63}[word]
    x = normal(12, 256, 3)
    x[1] = 0
    x[2] = 0.37
    x[3] = -0.37
    x[4, :7] = 0
    x[5] *= torch.logspace(-6, 0, 256)
    x[6, 100] = 40.0
    x[7] = x[7].abs() + 3
    x[8] = -x[8].abs() - 3
    x[9] *= 1e-4
    x[10] *= 1000
    x[11] = torch.arange(256) % 16 - 7.0
    y = again(x, word)
    assert not y[1].any()
    assert (y[2:4] / x[2:4] - 1).abs().max() < 2e-3  # a constant has no error but the scales'
    width = 16 if word == "q6_k" else 32
    groups, made = x.view(12, -1, width), y.view(12, -1, width)
    span = groups.amax(-1).clamp_min(0) - groups.amin(-1).clamp_max(0)
    if word == "q6_k":
        span = 2 * groups.abs().amax(-1)
    room = 1.6 * span / steps + span.amax(-1, keepdim=True) / 40  # the scales have six bits themselves (seven)
    assert ((made - groups).abs() <= room[..., None]).all()
    assert (y[11] - x[11]).abs().max() < (0.05 if word != "q6_k" else 0.15)


def test_the_search_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the widths and the fits the errors are larger."""
    module = sys.modules[quantise.__module__]
    x = normal(seed=5)
    best = {word: off(x, word) for word in ("q4_k", "q5_k", "q6_k")}
    monkeypatch.setattr(module, "AFFINE", (0.0,))
    monkeypatch.setattr(module, "SIGNED", (0.0,))
    monkeypatch.setattr(module, "FITS", 0)
    for word, value in best.items():
        assert value < 0.96 * off(x, word), word


def test_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(9, 256).view(3, 3, 256).bfloat16()
    whole = {word: again(x.float(), word) for word in BITS}
    monkeypatch.setattr(quants, "CHUNK", 512)
    for word in BITS:
        assert torch.equal(again(x, word).float(), whole[word]), word


def test_values_that_no_type_holds(tmp_path: Path) -> None:
    model = wide(**{"dims.layers": 1})
    with torch.no_grad():
        model.decoder.blocks[0].mlp.up.weight[3, 3] = float("nan")
    for word in ("q4_k", "q4_0"):
        with pytest.raises(UsageError, match=rf"blk.0.ffn_up.weight: {word.upper()} cannot hold inf or nan, and this"):
            model.save(tmp_path / "x.gguf", dtype=word)
    with torch.no_grad():
        model.decoder.blocks[0].mlp.up.weight[3, 3] = 3e30
    for word in ("q4_k", "q6_k", "q8_0"):
        with pytest.raises(UsageError, match=r"ffn_up.weight: this tensor has values too large for the half-precision"):
            model.save(tmp_path / "x.gguf", dtype=word)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- files


def kinds(path: Path) -> dict[str, str]:
    return {name: entry.kind for name, entry in open_file(path).entries.items()}


@pytest.mark.parametrize("word", BITS)
def test_files_of_each_type(tmp_path: Path, word: str) -> None:
    """Norms are F32, matrices have the type, the head the wider one; what is read is what `quantise` gave."""
    model = wide(**{"dims.layers": 2})
    model.save(tmp_path / "x.gguf", dtype=word)
    held, kind = kinds(tmp_path / "x.gguf"), TYPES[word][0]
    assert held["output.weight"] == ("Q8_0" if word == "q8_0" else "Q6_K")
    assert held["blk.0.attn_norm.weight"] == held["output_norm.weight"] == "F32"
    assert held["token_embd.weight"] == held["blk.1.attn_output.weight"] == held["blk.0.ffn_gate.weight"] == kind
    keys = File(tmp_path / "x.gguf").metadata
    assert (keys["general.file_type"], keys["general.quantization_version"]) == (TYPES[word][1], 2)
    there = stemma.load(tmp_path / "x.gguf")
    up = model.decoder.blocks[1].mlp.up.weight.detach()
    assert torch.equal(there.decoder.blocks[1].mlp.up.weight, again(up, word))
    kept = stemma.load(tmp_path / "x.gguf", quantize="keep")  # and back, block by block
    kept.save(str(tmp_path / "y.gguf"))
    x, y = File(tmp_path / "x.gguf"), File(tmp_path / "y.gguf")
    assert kinds(tmp_path / "y.gguf") == held and all(np.array_equal(x.raw(n), y.raw(n)) for n in x)


def test_which_tensors_are_wider(tmp_path: Path) -> None:
    """As in llama.cpp's Q4_K_M: of 8 layers the first, the last and every third between have more bits for v and
    ffn_down."""
    wide().save(tmp_path / "x.gguf", dtype="Q4_K_M")
    held = kinds(tmp_path / "x.gguf")
    for x in ("attn_v", "ffn_down"):
        assert [i for i in range(8) if held[f"blk.{i}.{x}.weight"] == "Q6_K"] == [0, 3, 6, 7]
        assert {held[f"blk.{i}.{x}.weight"] for i in (1, 2, 4, 5)} == {"Q4_K"}
    wide("gpt2").save(tmp_path / "y.gguf", dtype="q4_k")
    held = kinds(tmp_path / "y.gguf")
    assert held["token_embd.weight"] == "Q6_K" and held["blk.0.attn_qkv.weight"] == "Q5_K"  # tied; v among them
    assert held["position_embd.weight"] == "F32"
    experts = wide("mixtral", **{"dims.layers": 2})
    experts.save(tmp_path / "z.gguf", dtype="q5_k")
    held = kinds(tmp_path / "z.gguf")
    assert held["blk.0.ffn_gate_inp.weight"] == "F32" and held["blk.0.ffn_up_exps.weight"] == "Q5_K"
    got = stemma.load(tmp_path / "z.gguf").decoder.blocks[0].mlp.up
    assert torch.equal(got, again(experts.decoder.blocks[0].mlp.up.detach(), "q5_k"))


def test_rows_that_blocks_do_not_divide(tmp_path: Path) -> None:
    model = wide(**{"dims.d_model": 96, "dims.d_ff": 100, "dims.layers": 1})
    with pytest.warns(UserWarning) as told:
        model.save(tmp_path / "x.gguf", dtype="q4_k")
    held = kinds(tmp_path / "x.gguf")
    assert held["blk.0.attn_q.weight"] == "Q5_0" and held["output.weight"] == "Q8_0"
    assert held["blk.0.ffn_down.weight"] == "F16"
    (line,) = [str(w.message) for w in told]
    assert "x.gguf: of 9 matrices, 6 in Q5_0 instead of Q4_K, " in line and "1 in F16 instead of Q" in line
    assert line.endswith(": their rows are no multiple of the type's blocks")
    assert "\n" not in line


def test_names_of_types(tmp_path: Path) -> None:
    model = wide(**{"dims.layers": 1})
    for word, kind in (("F16", "F16"), ("bf16", "BF16"), ("f32", "F32"), ("Q4_K", "Q4_K")):
        model.save(tmp_path / "x.gguf", dtype=word)
        assert kinds(tmp_path / "x.gguf")["blk.0.attn_q.weight"] == kind
    with pytest.raises(UsageError, match=r"dtype 'q4_l' is no type of a GGUF file here; .*did you mean 'q4_"):
        model.save(tmp_path / "x.gguf", dtype="q4_l")


# ---------------------------------------------------------------- several files


def test_split(tmp_path: Path) -> None:
    """Parts as gguf-split names them; any part opens all; what comes back is what went in."""
    model = wide(**{"dims.layers": 2})
    model.save(tmp_path / "one.gguf")
    model.save(tmp_path / "x.gguf", split_bytes=1_500_000)
    parts = sorted(p.name for p in tmp_path.glob("x*"))
    n = len(parts)
    assert n > 2 and parts == [f"x-{i:05}-of-{n:05}.gguf" for i in range(1, n + 1)]
    for i, name in enumerate(parts):
        part = File(tmp_path / name)
        assert (part.metadata["split.no"], part.metadata["split.count"]) == (i, n)
        assert sum(len(part.raw(t)) for t in part) <= 1_500_000 and ("llama.block_count" in part.metadata) == (i == 0)
        fields = gguf.GGUFReader(tmp_path / name).fields
        assert [fields[f"split.{k}"].types[0].name for k in ("no", "count", "tensors.count")] == [
            "UINT16",
            "UINT16",
            "INT32",
        ]
    one = File(tmp_path / "one.gguf")
    for name in (parts[0], parts[-1]):
        file = open_file(tmp_path / name)
        assert {*file} == {*one} and all(np.array_equal(file.raw(t), one.raw(t)) for t in one)
        loaded = stemma.load(tmp_path / name)
        for (a, p), (b, q) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
            assert a == b and torch.equal(p, q)
    stemma.load(tmp_path / parts[1], quantize="keep")
    model.save(tmp_path / "x.gguf", split_bytes=10**9)  # all in one; the old parts go with the files they replace
    assert sorted(p.name for p in tmp_path.glob("x*")) == ["x.gguf"]
    with pytest.raises(UsageError, match="split_bytes=5 is for layout='gguf'"):
        model.save(str(tmp_path / "hf"), split_bytes=5)


def test_a_split_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide(**{"dims.layers": 1})
    model.save(tmp_path / "x.gguf", split_bytes=600_000)
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    real, calls = gguf.GGUFWriter.write_tensor_data, []

    def full(self: Any, data: Any) -> None:
        calls.append(1)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        real(self, data)

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        model.save(tmp_path / "x.gguf", split_bytes=900_000)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    model = wide(**{"dims.layers": 1})
    model.save(tmp_path / "x.gguf", split_bytes=400_000)
    parts = sorted(tmp_path.glob("x*"))
    n = len(parts)
    assert n > 5
    held = [p.read_bytes() for p in parts]

    def refused(words: str, path: Path = parts[2]) -> None:
        with pytest.raises(CheckpointError, match=words) as error:
            stemma.load(path)
        assert "\n" not in str(error.value)
        for p, data in zip(parts, held, strict=True):
            p.write_bytes(data)

    parts[1].unlink()
    refused(rf"{parts[2].name} is part 3 of {n}; missing beside it: {parts[1].name}$")
    for i in (0, 1, 3, 4):
        parts[i].unlink()
    refused(rf"missing beside it: {parts[0].name}, {parts[1].name}, {parts[3].name} and 1 more$")
    other = tmp_path / "other.gguf"
    other.write_bytes(held[2])
    refused(rf"other.gguf is part 3 of {n} .* should be called NAME-00003-of-{n:05}.gguf and lie beside", other)
    parts[3].write_bytes(held[2])
    refused(rf"{parts[3].name}: split.no=2 and split.count={n} should be 3 and {n}, as its name says")
    keys = {"split.no": (3, gguf.GGUFValueType.UINT16), "split.count": (n, gguf.GGUFValueType.UINT16)}
    twice = {next(iter(File(parts[2]))): np.zeros(3, np.float32)}
    write(parts[3], "llama", keys, twice)
    refused(rf"{parts[2].name} and .*{parts[3].name} both have the tensor")
    write(parts[3], "llama", keys, {f"more{i}": np.zeros(3, np.float32) for i in range(9)})
    refused(r"all parts together should have \d+ tensors \(split.tensors.count\), not \d+: one of them is of another")
    parts[3].write_bytes(held[3][:100])
    refused("damaged or cut short")
    assert stemma.load(parts[2]).dims == model.dims


def test_convert_to_types_and_parts(tmp_path: Path) -> None:
    wide(**{"dims.layers": 1}).save(str(tmp_path / "hf"))

    def call(*args: Any) -> Any:
        return CliRunner().invoke(convert, [str(a) for a in args], catch_exceptions=True)

    source = tmp_path / "hf"
    for name, options in (("a", ["--type", "q4_k"]), ("b", ["--dtype", "Q4_K_M"]), ("c", ["--type", "f16"])):
        result = call(source, tmp_path / f"{name}.gguf", *options)
        assert result.exit_code == 0, result
    assert kinds(tmp_path / "a.gguf") == kinds(tmp_path / "b.gguf")
    assert kinds(tmp_path / "c.gguf")["output.weight"] == "F16"
    split = ["--type", "q6_k", "--split-max-size", "200KB"]
    assert call(source, tmp_path / "d.gguf", *split).exit_code == 0
    first = min(tmp_path.glob("d-*.gguf"))
    again = call(source, tmp_path / "d.gguf", *split)
    assert (
        isinstance(again.exception, UsageError)
        and "d-00001-of-" in str(again.exception)
        and "--force" in str(again.exception)
    )
    assert call(source, tmp_path / "d.gguf", *split, "--force").exit_code == 0
    result = call(first, tmp_path / "e.gguf", "--type", "q4_0")  # from parts, of weights that are quantised already
    assert result.exit_code == 0 and kinds(tmp_path / "e.gguf")["blk.0.attn_q.weight"] == "Q4_0"
    for target, options, words in (
        ("f", ["--type", "q4_k"], r"--dtype q4_k is for GGUF files \(--to gguf\)"),
        ("f", ["--split-max-size", "1GB"], "--split-max-size is for GGUF files"),
        ("f.gguf", ["--split-max-size", "big"], "--split-max-size 'big' is no size; write 5GB"),
        ("f.gguf", ["--type", "q3"], "dtype 'q3' is not known"),
    ):
        result = call(source, tmp_path / target, *options)
        assert isinstance(result.exception, UsageError), (target, options, result)
        with pytest.raises(UsageError, match=words):
            raise result.exception
        assert not (tmp_path / target).exists()


# ---------------------------------------------------------------- types that are only read


def random_blocks(kind: int, rows: int = 6, blocks: int = 1) -> np.ndarray[Any, Any]:
    raw = np.random.default_rng(kind).integers(0, 256, (rows, blocks * quants.SIZES[kind][1]), dtype=np.uint8)
    return raw & 0x3F if kind in (20, 23) else raw


@pytest.mark.parametrize("kind", list(quants.BY_LIBRARY), ids=lambda k: quants.NAMES[k])
def test_types_of_the_package(tmp_path: Path, kind: int) -> None:
    assert tuple(gguf.GGML_QUANT_SIZES[Q(kind)]) == quants.SIZES[kind] and Q(kind).name == quants.NAMES[kind]
    raw = random_blocks(kind)
    file = File(write(tmp_path / "x.gguf", "llama", {}, {"a": raw}, raw=Q(kind)))
    with np.errstate(all="ignore"):
        want = gguf.dequantize(raw, Q(kind))
    got = file.get("a")
    assert got.dtype == torch.float32 and got.shape == (6, quants.SIZES[kind][0])
    np.testing.assert_array_equal(got.numpy().view(np.int32), want.view(np.int32))
    assert file.blocks("a").kind == quants.NAMES[kind]


def test_a_model_of_few_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole model whose matrices are IQ2_XS and IQ4_XS; without the package one sentence, and shapes all the same."""
    model = wide(**{"dims.layers": 1})
    model.save(tmp_path / "x.gguf", dtype="q4_0")
    file, tensors = File(tmp_path / "x.gguf"), {}
    keys = {k: v for k, v in file.metadata.items() if not k.startswith("general.")}
    out = gguf.GGUFWriter(tmp_path / "y.gguf", "llama")
    for key, value in keys.items():
        put(out, key, value)
    for name, entry in file.entries.items():
        kind = 23 if name == "output.weight" else 17
        if entry.type in quants.PLAIN:
            out.add_tensor(name, file.get(name).numpy())
        else:
            raw = random_blocks(kind, entry.shape[0], entry.shape[1] // 256)
            tensors[name] = np.zeros_like(raw) if kind == 17 else raw  # scales of random bits may be infinite
            out.add_tensor(name, tensors[name], raw_dtype=Q(kind))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    there = stemma.load(tmp_path / "y.gguf")
    want = gguf.dequantize(tensors["output.weight"], Q.IQ4_XS)
    np.testing.assert_array_equal(there.lm.weight.detach().numpy(), want)
    kept = stemma.load(tmp_path / "y.gguf", quantize="keep")
    assert kept.lm.kind == "IQ4_XS" and kept.decoder.blocks[0].attention.q.kind == "IQ2_XS"
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ResourceError, match=r"reading GGUF tensors of type IQ2_XS needs .*'stemma-lm\[gguf\]'"):
        stemma.load(tmp_path / "y.gguf")
    assert stemma.load(tmp_path / "y.gguf", device="meta").dims == model.dims


def test_a_type_that_cannot_be_read(tmp_path: Path) -> None:
    import struct

    for kind, name in ((41, "Q1_0"), (99, "number 99")):
        path = tmp_path / "x.gguf"
        path.write_bytes(raw_file(text("blk.0.x") + struct.pack("<IQIQ", 1, 128, kind, 0), tensors=1).ljust(200, b"\0"))
        file = File(path)  # what else it holds can be read
        with pytest.raises(CheckpointError, match=f"'blk.0.x' has type {name}, which cannot be read here"):
            file.get("blk.0.x")
