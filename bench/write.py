"""Translating news: an encoder-decoder that was pretrained here, tuned on few sentences, beside the same from new weights.

    python bench/write.py --data NTREX [--seeds 1 2 3] [--steps 3000] [--out DIR] [--only pretrained:1 ...]

The sentences are NTREX-128's (Federmann et al. 2022: 1,997 of news, English to German), of which the last 200 are judged by.
The base is the tree's first Transformer (two layers of 256), pretrained by `stemma pretrain transformer` on the verses of
`builtin:parallel:en-de` for --steps steps; "new" is the same network and tokenizer with new weights. Both are tuned by
`stemma tune write` with the same rows, order and steps; `base` is the pretrained one as it is. chrF and BLEU by sacrebleu.
What is done is kept in --out, so that the table can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from shared import finished

import stemma
from stemma.tuning import tune
from stemma.tuning.predicting import measured, tuned

HELD = 200
FILES = {"en": "newstest2019-src.eng.txt", "de": "newstest2019-ref.deu.txt"}
NAMES = {"base": "pretrained, not tuned", "pretrained": "pretrained, tuned", "new": "new weights, tuned"}
SIZE = {"dims.d_model": 256, "dims.layers": 2, "dims.heads": 8, "dims.d_ff": 768, "dims.vocab": 6000}
SMALL = {"dims.d_model": 32, "dims.layers": 1, "dims.heads": 2, "dims.d_ff": 48, "dims.vocab": 600}


def rows(args: argparse.Namespace) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Pairs to learn from and pairs to judge by."""
    if args.small:
        found = [{"en": f"it is {n}", "de": f"es ist {n}"} for n in range(60)]
        return found[:50], found[50:]
    texts = {key: (args.data / name).read_text("utf-8").splitlines() for key, name in FILES.items()}
    found = [{"en": en.strip(), "de": de.strip()} for en, de in zip(texts["en"], texts["de"], strict=True)]
    return found[:-HELD], found[-HELD:]


def base(args: argparse.Namespace) -> Path:
    """The pretrained network."""
    out: Path = args.out / "base"
    changes = (SMALL if args.small else SIZE) | {"dims.context": 128, "train.context": 96, "recipe.batch": 3072}
    more: dict[str, Any] = {"budget": f"{args.steps} steps", "resume": out.exists(), "quiet": args.quiet}
    finished(stemma.pretrain("transformer", data="builtin:parallel:en-de", out=out, overrides=changes, **more))
    return out


def model(kind: str, seed: int, start: Path, args: argparse.Namespace) -> Path:
    """The folder of what is judged."""
    if kind == "new":
        there = stemma.load(start)
        fresh = stemma.build(there.design, seed=seed)
        fresh.tokenizer = there.tokenizer
        start = args.out / f"fresh-{seed}"
        fresh.save(str(start))
    budget, out = ("1 steps", args.out / "untuned") if kind == "base" else (args.budget, args.out / f"{kind}-{seed}")
    changes: dict[str, Any] = {"recipe.lr": 1e-9 if kind == "base" else args.rate, "train.threads": 1}
    columns = {"text": "en", "target": "de"}
    more: dict[str, Any] = {"settings": columns, "overrides": changes, "quiet": args.quiet, "resume": True}
    data = str(args.out / "train.jsonl")
    finished(tune("write", start=str(start), data=data, out=out, budget=budget, seed=seed, **more))
    return out


def table(done: dict[str, Any]) -> None:
    """The mean over the seeds of each metric, and the least and the most."""
    print(f"{'':24} {'chrF':24} {'BLEU':24} minutes")
    for kind, name in NAMES.items():
        own = [found for key, found in done.items() if key.partition(":")[0] == kind]
        if not own:
            continue
        cells = []
        for metric in ("chrf", "bleu"):
            values = [found["metrics"][metric] for found in own]
            spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}")
        minutes = statistics.mean(found["seconds"] for found in own) / 60
        print(f"{name:24} {cells[0]:24} {cells[1]:24} {minutes:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--small", action="store_true", help="a tiny network and made-up data, in place of NTREX")
    parser.add_argument("--out", type=Path, help="[default: runs/bench-write]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=3000, help="of pretraining, 3,072 tokens each")
    parser.add_argument("--only", nargs="*", help="base:1, pretrained:SEED, new:SEED; left out, all of them")
    parser.add_argument("--budget", default="4 epochs")
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    if not args.small and args.data is None:
        parser.error("give --data, or --small")
    args.out = args.out or Path(tempfile.mkdtemp() if args.small else "runs/bench-write")
    args.out.mkdir(parents=True, exist_ok=True)
    learnt, held = rows(args)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in learnt)
    (args.out / "train.jsonl").write_text(text, "utf-8")
    kept = args.out / "results.json"
    done: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    every = ["base:1", *(f"{kind}:{seed}" for kind in ("pretrained", "new") for seed in args.seeds)]
    for key in args.only if args.only is not None else every:
        if key not in done:
            kind, _, seed = key.partition(":")
            out = model(kind, int(seed), base(args), args)
            seconds = json.loads((out / "summary.json").read_text())["seconds"]
            done[key] = {"metrics": measured(tuned(out), held).metrics, "seconds": seconds}
            kept.write_text(json.dumps(done, indent=2) + "\n")
    table(done)


if __name__ == "__main__":
    main()
