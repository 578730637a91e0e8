"""Decoding speed against transformers: same weights, same prompts, same precision, one run, interleaved.

    python bench/decode.py [--threads 2] [--repeats 5] [--new 48] [--json FILE]

Every row is one small published shape with random weights, saved once and loaded by both. A figure is new tokens a
second, the whole call of `generate` (prompt and decoding); the ratio is the median of the paired ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers as hf

import stemma

ROWS: list[tuple[str, str, dict[str, Any], int, str]] = [
    # name, size, dims, rows of the batch, dtype
    ("gpt2 124M", "gpt2", {}, 1, "float32"),
    ("gpt2 124M", "gpt2", {}, 8, "float32"),
    ("llama 134M", "llama-7b", dict(d_model=768, layers=12, heads=12, d_ff=2048), 1, "float32"),
    ("llama 134M", "llama-7b", dict(d_model=768, layers=12, heads=12, d_ff=2048), 8, "float32"),
    ("llama 134M", "llama-7b", dict(d_model=768, layers=12, heads=12, d_ff=2048), 1, "bfloat16"),
    ("mistral 120M", "mistral-7b", dict(d_model=768, layers=12, heads=12, kv_heads=4, d_ff=2048), 1, "float32"),
    ("t5 60M", "t5-small", {}, 1, "float32"),
    ("t5 60M", "t5-small", {}, 8, "float32"),
    ("gpt1 117M", "gpt1", {}, 1, "float32"),
]
PROMPT = 48


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    out = []
    for name, size, dims, rows, dtype in ROWS:
        if args.only and args.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            stemma.build(size, **dims).save(folder)
            ours = stemma.load(folder, dtype=dtype)
            kind = hf.AutoModelForSeq2SeqLM if "t5" in size else hf.AutoModelForCausalLM
            theirs = kind.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, ours.dims.vocab, (rows, PROMPT), generator=generator)
        prompts = ids.tolist()
        mask = torch.ones_like(ids)

        def we(ours: Any = ours, prompts: Any = prompts) -> Any:
            return [r.ids for r in stemma.generate(ours, prompts, max_new_tokens=args.new, ignore_eos=True)]

        def they(theirs: Any = theirs, ids: Any = ids, mask: Any = mask) -> Any:
            new = theirs.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=args.new,
                min_new_tokens=args.new,
                do_sample=False,
                pad_token_id=0,
            )
            return new[:, -args.new :].tolist()

        agree = we() == they()  # also the warm-up
        speeds: dict[str, list[float]] = {"stemma": [], "transformers": []}
        for _ in range(args.repeats):
            for who, call in (("stemma", we), ("transformers", they)):
                start = time.perf_counter()
                call()
                speeds[who].append(rows * args.new / (time.perf_counter() - start))
        ratios = sorted(a / b for a, b in zip(speeds["stemma"], speeds["transformers"], strict=True))
        out.append(
            {
                "model": name, "batch": rows, "dtype": dtype, "same tokens": agree,
                "stemma tok/s": round(statistics.median(speeds["stemma"]), 1),
                "transformers tok/s": round(statistics.median(speeds["transformers"]), 1),
                "ratio": round(statistics.median(ratios), 2), "range": [round(ratios[0], 2), round(ratios[-1], 2)],
            }
        )  # fmt: skip
        show(out[-1:])
    return out


def show(rows: list[dict[str, Any]]) -> None:
    for r in rows:
        print(
            f"{r['model']:14} batch {r['batch']}  {r['dtype']:9} stemma {r['stemma tok/s']:8.1f}  transformers "
            f"{r['transformers tok/s']:8.1f}  ratio {r['ratio']:.2f} ({r['range'][0]:.2f}-{r['range'][1]:.2f})"
            f"  same tokens: {r['same tokens']}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, transformers {hf.__version__}, {args.threads} threads, prompt {PROMPT} tokens")
    rows = measure(args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
