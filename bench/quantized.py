"""Decoding with quantised weights on a CPU, beside the same model in fp32: one prompt, greedily, interleaved.

    python bench/quantized.py [MODEL] [--threads 1 2] [--repeats 5] [--new 64] [--layers 30]
                              [--kinds fp32 nf4 ...] [--peak] [--json FILE]

Without MODEL it has SmolLM2-135M's shape (30 layers of 576, 9 heads over 3, 49,152 tied embeddings) and random weights. A figure
is new tokens a second, the whole call of `generate` (a prompt of 64 tokens and decoding); the ratio is the median of the paired
ratios to fp32. `keep`: in the types of a GGUF file (of random weights: Q8_0). `plain`: without the kernels that a C compiler
makes. `--peak` measures no speed but the memory that loading takes at its peak (Linux).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import stemma
from stemma.quantize import native

PROMPT = 64
SHAPE = {"d_model": 576, "heads": 9, "kv_heads": 3, "d_ff": 1536, "vocab": 49_152}
KINDS = ("fp32", "nf4", "int8", "keep", "nf4 plain", "int8 plain", "keep plain")


@contextlib.contextmanager
def without_kernels(off: bool) -> Iterator[None]:
    with mock.patch.object(native, "kernels", lambda: None) if off else contextlib.nullcontext():
        yield


def models(source: str | None, layers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        if source is None:
            source = f"{folder}/model.gguf"
            made = stemma.build("llama-7b", {"arch.heads.lm.tied": True}, layers=layers, **SHAPE)
            stemma.save(made, source, layout="gguf", dtype="q8_0")
        kinds = [kind for kind in KINDS if " " not in kind and (kind != "keep" or source.endswith(".gguf"))]
        held = {kind: stemma.load(source, quantize=None if kind == "fp32" else kind) for kind in kinds}
    return {kind: held[kind.split()[0]] for kind in KINDS if kind.split()[0] in held}


def differences(every: dict[str, Any]) -> None:
    """What the kernels change: logits beside those of plain products with the same weights."""
    ids = torch.randint(3, every["fp32"].dims.vocab, (1, 4), generator=torch.Generator().manual_seed(1))
    for kind, model in every.items():
        if kind != "fp32" and " " not in kind:
            with torch.no_grad():
                found = model(ids).logits
                with without_kernels(True):
                    plain = model(ids).logits
            print(f"{kind:10} logits differ by {(found - plain).abs().max() / plain.abs().max():.1e} of the largest")


def measure(every: dict[str, Any], threads: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    prompt = torch.randint(3, every["fp32"].dims.vocab, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
    speeds: dict[str, list[float]] = {kind: [] for kind in every}
    for turn in range(args.repeats + 1):
        for kind, model in every.items():
            with without_kernels(kind.endswith("plain")):
                start = time.perf_counter()
                stemma.generate(model, [prompt], max_new_tokens=args.new, ignore_eos=True)
            if turn:  # the first is the warm-up
                speeds[kind].append(args.new / (time.perf_counter() - start))
    rows = []
    for kind, found in speeds.items():
        ratios = sorted(a / b for a, b in zip(found, speeds["fp32"], strict=True))
        row = {"weights": kind, "threads": threads, "tok/s": round(statistics.median(found), 1)}
        row |= {"ratio": round(statistics.median(ratios), 2), "range": [round(ratios[0], 2), round(ratios[-1], 2)]}
        rows.append(row)
        print(
            f"{kind:10} {threads} threads {row['tok/s']:7.1f} tokens/s  ratio to fp32 {row['ratio']:.2f} "
            f"({ratios[0]:.2f}-{ratios[-1]:.2f})",
            flush=True,
        )
    return rows


def peak(source: str, kind: str) -> tuple[int, int]:
    """(bytes of the model's tensors, the most memory in bytes that loading it took beside what the process had)."""
    stemma.build("llama-7b", layers=1, d_model=64, heads=2, d_ff=64, vocab=99)  # what is imported is no part of it
    for module in ("hf", "gguf"):
        importlib.import_module(f"stemma.formats.{module}")
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    model = stemma.load(source, quantize=None if kind == "fp32" else kind, tokenizer=False)
    held = {id(t): t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())}
    return sum(held.values()), memory("VmHWM") - before


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def peaks(source: str) -> None:
    for kind in KINDS[: 4 if source.endswith(".gguf") else 3]:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            size, most = pool.submit(peak, source, kind).result()
        print(
            f"{kind:10} tensors of {size / 1e6:4.0f} MB, at most {most / 1e6:4.0f} MB while they are loaded", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, help="which rows, fp32 first")
    parser.add_argument("--peak", action="store_true")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.peak:
        return peaks(args.model)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; products {native.how()}")
    every = {kind: model for kind, model in models(args.model, args.layers).items() if kind in args.kinds}
    differences(every)
    rows = [row for threads in args.threads for row in measure(every, threads, args)]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
