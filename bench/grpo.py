"""GRPO on generated arithmetic: how often a model is right before and after, on sums that it never learnt from too.

    python bench/grpo.py [--seeds 1 2 3] [--sft 150] [--steps 150] [--out DIR] [--methods grpo rloo]
    python bench/grpo.py --start SmolLM2-135M-Instruct.gguf --lora 16 --levels 2 3 --steps 40 --tokens 24 --asked 200

Without --start a LLaMA of two layers of 64 learns sums of two digits by SFT until it is right in about a third of its samples, once a
seed. Then each method goes on from there with the reward `builtin:number`: 16 prompts a step with 8 answers each. Right are answers that
are sampled at temperature 1, to --asked questions of the generator (`samples.arithmetic`), half of which have sums that no row for
training has. Brackets hold 95 % of Wilson's intervals of one seed, and of several the least and the most of them. `kl` is the
divergence from the start in nats an answer. What is done is kept in --out, so that the table can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from shared import finished

import stemma
from stemma.alignment.verify import verifier
from stemma.conversations import Turn, prompt_ids, templates
from stemma.decoding import generate
from stemma.objectives.preference import interval
from stemma.samples import arithmetic
from stemma.text import Specials, Tokenizer

ROWS = 8000
LENGTH = 64


def written(path: Path, levels: Sequence[int]) -> str:
    """Sums for training, of `levels` in turn."""
    path.write_text("".join(json.dumps(row) + "\n" for row in arithmetic.drawn(levels, ROWS)))
    return str(path)


def begun(seed: int, args: argparse.Namespace) -> str:
    """The model that GRPO begins from."""
    if args.start:
        return str(args.start)
    base = args.out / "base"
    if not base.exists():
        texts = [json.dumps(row) for row in arithmetic.drawn(args.levels, 50)]
        tokenizer = Tokenizer.train("bpe", texts, 300, Specials(bos="<s>", eos="</s>", pad="<pad>"))
        width = 32 if args.small else 64
        model = stemma.build(
            "llama", layers=2, d_model=width, heads=4, d_ff=2 * width, vocab=tokenizer.vocab_size, context=LENGTH
        )
        model.tokenizer = tokenizer
        model.save(str(base))
    changes = {"recipe.lr": 3e-3}
    more: dict[str, Any] = {"settings": {"template": "plain"}, "overrides": changes, "quiet": args.quiet}
    data = written(args.out / "rows.jsonl", args.levels)
    out = args.out / f"sft-{seed}"
    run = stemma.tune("chat", start=str(base), data=data, out=out, budget=f"{args.sft} steps", seed=seed, resume=True, **more)  # fmt: skip
    return str(finished(run).directory)


def right(path: str, args: argparse.Namespace) -> list[float]:
    """Of each question whether a sampled answer is right; the second half has sums that were held out."""
    model = stemma.load(path)
    writer, judge = templates.writer(model.tokenizer, None), verifier("number")
    asked = [
        row for held in (False, True) for row in arithmetic.drawn(args.levels, args.asked // 2, seed=9, held_out=held)
    ]
    ids = [prompt_ids(model.tokenizer, writer.prompt((Turn("user", row["question"]),))) for row in asked]
    how: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": args.tokens, "seed": 1}
    found = generate(model, ids, stop=writer.stops(), batch=64, **how)
    return [judge("", result.text or "", row) for result, row in zip(found, asked, strict=True)]


def measured(name: str, path: str, args: argparse.Namespace) -> list[float]:
    """As `right`, kept in a file."""
    file = args.out / f"right-{name}-{args.asked}.json"
    if not file.exists():
        file.write_text(json.dumps(right(path, args)))
    found: list[float] = json.loads(file.read_text())
    return found


def learnt(method: str, seed: int, start: str, args: argparse.Namespace) -> Any:
    """A finished run."""
    changes: dict[str, Any] = {
        "objective.max_new_tokens": args.tokens,
        "objective.prompts": args.prompts,
        "objective.samples": args.samples,
        "objective.judged": 8 if args.small else 16,
        "objective.gates.finished": None,
        "recipe.lr": args.lr,
    }
    return finished(
        stemma.align(
            method, start=start, data=written(args.out / "rows.jsonl", args.levels), out=args.out / f"{method}-{seed}",
            rewards=["builtin:number"], budget=f"{args.steps} steps", seed=seed, lora=args.lora, resume=True,
            overrides=changes, quiet=args.quiet,
        )
    )  # fmt: skip


def cell(seeds: Sequence[Sequence[float]]) -> str:
    """The mean over seeds, and the interval."""
    means = [statistics.fmean(values) for values in seeds]
    low, high = interval(means[0], len(seeds[0])) if len(seeds) == 1 else (min(means), max(means))
    return f"{statistics.fmean(means):6.1%} ({low:.1%} to {high:.1%})"


def row(name: str, seeds: Sequence[Sequence[float]], kl: str = "") -> str:
    """A row of the table: all questions, and those of sums that were held out."""
    half = len(seeds[0]) // 2
    return f"{name:<14} {cell(seeds):>26} {cell([values[half:] for values in seeds]):>26} {kl:>8}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="*", default=["grpo"])
    parser.add_argument("--levels", type=int, nargs="+", default=[1])
    parser.add_argument("--sft", type=int, default=150)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--asked", type=int, default=600)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--lora", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    args.out = args.out or Path(tempfile.mkdtemp(prefix="grpo-"))
    args.out.mkdir(parents=True, exist_ok=True)
    starts = {seed: begun(seed, args) for seed in args.seeds}
    print(f"{'':<14} {'right':>26} {'right, held-out sums':>26} {'kl':>8}")
    alone = [args.seeds[0]] if args.start else args.seeds
    print(row("before", [measured(f"before-{seed}", starts[seed], args) for seed in alone]), flush=True)
    for method in args.methods:
        runs = [learnt(method, seed, starts[seed], args) for seed in args.seeds]
        kl = [run.summary["val"].get("kl", math.nan) for run in runs]
        found = [
            measured(f"{method}-{seed}", str(run.directory), args) for seed, run in zip(args.seeds, runs, strict=True)
        ]
        if len(runs) > 1:
            for seed, values, gap in zip(args.seeds, found, kl, strict=True):
                print(row(f"{method}, seed {seed}", [values], f"{gap:.2f}"))
        print(row(method, found, f"{statistics.fmean(kl):.2f}"), flush=True)


if __name__ == "__main__":
    main()
