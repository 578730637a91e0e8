"""Koala's claim in small: both answers of a comparison behind markers of feedback, against the preferred ones alone.

    python bench/koala.py [--seeds 1 2 3] [--steps 200] [--tuning 600] [--asked 186] [--out DIR]

A LLaMA of two layers of 96 is pretrained here for --steps steps of 2,048 tokens on sentences with the words of builtin:feedback and
none of its facts; all seeds share it. `stemma tune koala` then teaches it the rows of builtin:feedback for --tuning steps of 2,048
tokens: conditioned on feedback, on the preferred answers alone (as many tokens, so each is read more often), and on both answers with
no telling them apart. All are asked --asked questions in other words, with the marker of helpful answers, and the first also with that
of unhelpful ones. The table has the share of helpful answers, the mean of the seeds, the least and the most, and how often an answer
is one of those that say nothing. What is done is kept in --out, so that the table can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from shared import finished, spread

import stemma
from stemma import families
from stemma.conversations import Turn
from stemma.conversations.templates import NAMES, conditioned, jinja
from stemma.declare.tuning import SFT
from stemma.instruct.writers import Ask, LocalWriter, Sampling
from stemma.samples import feedback
from stemma.tuning import tune

ROW = 96
SIZE: dict[str, Any] = {
    "dims.d_model": 96, "dims.layers": 2, "dims.heads": 4, "dims.d_ff": 192, "dims.vocab": 900, "dims.context": ROW,
    "train.context": ROW, "recipe.batch": 2048, "recipe.lr": 3e-3, "train.eval_tokens": 4096,
}  # fmt: skip
SMALL = {"dims.d_model": 32, "dims.d_ff": 64, "dims.vocab": 600}
Row = dict[str, Any]


def sentences(many: int) -> Iterator[str]:
    """Sentences of the words of the facts, of how they are asked for and of the template, in no sense."""
    draw = random.Random("sentences")
    told = [form for forms in feedback.ASKED.values() for form in forms] + [*feedback.TOLD.values(), *feedback.EVASIVE]
    told += [*markers(), "BEGINNING OF CONVERSATION: USER:", "GPT:"]
    words = [word for facts in feedback.FACTS.values() for pair in facts.items() for word in pair]
    for _ in range(many):
        yield " ".join(draw.choice(told).format(draw.choice(words), draw.choice(words)) for _ in range(4))


def conditioned_rows() -> Iterator[Row]:
    yield from feedback.rows()


def preferred_rows() -> Iterator[Row]:
    for row in feedback.rows():
        yield {"prompt": row["prompt"], "completion": row.get("chosen", row.get("completion"))}


def mixed_rows() -> Iterator[Row]:
    for row in feedback.rows():
        for name in ("chosen", "rejected", "completion"):
            if name in row:
                yield {"prompt": row["prompt"], "completion": row[name]}


TAUGHT: dict[str, Callable[[], Iterator[Row]]] = {
    "conditioned": conditioned_rows, "preferred alone": preferred_rows, "both, not told apart": mixed_rows,
}  # fmt: skip


def markers() -> tuple[str, ...]:
    """What Koala writes before a helpful and before another answer."""
    tuning = families.family("koala").tuning
    return next(stage.feedback for stage in (tuning.stages if tuning else ()) if isinstance(stage, SFT))


def base(args: argparse.Namespace) -> Path:
    out, text = args.out / "base", args.out / "sentences.jsonl"
    if not text.exists():
        lines = (json.dumps({"text": text}) + "\n" for text in sentences(500 if args.small else 12_000))
        text.write_text("".join(lines))
    if not (out / "summary.json").exists():
        changes = SIZE | (SMALL if args.small else {}) | {"train.threads": args.threads}
        more: dict[str, Any] = {"budget": f"{args.steps} steps", "resume": out.exists(), "quiet": args.quiet}
        finished(stemma.pretrain("llama", data=str(text), out=out, overrides=changes, **more))
    return out


def tuned(taught: str, seed: int, args: argparse.Namespace) -> Any:
    name = taught.replace(", ", "-").replace(" ", "-")
    data, out = args.out / f"{name}.jsonl", args.out / f"{name}-{seed}"
    data.write_text("".join(json.dumps(row) + "\n" for row in TAUGHT[taught]()))
    changes = {"recipe.batch": 2048, "train.context": ROW, "recipe.lr": args.lr, "train.threads": args.threads}
    more: dict[str, Any] = {"budget": f"{args.tuning} steps", "resume": out.exists(), "quiet": args.quiet}
    finished(tune("koala", start=str(base(args)), data=str(data), out=out, seed=seed, overrides=changes, **more))
    return stemma.load(out)


def asked(model: Any, marker: str, many: int) -> dict[str, float]:
    """The shares of helpful answers and of those that say nothing."""
    rows = [*feedback.held_out()]
    random.Random(0).shuffle(rows)
    rows = rows[:many]
    model.tokenizer.chat_template = jinja(conditioned(NAMES["koala"], marker), model.tokenizer)
    asks = [Ask((Turn("user", row["prompt"]),), Sampling(24, 0.0)) for row in rows]
    said = {i: answer.text for group in LocalWriter(model, "tuned", batch=64).answers(asks) for i, answer in group}
    helpful = sum(feedback.helpful(said[i], row) for i, row in enumerate(rows)) / len(rows)
    return {"helpful": helpful, "nothing": sum(text in feedback.EVASIVE for text in said.values()) / len(rows)}


def table(done: dict[str, Any]) -> None:
    print(f"{'taught':24}{'asked for':24}{'helpful':20}says nothing")
    for taught in TAUGHT:
        for marker in markers():
            own = [found[marker] for key, found in done.items() if key.startswith(f"{taught}:") and marker in found]
            if own:
                cells = [spread([found[name] for found in own], ".0%", 4) for name in ("helpful", "nothing")]
                print(f"{taught:24}{marker:24}{cells[0]:20}{cells[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=200, help="of the base")
    parser.add_argument("--tuning", type=int, default=600, help="steps of tuning")
    parser.add_argument("--lr", type=float, default=2e-3, help="of tuning")
    parser.add_argument("--asked", type=int, default=186, help="questions")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a tiny base, to see that the script runs")
    parser.add_argument("--out", type=Path, help="[default: runs/bench-koala]")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    args.out = args.out or Path(tempfile.mkdtemp() if args.small else "runs/bench-koala")
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "results.json"
    done: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in args.seeds:
        for taught in TAUGHT:
            if (key := f"{taught}:{seed}") not in done:
                model = tuned(taught, seed, args)
                one = markers() if taught == "conditioned" else markers()[:1]
                done[key] = {marker: asked(model, marker, args.asked) for marker in one}
                kept.write_text(json.dumps(done, indent=2) + "\n")
    table(done)


if __name__ == "__main__":
    main()
