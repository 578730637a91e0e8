"""Gorilla's claim in small: calls learnt with documentation beside the questions or without, asked with and without.

    python bench/gorilla.py [--seeds 1 2 3] [--steps 600] [--tuning 500] [--asked 180] [--out DIR]

A LLaMA of two layers of 128 is pretrained here for --steps steps of 4,608 tokens on manual pages of calls that no row asks for (each
page says what a call is and shows it again, so that the network learns to look things up in its context); all seeds share it.
`stemma tune gorilla` then teaches it the 60 calls of builtin:calls for --tuning steps of 2,304 tokens, once from questions
alone and once with the right documentation beside half of them. Both are asked --asked questions in other words, beside nothing, the
right documentation, that of another call (the right answer stays the same), or documentation that was edited since (the right answer
is what it says now). The table has the share of right calls, the mean of the seeds, the least and the most; then, beside edited
documentation, the share of calls as they were before the edit. What is done is kept in --out, so that the table can be made in pieces.
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
from stemma.conversations import Turn, apis, read
from stemma.instruct.writers import Ask, LocalWriter, Sampling
from stemma.samples import calls
from stemma.tuning import tune

ROW = 288
BESIDE = ("none", "right", "wrong", "edited")
TRAINED = {"questions alone": 0.0, "documentation beside half": 0.5}
SIZE: dict[str, Any] = {
    "dims.d_model": 128, "dims.layers": 2, "dims.heads": 4, "dims.d_ff": 256, "dims.vocab": 1500, "dims.context": ROW,
    "train.context": ROW, "recipe.batch": 16 * ROW, "recipe.lr": 3e-3, "train.eval_tokens": 8192,
}  # fmt: skip
SMALL = {"dims.d_model": 32, "dims.d_ff": 64}
PARTS = ("ba", "de", "fi", "gra", "hu", "ka", "lo", "mi", "no", "pu", "ra", "sto", "ti", "vu", "we", "zo")
NOUNS = (
    "arch barn bell boat bone bowl brush cabin candle canal card cart chain chair cloth coal coat comb cord crane "
    "crown cup desk dome door dress drum fence field flag flute forge fork gate glass glove gown hall harp hat "
    "hinge hood hook horn hut jar kettle kite ladder lamp lock loom mast mill mirror nail net oar oven pan path "
    "pier pipe plank plate pond pot press pump quay rail ring road robe roof rope sack sail saddle screw ship shoe "
    "shop sieve sock stair stove strap stool tent tile torch tower tray tube vase vest wall watch well wheel whip "
    "wire yard"
)


def pages(many: int) -> Iterator[str]:
    """Manual pages of calls that do not occur in builtin:calls."""
    draw = random.Random("pages")

    def name() -> str:  # a word that is one token, or several
        return draw.choice(NOUNS.split()) if draw.random() < 0.5 else "".join(draw.sample(PARTS, 3))

    words = [part for functions in calls.MODULES.values() for need in functions.values() for part in need.split()]
    for _ in range(many):
        module, function, domain = name(), name(), draw.choice([d for _, d in calls.MODULES])
        model, version = draw.choice(calls.MODELS), f"{draw.randint(1, 9)}.{draw.randint(0, 9)}"
        call, provider = calls.call_of(module, function, model, version), draw.choice(calls.PROVIDERS)
        need = " ".join(draw.choice(words) for _ in range(5))
        asked, tells = draw.choice(calls.ASKED).format(need=need, domain=domain.lower()), f"It tells {need}."
        api = {
            "domain": domain, "framework": provider, "functionality": function, "api_name": f"{module}.{function}",
            "api_call": call, "api_arguments": {"model": model, "version": version}, "description": tells,
        }  # fmt: skip
        shown = f"Domain: {domain}\nProvider: {provider}\n{tells}\nimport {module}\nanswer = {call}"
        yield f"{asked}\n{apis.document(api)}\nExample: {call}\n{shown}\n"


def base(args: argparse.Namespace) -> Path:
    out, text = args.out / "base", args.out / "pages.jsonl"
    if not text.exists():
        text.write_text("".join(json.dumps({"text": page}) + "\n" for page in pages(300 if args.small else 8000)))
    if not (out / "summary.json").exists():
        changes = SIZE | (SMALL if args.small else {}) | {"train.threads": args.threads}
        more: dict[str, Any] = {"budget": f"{args.steps} steps", "resume": out.exists(), "quiet": args.quiet}
        finished(stemma.pretrain("llama", data=str(text), out=out, overrides=changes, **more))
    return out


def tuned(trained: str, seed: int, args: argparse.Namespace) -> Any:
    share = TRAINED[trained]
    data, out = args.out / f"rows-{share}.jsonl", args.out / f"tuned-{share}-{seed}"
    data.write_text("".join(json.dumps(row) + "\n" for row in calls.rows(share)))
    changes = {"recipe.batch": 8 * ROW, "train.context": ROW, "recipe.lr": args.lr, "train.threads": args.threads}
    more: dict[str, Any] = {"budget": f"{args.tuning} steps", "resume": out.exists(), "quiet": args.quiet}
    finished(tune("gorilla", start=str(base(args)), data=str(data), out=out, seed=seed, overrides=changes, **more))
    return stemma.load(out)


def asked(model: Any, beside: Any, many: int) -> dict[str, float]:
    """The share of right calls; beside edited documentation, also of calls as they were."""
    rows = [*calls.held_out(beside)]
    random.Random(0).shuffle(rows)
    rows = rows[:many]
    asks = [
        Ask((Turn("user", read(row).turns[0].content),), Sampling(60, 0.0, stops=("<<<api_provider>>>",)))
        for row in rows
    ]
    said = {i: answer.text for group in LocalWriter(model, "tuned", batch=60).answers(asks) for i, answer in group}
    old = {api["api_name"]: api for api in calls.apis()}
    before = [{"api_call": old[row["api_data"]["api_name"]]["api_call"]} for row in rows]
    right = sum(calls.right(said[i], row) for i, row in enumerate(rows)) / len(rows)
    return {"right": right, "before": sum(calls.right(said[i], row) for i, row in enumerate(before)) / len(rows)}


def table(done: dict[str, Any]) -> None:
    print(f"{'learnt from':28}" + "".join(f"{beside:20}" for beside in BESIDE) + "edited: as before")
    for trained in TRAINED:
        own = [found for key, found in done.items() if key.startswith(f"{trained}:")]
        if own:
            cells = [spread([found[beside]["right"] for found in own], ".0%", 4) for beside in BESIDE]
            cells.append(spread([found["edited"]["before"] for found in own], ".0%", 4))
            print(f"{trained:28}" + "".join(f"{cell:20}" for cell in cells).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=600, help="of the base")
    parser.add_argument("--tuning", type=int, default=500, help="steps of tuning")
    parser.add_argument("--lr", type=float, default=1e-3, help="of tuning")
    parser.add_argument("--asked", type=int, default=180, help="questions of each kind")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a tiny base, to see that the script runs")
    parser.add_argument("--out", type=Path, help="[default: runs/bench-gorilla]")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    args.out = args.out or Path(tempfile.mkdtemp() if args.small else "runs/bench-gorilla")
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "results.json"
    done: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in args.seeds:
        for trained in TRAINED:
            if (key := f"{trained}:{seed}") not in done:
                model = tuned(trained, seed, args)
                done[key] = {beside: asked(model, beside, args.asked) for beside in BESIDE}
                kept.write_text(json.dumps(done, indent=2) + "\n")
    table(done)


if __name__ == "__main__":
    main()
