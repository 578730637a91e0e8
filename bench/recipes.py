"""The published recipes of alignment, stage by stage, against a reward that is known.

    python bench/recipes.py [NAME ...] [--seeds 1 2 3] [--base 800] [--small] [--out DIR]

A LLaMA of three layers of 128 is pretrained (--base steps) on questions and answers of every quality: right and wrong, brief and
wordy ones, requests that are declined or not. Each recipe (instructgpt, chatgpt, llama2-chat, tulu2) then goes through all of its
stages as `stemma align NAME --from BASE` has them, its demonstrations being some of the same answers,
its preferences those that the rules of helpfulness and safety make. Held-out prompts in other words are answered at temperature 1
after every stage; printed are the gold reward (the rules themselves), the reward that was learnt, the divergence from the tuned model
in nats an answer and the share of prompts on which the gold reward is above that model's. What is done is kept in --out.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from shared import finished, spread

import stemma
from stemma.alignment import recipes
from stemma.samples import harmless
from stemma.samples.preferences import candidates, question, questions

SIZE: dict[str, Any] = {
    "dims.d_model": 128, "dims.layers": 3, "dims.heads": 4, "dims.kv_heads": 4, "dims.d_ff": 384, "dims.vocab": 900,
    "dims.context": 192, "train.context": 64, "recipe.batch": 2048, "recipe.lr": 2e-3, "train.eval_tokens": 4000,
}  # fmt: skip
TEMPLATES = {"instructgpt": "tulu", "chatgpt": "tulu"}  # where none is published
SMALL = {"dims.d_model": 32, "dims.layers": 1, "dims.d_ff": 64, "recipe.batch": 512}


def answered(draw: random.Random) -> Iterator[tuple[str, str]]:
    """Requests, each with an answer of some quality: what the rules judge, better and worse."""
    for kind, about, form in questions():
        row = question(kind, about, form)
        yield row["prompt"], draw.choice(candidates(draw, kind, row))
    for deed, who, form in product(harmless.DEEDS, harmless.WHO[: -len(harmless.LATER)], harmless.FORMS):
        said = draw.choice((*harmless.DECLINED, *harmless.WITH))
        yield form.format(deed, who), said.format(deed, who)


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    if not path.exists():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def base(out: Path, seed: int, steps: int, small: bool) -> Path:
    """A network that was pretrained on requests and answers, each some times with another answer."""
    found = [(asked, said) for i in range(6) for asked, said in answered(random.Random(f"text {seed} {i}"))]
    random.Random(f"order {seed}").shuffle(found)
    text = written(out / "text.jsonl", [{"text": f"{asked}\n\n{said}"} for asked, said in found])
    made = out / "base"
    if not (made / "summary.json").exists():
        size = SIZE | (SMALL if small else {})
        finished(stemma.pretrain(
            "llama2", data=text, out=made, budget=f"{steps} steps", overrides=size, seed=seed, resume=True,
            quiet=True))  # fmt: skip
    return made


def demonstrations(out: Path, seed: int) -> str:
    """Some of the requests with one answer each."""
    found = [*answered(random.Random(f"shown {seed}"))]
    random.Random(f"order {seed}").shuffle(found)
    rows = [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in found[:300]]
    return written(out / "shown.jsonl", rows)


def carried_out(name: str, out: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """What a recipe came to, stage by stage."""
    start, shown = base(out, seed, args.base, args.small), demonstrations(out, seed)
    words = recipes.words(name)
    changes: dict[str, Any] = {f"{word}.train.threads": 1 for word in words}
    changes |= {"sft.data": shown, "sft.budget": "3 epochs"}
    if "ppo" in words:
        changes["ppo.objective.gates.finished"] = 0.0
    if "ppo-init" in words:  # the pretraining text is what the base read
        text = out / "text.jsonl"
        changes |= {"ppo-init.data": f"{shown}@0.9,{text}@0.1", "ppo.objective.ptx": str(text)}
    if args.small:
        changes |= {f"{word}.budget": "2 steps" for word in words}
        changes |= {"rs.rounds.samples": 2, "rs.rounds.prompts": 8} if "rs" in words else {}
        changes |= {"ppo.objective.prompts": 4, "ppo.objective.minibatch": 4} if "ppo" in words else {}
    at = out / name
    if not (at / "outcome.json").exists():
        finished(stemma.align(
            name, start=str(start), out=at, template=TEMPLATES.get(name), seed=seed, overrides=changes,
            resume=True, quiet=args.quiet))  # fmt: skip
    held: dict[str, Any] = json.loads((at / "outcome.json").read_text("utf-8"))
    return held["models"]  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*recipes.NAMES], metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--base", type=int, default=800, help="steps of pretraining")
    parser.add_argument("--small", action="store_true", help="a smaller network and few steps, to try the bench")
    parser.add_argument("--quiet", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = args.out or Path(scratch)
        for name in args.names:
            rows = []
            for seed in args.seeds:
                (out / str(seed)).mkdir(parents=True, exist_ok=True)
                rows.append(carried_out(name, out / str(seed), seed, args))
            print(f"{name}, {len(rows)} seeds")
            for model in rows[0]:
                each = {key: spread([float(row[model][key]) for row in rows if row[model].get(key) is not None])
                        for key in rows[0][model] if isinstance(rows[0][model][key], int | float)}  # fmt: skip
                print(f"  {model:20} " + "  ".join(f"{key} {value}" for key, value in each.items()))


if __name__ == "__main__":
    main()
