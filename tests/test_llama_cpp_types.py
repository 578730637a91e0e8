"""GGUF's quantised types and split files in llama.cpp: our files there, its files here.

Skipped unless a Python with llama_cpp is at hand, as test_llama_cpp.py says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import stemma
from stemma.formats.gguf import File, open_file, quants
from stemma.formats.gguf.quantise import MADE, quantise
from stemma.formats.gguf.types import NUMBERS, TYPES
from test_gguf_types import BITS, kinds, wide
from test_llama_cpp import NEW, llama_cpp, logits, prompts, python

__all__ = ["python"]  # a fixture
pytestmark = pytest.mark.llama_cpp

VOCAB = 97
FORCED = torch.randint(3, VOCAB, (NEW,), generator=torch.Generator().manual_seed(12)).tolist()
# family: how far logits may be off (root mean square by that of their values). llama.cpp rounds activations to eight
# bits before a product with such a matrix; what is routed by them, or not scaled, feels it more
BOUND = {"llama": 3e-2, "qwen3": 3e-2, "gemma2": 3e-2, "gpt2": 3e-2, "mixtral": 0.2, "t5": 0.1}


def model_of(family: str) -> Any:
    dims = {"dims.vocab": VOCAB, "dims.context": 128, "dims.layers": 3, "dims.kv_heads": None}
    if family == "t5":
        dims |= {"arch.position.buckets": 32, "arch.position.distance": 128}
    if family == "gemma2":
        dims["arch.attention.scale_width"] = 64.0
    return wide(family, 0.03, **dims)


def job(path: Path) -> dict[str, Any]:
    return {"path": str(path), "prompts": prompts(VOCAB), "new": NEW, "forced": FORCED}


def differ(model: Any, result: dict[str, Any], factor: float = 1.0) -> float:
    """The largest difference of logits after the prompts."""
    off = []
    for prompt, got in zip(prompts(VOCAB), result["logits"], strict=True):
        want = logits(model, prompt, FORCED) * factor
        off.append(float(((torch.tensor(got) - want).square().mean() / want.square().mean()).sqrt()))
    return max(off)


@pytest.mark.parametrize("word", BITS)
def test_our_files_there(python: str, tmp_path: Path, word: str) -> None:
    """The logits of a file in llama.cpp are ours of the same file, within what rounding of activations does; with four
    bits they are three times nearer to them than to those of the weights before they were rounded."""
    jobs, models = [], {}
    for family in BOUND:
        path = tmp_path / f"{family}.gguf"
        model_of(family).save(path, dtype=word)
        jobs.append(job(path))
        models[family] = stemma.load(path)
    for (family, model), result in zip(models.items(), llama_cpp(python, jobs), strict=True):
        scale = model.dims.d_model**0.5 if family == "t5" else 1.0  # which llama.cpp leaves out
        off = differ(model, result, scale)
        rounding = differ(model_of(family), result, scale)
        print(f"{word} {family}: differs by {off:.1e}; rounding, by {rounding:.1e}")
        assert off < BOUND[family], (family, off)
        assert off < rounding / 3 or not word.startswith("q4"), (family, off, rounding)


def test_our_parts_there(python: str, tmp_path: Path) -> None:
    model = model_of("llama")
    model.save(tmp_path / "x.gguf", split_bytes=2_000_000)
    first = min(tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) > 2
    (result,) = llama_cpp(python, [job(first)])
    assert differ(model, result) < 1e-5


# llama.cpp's own number of a file's type
FILES = {"Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "IQ3_S": 26,
         "TQ1_0": 36, "TQ2_0": 37}  # fmt: skip


def test_its_files_here(python: str, tmp_path: Path) -> None:
    """Files that llama.cpp quantised, in one and in parts, give its logits; its Q4_K, Q5_K and Q6_K files have the
    types that ours have, tensor by tensor, and larger errors."""
    model = model_of("llama")
    model.save(tmp_path / "x.gguf", dtype="float32")
    model.save(tmp_path / "p.gguf", split_bytes=2_000_000)
    first = min(tmp_path.glob("p-*"))
    jobs = [{"path": str(tmp_path / "x.gguf"), "quantise": [str(tmp_path / f"{k}.gguf"), n]} for k, n in FILES.items()]
    jobs.append({"path": str(first), "quantise": [str(tmp_path / "q"), FILES["IQ4_XS"]], "keep_split": True})
    jobs += [job(tmp_path / f"{k}.gguf") for k in FILES]
    results = llama_cpp(python, jobs)[len(FILES) + 1 :]
    for kind, result in zip(FILES, results, strict=True):
        held = kinds(tmp_path / f"{kind}.gguf")
        off = differ(stemma.load(tmp_path / f"{kind}.gguf"), result)
        print(f"{kind}: differs by {off:.1e}; {sorted(set(held.values()))}")
        assert off < 0.1 if kind.startswith("TQ") else off < 3e-2, (kind, off)
    parts = sorted(tmp_path.glob("q-*"))
    assert len(parts) > 2 and {*kinds(parts[1])} == {*kinds(tmp_path / "IQ4_XS.gguf")}
    whole, split = open_file(tmp_path / "IQ4_XS.gguf"), open_file(parts[-1])
    assert all(np.array_equal(whole.raw(name), split.raw(name)) for name in whole)
    plain = File(tmp_path / "x.gguf")
    for word, theirs in (("q4_k", "Q4_K_M"), ("q5_k", "Q5_K_M"), ("q6_k", "Q6_K")):
        model.save(tmp_path / "y.gguf", dtype=word)
        assert kinds(tmp_path / "y.gguf") == kinds(tmp_path / f"{theirs}.gguf")
        ours, other = (sum(float((f.get(n) - plain.get(n)).square().sum()) for n in f if n in plain)
                       for f in (File(tmp_path / "y.gguf"), File(tmp_path / f"{theirs}.gguf")))  # fmt: skip
        print(f"{word}: squared errors by llama.cpp's: {ours / other:.3f}")
        assert ours < other


def test_blocks_bit_for_bit(python: str, tmp_path: Path) -> None:
    """Every type that is read gives the numbers that ggml gives; what the package quantises is what ggml makes; what is
    made here has no larger errors."""
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "x.npy", x.numpy())
    types = {kind: quants.NAMES[kind] for kind in quants.SIZES if kind not in quants.PLAIN and kind != 40}
    jobs = [
        {"blocks": kind, "name": name, "of": str(tmp_path / "x.npy"), "to": str(tmp_path / name)}
        for kind, name in types.items()
    ]
    llama_cpp(python, jobs)
    made = {NUMBERS[TYPES[word][0]] for word in BITS}
    for kind, name in types.items():
        raw, want = np.load(tmp_path / f"{name}.raw.npy"), np.load(tmp_path / f"{name}.npy")
        assert raw.size == x.numel() // quants.SIZES[kind][0] * quants.SIZES[kind][1], name
        got = quants.dequantise(raw.reshape(-1), kind).reshape(x.shape)
        np.testing.assert_array_equal(got, want, err_msg=name)
        if kind in MADE:
            again = quants.dequantise(quantise(x, kind, gguf).reshape(-1), kind).reshape(x.shape)
            ours, theirs = (float(np.square(v - x.numpy()).mean()) for v in (again, want))
            print(f"{name}: squared errors by ggml's: {ours / theirs:.3f}")
            assert ours < theirs, name
        elif kind in made:
            np.testing.assert_array_equal(quantise(x, kind, gguf), raw, err_msg=name)
