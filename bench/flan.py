"""Tuning on instructions: tasks of clusters that were not learnt, by how many clusters were (Wei et al. 2021, figure 6), and
direct answers after chains of thought alone, answers alone and both (Chung et al. 2022, section 4).

    python bench/flan.py [clusters] [chains] [--seeds 1 2 3] [--base-steps 1000] [--steps 200] [--out DIR]

The tasks are the 36 of `builtin:flan`. The base is a small LLaMA, pretrained here on plain statements of the facts that they
are about (`stemma.samples.flan.text`) and on questions without answers, one for all runs. `stemma tune flan` tunes it on 1, 3 or
7 clusters (which, and their order, are the seed's), for as many steps of as many tokens. Judged are tasks of three clusters that
none of them learns (category, membership, entailment), zero-shot with options: the share for which the right option is the most
likely, beside that of a guess, and the nats of the right answer. Direct sums are judged among five numbers. What is done is kept
in --out, so that the table can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from shared import finished, spread

import stemma
from stemma import formats
from stemma.declare.tasks import ChatTask
from stemma.samples import flan, flan2022
from stemma.tuning import tune
from stemma.tuning.predicting import Tuned, measured

ROW = 96
TESTED = ("category", "membership", "entailment", "arithmetic")
LEARNT = tuple(cluster for cluster in flan.CLUSTERS if cluster not in TESTED)
COUNTS = (1, 3, 7)
MIXTURES = ("answers", "chains", "both")
SIZE = {"dims.d_model": 96, "dims.layers": 3, "dims.heads": 4, "dims.d_ff": 256, "dims.vocab": 640}
SMALL = {"dims.d_model": 32, "dims.layers": 1, "dims.heads": 2, "dims.d_ff": 48, "dims.vocab": 640}
TASK = ChatTask("flan")


def written(path: Path, rows: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def texts(count: int) -> Iterator[dict[str, str]]:
    """Plain statements of facts, and in every fourth text questions of all tasks without their answers: a pretrained
    model knows the words that it is asked with."""
    facts, questions = flan.text(), [row["prompt"] for row in flan.rows(each=60)]
    draw = random.Random("texts")
    for number in range(count):
        yield {"text": next(facts) if number % 4 else "\n\n".join(draw.sample(questions, 3))}


def base(args: argparse.Namespace) -> Path:
    """The pretrained network."""
    out: Path = args.out / "base"
    if not (out / "summary.json").exists():
        text = written(args.out / "text.jsonl", texts(400 if args.small else 12_000))
        changes: dict[str, Any] = {
            "dims.context": ROW,
            "train.context": ROW,
            "recipe.batch": 24 * ROW,
            "recipe.lr": 3e-3,
        }
        changes |= SMALL if args.small else SIZE
        more: dict[str, Any] = {"budget": f"{args.base_steps} steps", "resume": out.exists(), "quiet": args.quiet}
        finished(stemma.pretrain("llama-7b", data=text, out=out, overrides=changes, **more))
    return out


def of_clusters(count: int, seed: int) -> tuple[str, ...]:
    """The clusters that a seed learns."""
    return tuple(random.Random(seed).sample(LEARNT, len(LEARNT))[:count])


def tuned(name: str, seed: int, rows: list[dict[str, Any]], args: argparse.Namespace) -> Any:
    """The base, tuned on rows."""
    out = args.out / f"{name}-{seed}"
    random.Random(seed).shuffle(rows)
    data = written(args.out / f"{name}-{seed}.jsonl", rows[: args.rows])
    changes = {"recipe.batch": 24 * ROW, "recipe.lr": 1e-2, "train.context": ROW, "train.save_every": args.steps}
    more: dict[str, Any] = {"budget": f"{args.steps} steps", "resume": True, "quiet": args.quiet, "overrides": changes}
    finished(tune("flan", start=str(base(args)), data=data, out=out, seed=seed, **more))
    return formats.load(out)


def ranked(model: Any, clusters: tuple[str, ...], args: argparse.Namespace) -> dict[str, float]:
    """How often the right option is the most likely, of test rows that have options."""
    rows = [row for row in flan.rows(True, clusters, args.each) if "options" in row]
    return measured(Tuned(model, TASK), rows, draws=1).metrics if rows else {}


def direct(model: Any, args: argparse.Namespace) -> dict[str, float]:
    """The nats of direct answers to sums, and how often the right one is the most likely of five numbers."""
    draw = random.Random(0)
    rows = []
    for row in flan.rows(True, ("arithmetic",), args.each):
        near = {str(abs(int(row["completion"]) + d)) for d in (-2, -1, 1, 2, 3)} - {row["completion"]}
        rows.append({**row, "options": sorted([row["completion"], *sorted(near)[:4]], key=lambda _: draw.random())})
    return measured(Tuned(model, TASK), rows, draws=1).metrics


def clusters(args: argparse.Namespace, done: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The held-out clusters of the base, and after 1, 3 and 7 others."""
    if "base" not in done:
        yield "base", ranked(formats.load(base(args)), TESTED[:3], args)
    for seed in args.seeds:
        for count in COUNTS:
            if (key := f"clusters-{count}:{seed}") not in done:
                some = of_clusters(count, seed)
                number = sum(sample.cluster in some for sample in flan.TASKS.values())
                rows = list(flan.rows(False, some, -(-args.rows // number)))
                model = tuned(f"clusters-{count}", seed, rows, args)
                each = {cluster: ranked(model, (cluster,), args) for cluster in TESTED[:3]}
                yield (
                    key,
                    ranked(model, TESTED[:3], args) | {"of": each, "own": ranked(model, some, args), "learnt": some},
                )


def chains(args: argparse.Namespace, done: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Direct answers to sums after rows of answers, of chains of thought, and of both, beside the other clusters."""
    for seed in args.seeds:
        for what in MIXTURES:
            if (key := f"{what}:{seed}") in done:
                continue
            found = flan2022.rows(chains=what != "answers", each=3 * args.rows // len(flan.TASKS))
            rows = [row for row in found if row["form"].startswith("zero")]
            if what == "chains":  # of the tasks that have them; the others as they are
                rows = [row for row in rows if row["cluster"] != "arithmetic" or row["form"].endswith("chain")]
            yield key, direct(tuned(what, seed, rows, args), args)


def table(done: dict[str, Any]) -> None:
    """The mean over the seeds, the least and the most."""
    names = ("accuracy", "nats")
    if "base" in done:
        found = done["base"]
        print(f"{'clusters learnt':16} {'accuracy of the others':26} {'nats of an answer':26} accuracy of their own")
        print(f"{'none (base)':16} {found['accuracy']:<26.3f} {found['nats']:<26.3f}")
    for count in COUNTS:
        own = [found for key, found in done.items() if key.startswith(f"clusters-{count}:")]
        if own:
            cells = [f"{spread([one[name] for one in own]):26}" for name in names]
            inside = [one["own"]["accuracy"] for one in own if "accuracy" in one["own"]]
            print(f"{count:<16} {' '.join(cells)} {spread(inside) if inside else '-'}")
    if "base" in done:
        print(f"{'a guess':16} {done['base']['chance']:.3f}")
    if any(key.startswith("both:") for key in done):
        print(f"{'learnt':16} {'accuracy of direct sums':26} nats of an answer")
        for what in MIXTURES:
            own = [found for key, found in done.items() if key.startswith(f"{what}:")]
            print(f"{what:16} " + " ".join(f"{spread([one[name] for one in own]):26}" for name in names if own))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["clusters", "chains"], help="clusters, chains")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--base-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=200, help="of tuning")
    parser.add_argument("--rows", type=int, default=4000, help="that are learnt")
    parser.add_argument("--each", type=int, default=40, help="test rows of a task")
    parser.add_argument("--small", action="store_true", help="a tiny base, to see that the script runs")
    parser.add_argument("--out", type=Path, help="[default: runs/bench-flan]")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    args.out = args.out or Path(tempfile.mkdtemp() if args.small else "runs/bench-flan")
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "results.json"
    done: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for part in args.parts:
        for key, found in {"clusters": clusters, "chains": chains}[part](args, done):
            done[key] = found
            kept.write_text(json.dumps(done, indent=2) + "\n")
    table(done)


if __name__ == "__main__":
    main()
