"""Every tuned system from one command: its held-out loss on the answers before and after, over seeds.

    python bench/systems.py [--only alpaca qlora ...] [--seeds 1 2 3] [--steps 600] [--budget BUDGET] [--out DIR]

Bases are small networks of each structure that the systems need (a LLaMA, a PaLM, a GPT-3 and a T5 of two layers of 192,
rows of 384 tokens), pretrained here on `builtin:docs` for --steps steps of 6,144 tokens. A system is then tuned by
`stemma tune NAME --from BASE` on the data that stand in for its own, scaled, with another order and other adapters for each
seed. The loss before is that of the base on what the last stage learns; of systems in several stages, the loss after is that
behind the last. What is done is kept in --out, so that the table can be made in pieces.
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

from shared import finished, spread

import stemma
from stemma import families
from stemma.declare.family import Family
from stemma.train import read_metrics
from stemma.tuning import systems, tune

ROW = 384
BASES = {"llama": "llama", "palm": "palm", "gpt3": "gpt3", "t5-v1.1": "t5-v1.1", "lamda": "palm"}  # of a line, its base
SMALL = {"dims.d_model": 48, "dims.d_ff": 96, "dims.vocab": 600}


def names() -> list[str]:
    """The systems that learn from something here without data of one's own, a family's later versions left out."""
    return [name for name in systems.names() if all(stage.stand_in for stage in systems.stages_of(name))]


def base_of(family: Family) -> str:
    """The network that a system is tuned from here."""
    return next(BASES[f.name] for f in family.lineage if f.name in BASES)


def base(name: str, args: argparse.Namespace) -> Path:
    """A pretrained network, made when it is first needed."""
    out = args.out / f"base-{name}"
    if not (out / "summary.json").exists():
        changes: dict[str, Any] = {"train.context": ROW, "dims.context": ROW, "recipe.batch": 16 * ROW}
        changes |= SMALL if args.small else {}
        more: dict[str, Any] = {"budget": f"{args.steps} steps", "resume": out.exists(), "quiet": args.quiet}
        finished(stemma.pretrain(name, data=args.text, out=out, overrides=changes, **more))
    return out


def measured(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """A system's held-out loss before and after, and the seconds that its stages took."""
    start = base(base_of(families.family(name)), args)
    out, many = args.out / f"{name}-{seed}", len(systems.stages_of(name))
    more: dict[str, Any] = {"start": str(start), "seed": seed, "quiet": args.quiet, "resume": True}
    run = finished(tune(name, out=out, budget=args.budget, **more))
    first = run
    if many > 1:  # what the base knows of the last stage
        first = finished(tune(name, out=args.out / f"{name}-{seed}-base", stage=many, budget="1 steps", **more))
    places = [out, *(out / "stages" / str(n) for n in range(1, many))]
    before, after = first.summary["before"]["loss"], run.summary["val"]["loss"]
    seconds = sum(json.loads((place / "summary.json").read_text())["seconds"] for place in places)
    steps = sum(sum("loss" in record for record in read_metrics(place)) for place in places)
    return {"before": before, "after": after, "seconds": seconds, "steps": steps}


def table(done: dict[str, dict[str, Any]], order: list[str]) -> None:
    """A row a system: the mean over the seeds, the least and the most."""
    print(f"{'system':18} {'base':8} {'before':24} {'after':24} {'steps':>6} minutes")
    for name in order:
        own = [found for key, found in done.items() if key.partition(":")[0] == name]
        if own:
            before, after = (spread([found[key] for found in own]) for key in ("before", "after"))
            steps = round(statistics.mean(found["steps"] for found in own))
            minutes = statistics.mean(found["seconds"] for found in own) / 60
            print(f"{name:18} {base_of(families.family(name)):8} {before:24} {after:24} {steps:>6} {minutes:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="systems; left out, all that have data that stand in")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=600, help="of a base")
    parser.add_argument("--text", default="builtin:docs", help="of a base")
    parser.add_argument("--budget", help="of a stage  [default: as published, in epochs]")
    parser.add_argument("--small", action="store_true", help="tiny bases, to see that the script runs")
    parser.add_argument("--out", type=Path, help="[default: runs/bench-systems]")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    args.out = args.out or Path(tempfile.mkdtemp() if args.small else "runs/bench-systems")
    args.out.mkdir(parents=True, exist_ok=True)
    order, kept = args.only or names(), args.out / "results.json"
    done: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    for name in order:
        for seed in args.seeds:
            if (key := f"{name}:{seed}") not in done:
                done[key] = measured(name, seed, args)
                kept.write_text(json.dumps(done, indent=2) + "\n")
    table(done, order)


if __name__ == "__main__":
    main()
