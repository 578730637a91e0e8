"""What a teacher's explanations are worth: Orca's claim in small, on questions whose answers a program checks.

    python bench/explained.py [--seeds 1 2 3] [--tokens 200000] [--steps 200] [--kinds letters] [--questions 100] [--out DIR]

The base is a LLaMA of three layers of 96, pretrained here for --steps steps of 5,120 tokens on a text that contains the
kind: single steps (sums, doublings, comparisons, words spelled out) of other questions than those below, never from a
question to its answer, and lists that are said again. It is then tuned in `stemma tune orca`'s form (loss on the
teacher's words, packed; the plain template and no system messages, to save tokens) on 3,000 questions of the --kinds of
`builtin:explained`, each arm for the same number of tokens read:

explained   the steps as sums, then the answer            answers    the answer alone, the same questions
two stages  four fifths of the tokens on the sums, then a fifth on 600 of the questions as the stronger teacher answers
one stage   all tokens on those 600 (the second stage without the first)

Measured are the share of held-out questions whose final answer is right, and of longer ones (4 to 6 steps, where at most
3 were learnt). All arms of a seed begin from one base and draw their order from that seed. What is done is kept in --out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from shared import finished, spread

import stemma
from stemma.samples import explained
from stemma.tuning import tune
from stemma.tuning.decoding import Decoding
from stemma.tuning.predicting import measured, tuned

ROW, LONGEST = 320, 180  # tokens of a row, of an answer
DIMS = {"dims.d_model": 96, "dims.layers": 3, "dims.heads": 4, "dims.d_ff": 256, "dims.vocab": 500}
SMALL = {"dims.d_model": 32, "dims.layers": 1, "dims.heads": 2, "dims.d_ff": 48, "dims.vocab": 400}
FINAL = explained.FINAL.pattern
ARMS: dict[str, list[tuple[float, str]]] = {  # of an arm: (share of the tokens, data) of its stages
    "explained": [(1.0, "terse")],
    "answers": [(1.0, "bare")],
    "two stages": [(0.8, "terse"), (0.2, "second")],
    "one stage": [(1.0, "second")],
}


def written(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    if not path.exists():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(
    count: int, kinds: Sequence[str], held: bool, longer: bool = False, seed: int = 1
) -> list[explained.Problem]:
    """Problems of these kinds."""
    steps = explained.LONG if longer else explained.SHORT
    made = explained.problems(10**6, held, steps, seed)
    return list(itertools.islice((one for one in made if one.task in kinds), count))


def pretraining(paragraphs: int, kinds: Sequence[str]) -> Iterable[dict[str, Any]]:
    """Paragraphs of eight single steps, of questions that no set below has, and as many in which a list is said twice."""
    draw = random.Random(7)
    made = questions(3 * paragraphs, kinds, held=False, seed=2)
    steps = [step for one in made for step in (*(f"{s}." for s in one.sums), *one.sentences)]
    steps += [f"{word}: {' '.join(word)}." for word in explained.WORDS for _ in range(paragraphs // 20 + 1)]
    items = [*map(str, range(1, 60)), *explained.NAMES, *explained.WORDS, *explained.THINGS, *"abcdefghilmnoprstuvwy"]
    draw.shuffle(steps)
    for k in range(0, min(len(steps), 8 * paragraphs), 8):
        yield {"text": " ".join(steps[k : k + 8])}
        said = ", ".join(draw.choice(items) for _ in range(12))
        yield {"text": f"{said}. Again: {said}. Again: {said}."}


def base(args: argparse.Namespace) -> str:
    """The pretrained network, made when it is first needed."""
    out = args.out / "base"
    if not (out / "summary.json").exists():
        text = written(args.out / "steps.jsonl", pretraining(40 if args.small else 2000, args.kinds))
        changes = {
            **(SMALL if args.small else DIMS),
            "dims.context": ROW,
            "train.context": ROW,
            "recipe.batch": 16 * ROW,
        }
        more: dict[str, Any] = {"budget": f"{args.steps} steps", "resume": out.exists(), "quiet": args.quiet}
        finished(stemma.pretrain("llama", data=text, out=out, overrides=changes, **more))
    return str(out)


def data(name: str, args: argparse.Namespace) -> str:
    made = questions(3000, args.kinds, held=False)
    those, teacher = (made[::5], "wordy") if name == "second" else (made, name)
    return written(args.out / f"{name}.jsonl", (explained.row(one, teacher) | {"system": ""} for one in those))


def scores(model: str, args: argparse.Namespace) -> dict[str, float]:
    """The share of right answers, of held-out questions and of longer ones; of the latter's kinds too."""
    one, found = tuned(model), {}
    how = Decoding(final=FINAL, tokens=LONGEST)
    for name, longer in (("held out", False), ("longer", True)):
        rows = [explained.row(one) | {"system": ""} for one in questions(args.questions, args.kinds, True, longer)]
        found[name] = measured(one, rows, draws=1, how=how).metrics["accuracy"]
        for kind in args.kinds:
            some = [row for row in rows if row["task"] == kind]
            if some:
                found[f"{name}: {kind}"] = measured(one, some, draws=1, how=how).metrics["accuracy"]
    return found


def arm(name: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Tune the base in the stages of an arm, and measure it."""
    start = base(args)
    for number, (share, what) in enumerate(ARMS[name], 1):
        out = args.out / f"{name.replace(' ', '-')}-{seed}-{number}"
        more: dict[str, Any] = {
            "seed": seed,
            "quiet": args.quiet,
            "resume": True,
            "overrides": {"recipe.lr": args.lr},
            "settings": {"template": "plain"},
        }
        budget = f"{round(args.tokens * share)} tokens"
        finished(tune("orca", stage=1, start=start, data=data(what, args), out=out, budget=budget, **more))
        start = str(out)
    return scores(start, args)


def table(done: dict[str, dict[str, float]], kinds: Sequence[str]) -> None:
    """A row an arm: means over the seeds, the least and the most."""
    own_kinds = [f"longer: {kind}" for kind in kinds] if len(kinds) > 1 else []
    print(f"{'arm':12}{'held out':24}{'longer':24}" + "".join(f"{kind:17}" for kind in own_kinds))
    for name in ARMS:
        own = [found for key, found in done.items() if key.partition(":")[0] == name]
        if own:
            parts = [spread([one[key] for one in own], ".2f").ljust(24) for key in ("held out", "longer")]
            means = "".join(f"{statistics.mean(one.get(kind, 0.0) for one in own):<17.2f}" for kind in own_kinds)
            print(f"{name:12}{''.join(parts)}{means}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=200, help="of the base")
    parser.add_argument("--tokens", type=int, default=200_000, help="that each arm reads")
    parser.add_argument("--kinds", nargs="+", choices=explained.MAKERS, default=["letters"])
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--questions", type=int, default=100, help="held out, and as many longer ones")
    parser.add_argument("--small", action="store_true", help="a tiny base, to see that the script runs")
    parser.add_argument("--out", type=Path, help="[default: runs/bench-explained]")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    args.out = args.out or Path(tempfile.mkdtemp() if args.small else "runs/bench-explained")
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "results.json"
    done: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in args.seeds:
        for name in args.only:
            if (key := f"{name}:{seed}") not in done:
                done[key] = arm(name, seed, args)
                kept.write_text(json.dumps(done, indent=2) + "\n")
    table(done, args.kinds)


if __name__ == "__main__":
    main()
