"""QLoRA's claim in small: adapters beside a base in 4-bit NormalFloat, beside the same base in full, and all weights.

    python bench/qlora.py [--start MODEL] [--data ROWS] [--seeds 1 2 3] [--steps 150] [--out DIR] [--only nf4:1 ...]

All learn the same rows in the same order for as many steps (`stemma tune chat`, rank 16 on every linear layer of the blocks; the peak
rate is 2e-3 for adapters and 5e-4 for all weights, no others were tried), from one base: MODEL, or a LLaMA of two layers of 192 that
is pretrained here on `builtin:docs`. The table has the held-out loss of the answers before and after: the mean of the seeds, the least
and the most. What is done is kept in --out, so that the table can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from shared import finished, spread

import stemma
from stemma.tuning import tune

ROW = 384
WAYS: dict[str, dict[str, Any]] = {
    "nf4": {"lora": 16, "quantize": "nf4"},
    "int8": {"lora": 16, "quantize": "int8"},
    "lora": {"lora": 16},
    "all": {},
}
NAMES = {"nf4": "QLoRA: LoRA, base in NF4", "int8": "LoRA, base in int8", "lora": "LoRA", "all": "all weights"}
SMALL = {"dims.d_model": 48, "dims.d_ff": 96, "dims.vocab": 600}


def base(args: argparse.Namespace) -> str:
    """The model that is tuned."""
    if args.start:
        return str(args.start)
    out = args.out / "base"
    changes: dict[str, Any] = {"train.context": ROW, "dims.context": ROW, "recipe.batch": 16 * ROW}
    changes |= SMALL if args.small else {}
    more: dict[str, Any] = {"budget": f"{args.base} steps", "resume": out.exists(), "quiet": args.quiet}
    data = "builtin:captain" if args.small else "builtin:docs"
    finished(stemma.pretrain("llama", data=data, out=out, overrides=changes, **more))
    return str(out)


def measured(way: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """The held-out loss before and after."""
    rate = 2e-3 if WAYS[way] else 5e-4
    changes = {"recipe.lr": rate, "train.context": ROW, "recipe.batch": 4 * ROW}
    more: dict[str, Any] = {"settings": {"template": "plain"}, "overrides": changes, "resume": True, **WAYS[way]}
    more |= {"seed": seed, "budget": f"{args.steps} steps", "quiet": args.quiet}
    run = finished(tune("chat", start=base(args), data=args.data, out=args.out / f"{way}-{seed}", **more))
    return {"before": run.summary["before"]["loss"], "after": run.summary["val"]["loss"]}


def table(done: dict[str, dict[str, float]]) -> None:
    """A row a way of tuning, and how far each seed lies from LoRA's."""
    print(f"{'':26} {'before':24} {'after':24} beside LoRA, by seed")
    for way, name in NAMES.items():
        own = {key.partition(":")[2]: found for key, found in done.items() if key.partition(":")[0] == way}
        if own:
            before, after = (spread([found[key] for found in own.values()]) for key in ("before", "after"))
            gaps = [
                f"{found['after'] - done[f'lora:{seed}']['after']:+.3f}"
                for seed, found in own.items()
                if f"lora:{seed}" in done
            ]
            print(f"{name:26} {before:24} {after:24} {', '.join(gaps)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", help="a run, a folder, a GGUF file  [default: a small LLaMA, pretrained here]")
    parser.add_argument("--data", default="builtin:instructions")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--base", type=int, default=600, help="steps of pretraining, 6,144 tokens each")
    parser.add_argument("--only", nargs="*", help="WAY:SEED; left out, all of them")
    parser.add_argument("--small", action="store_true", help="a tiny base, to see that the script runs")
    parser.add_argument("--out", type=Path, help="[default: runs/bench-qlora]")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    args.out = args.out or Path(tempfile.mkdtemp() if args.small else "runs/bench-qlora")
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "results.json"
    done: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    every = [f"{way}:{seed}" for seed in args.seeds for way in WAYS]
    for key in args.only if args.only is not None else every:
        if key not in done:
            way, _, seed = key.partition(":")
            done[key] = measured(way, int(seed), args)
            kept.write_text(json.dumps(done, indent=2) + "\n")
    table(done)


if __name__ == "__main__":
    main()
