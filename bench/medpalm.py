"""Instruction prompt tuning beside its halves: vectors before a prompt in words, vectors alone, words alone (Med-PaLM).

    python bench/medpalm.py [--seeds 1 2 3] [--steps 150] [--base 600] [--out DIR]

The base is a LLaMA of three layers of 96, pretrained here for --base steps of 4,096 tokens on a text that contains the
kind: the 155 facts of `builtin:medicine` as sentences (those whose questions are held out, too), and questions of the
three forms below, with instructions and examples or without, about capitals, opposites and kinds of things.

Every arm has the same form around a question (`Question: ...`, `Claim: ...`), and in front of it

nothing       no more than that                    words         an instruction and a worked example, about --count tokens
vectors       --count vectors, learnt              both          half as many vectors, then the instruction alone
all           --count vectors, then the instruction

so that words, vectors and both take about as many places, and vectors and all learn as many numbers. Vectors are one set for all three tasks, drawn from
U(-0.5, 0.5), learnt by AdamW at 0.003 on 696 questions about three facts of four (--steps steps of 16) by `stemma tune
med-palm`; the base is frozen. Measured on 234 questions about the other facts: the loss on the answers, and the share
that is right, of each task. Words and nothing are not learnt, so they have one value. What is done is kept in --out.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from shared import finished, spread

import stemma
from stemma.declare.tasks import ChatTask, HardPrompt
from stemma.rewrites import SoftPrompt
from stemma.samples import facts, medicine
from stemma.tasks.base import reader
from stemma.tuning import predict, tune
from stemma.tuning.decoding import Decoding
from stemma.tuning.predicting import Tuned

ROW = 256
DIMS = {"dims.d_model": 96, "dims.layers": 3, "dims.heads": 4, "dims.d_ff": 256, "dims.vocab": 600}
SMALL = {"dims.d_model": 32, "dims.layers": 1, "dims.heads": 2, "dims.d_ff": 48, "dims.vocab": 500}
TASKS = tuple(medicine.MAKERS)
FORMS = {
    "choice": "Question: {question}\nExplanation:",
    "short": "Question: {question}\nAnswer:",
    "judge": "Claim: {question}\nAnswer:",
}
INSTRUCTIONS = {
    "choice": "Name the fact behind the question, then the letter of the right option.",
    "short": "Answer the question with a word or two.",
    "judge": "Say yes if the claim is right, and no if it is not.",
}
EXAMPLES = {
    "choice": "Question: Which organ hears?\n(A) nose\n(B) ear\nExplanation: The organ that hears is the ear.\nAnswer: (B)",
    "short": "Question: Which organ smells?\nAnswer: nose\n\nQuestion: Which organ hears?\nAnswer: ear",
    "judge": "Claim: The organ that hears is the knee.\nAnswer: no\n\nClaim: The organ that smells is the nose.\nAnswer: yes",
}
ARMS = ("nothing", "words", "vectors", "both", "all")


# ---------------------------------------------------------------- the base


def general(draw: random.Random) -> tuple[str, str, str, list[str]]:
    """A fact that is not of medicine: (sentence with {}, question, answer, other answers)."""
    match draw.randrange(3):
        case 0:
            x, y = draw.choice(list(facts.CAPITALS.items()))
            return f"The capital of {x} is {{}}.", f"What is the capital of {x}?", y, list(facts.CAPITALS.values())
        case 1:
            x, y = draw.choice(list(facts.OPPOSITES.items()))
            return f"The opposite of {x} is {{}}.", f"What is the opposite of {x}?", y, list(facts.OPPOSITES.values())
        case _:
            y = draw.choice(list(facts.KINDS))
            x = draw.choice(facts.KINDS[y])
            return f"A {x} is a kind of {{}}.", f"What kind of thing is a {x}?", y, list(facts.KINDS)


def exam(draw: random.Random, task: str) -> str:
    """A question of a task's form about a fact that is not of medicine, and its answer."""
    says, asks, right, others = general(draw)
    wrong = draw.sample([one for one in others if one != right], 3)
    if task == "short":
        return f"{FORMS[task].format(question=asks)} {right}"
    if task == "judge":
        yes = draw.random() < 0.5
        return f"{FORMS[task].format(question=says.format(right if yes else wrong[0]))} {'yes' if yes else 'no'}"
    options = draw.sample([right, *wrong], 4)
    listed = "\n".join(f"({letter}) {one}" for letter, one in zip("ABCD", options, strict=True))
    letter = "ABCD"[options.index(right)]
    return f"{FORMS[task].format(question=f'{asks}{chr(10)}{listed}')} {says.format(right)}\nAnswer: ({letter})"


def pretraining(count: int) -> Iterator[dict[str, Any]]:
    """Documents: the facts in an order of their own each time, and exams of one to three questions."""
    draw, said = random.Random(5), list(medicine.statements())
    for _ in range(count):
        draw.shuffle(said)
        yield {"text": " ".join(said[:6])}
        task = draw.choice(TASKS)
        head = f"{INSTRUCTIONS[task]}\n\n" if draw.random() < 0.5 else ""
        yield {"text": head + "\n\n".join(exam(draw, task) for _ in range(draw.randrange(1, 4)))}


def written(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    if not path.exists():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def base(args: argparse.Namespace) -> str:
    """The pretrained network, made when it is first needed."""
    out = args.out / "base"
    if not (out / "summary.json").exists():
        text = written(args.out / "text.jsonl", pretraining(100 if args.small else 4000))
        changes = {
            **(SMALL if args.small else DIMS),
            "dims.context": ROW,
            "train.context": ROW,
            "recipe.batch": 16 * ROW,
        }
        changes |= {} if args.small else {"recipe.lr": 2e-3}
        more: dict[str, Any] = {"budget": f"{args.base} steps", "resume": out.exists(), "quiet": args.quiet}
        finished(stemma.pretrain("llama", data=text, out=out, overrides=changes, **more))
    return str(out)


# ---------------------------------------------------------------- the arms


def prompts(arm: str) -> tuple[HardPrompt, ...]:
    """What stands around a question, of each task."""
    words = {
        "words": {task: f"{INSTRUCTIONS[task]}\n\n{EXAMPLES[task]}\n\n" for task in TASKS},
        **{key: {task: f"{INSTRUCTIONS[task]}\n\n" for task in TASKS} for key in ("both", "all")},
    }.get(arm, dict.fromkeys(TASKS, ""))
    return tuple(HardPrompt(words[task] + FORMS[task], task) for task in TASKS)


def learnt(arm: str, seed: int, args: argparse.Namespace) -> Any:
    """The model of an arm."""
    start = base(args)
    if arm in ("nothing", "words"):
        return stemma.load(start)
    count = args.count // 2 if arm == "both" else args.count
    out = args.out / f"{arm}-{seed}"
    finished(
        tune(
            "med-palm",
            start=start,
            out=out,
            seed=seed,
            budget=f"{args.steps} steps",
            quiet=args.quiet,
            resume=True,
            rewrites=(SoftPrompt(count, "uniform"),),
            settings={"template": "plain", "prompts": prompts(arm)},
        )
    )
    return stemma.load(out)


@torch.no_grad()
def loss(model: Any, task: ChatTask, rows: list[dict[str, Any]]) -> float:
    """Nats a token of the answers of rows."""
    read = reader(task, model.tokenizer, ROW, "decoder")
    total = tokens = 0.0
    for row in rows:
        ids, marks = read.marked(read.read(row))
        logits = model(torch.tensor([ids])).logits[0, marks[1] - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[marks[1] :]), reduction="sum"))
        tokens += len(ids) - marks[1]
    return total / tokens


def measured(arm: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    model = learnt(arm, seed, args).eval()
    task = ChatTask(template="plain", prompts=prompts(arm))
    rows = list(medicine.held_out())[: 12 if args.small else None]
    found = {"loss": loss(model, task, rows)}
    answers = predict(Tuned(model, task), rows, how=Decoding(tokens=40))
    right = [medicine.is_right(first(answer["text"], row), row) for answer, row in zip(answers, rows, strict=True)]
    for name in TASKS:
        own = [ok for ok, row in zip(right, rows, strict=True) if row["task"] == name]
        found[name] = sum(own) / max(1, len(own))
    words = [len(model.tokenizer.encode(one.text.partition(FORMS[one.task])[0])) for one in task.prompts]
    found["words"] = statistics.mean(words) if arm not in ("nothing", "vectors") else 0.0
    return found


def first(text: str, row: dict[str, Any]) -> str:
    """The answer to the question that was asked, where a model goes on to others."""
    return "\n".join(text.split("\n\n")[0].strip().splitlines()[: 2 if row["task"] == "choice" else 1])


def table(done: dict[str, dict[str, float]]) -> None:
    """A row an arm: means over the seeds, the least and the most."""
    print(f"{'in front':10}{'words':8}" + "".join(f"{name:24}" for name in ("loss", *TASKS)))
    for arm in ARMS:
        own = [found for key, found in done.items() if key.partition(":")[0] == arm]
        if own:
            parts = "".join(spread([one[name] for one in own], ".2f").ljust(24) for name in ("loss", *TASKS))
            print(f"{arm:10}{own[0]['words']:<8.0f}{parts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=150, help="of the vectors")
    parser.add_argument("--base", type=int, default=600, help="steps of the base")
    parser.add_argument("--count", type=int, default=48, help="places in front of a question")
    parser.add_argument("--small", action="store_true", help="a tiny base, to see that the script runs")
    parser.add_argument("--out", type=Path, help="[default: runs/bench-medpalm]")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    args.out = args.out or Path(tempfile.mkdtemp() if args.small else "runs/bench-medpalm")
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "results.json"
    done: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in args.seeds:
        for arm in args.only:
            if arm in ("nothing", "words") and seed != args.seeds[0]:
                continue
            if (key := f"{arm}:{seed}") not in done:
                done[key] = measured(arm, seed, args)
                kept.write_text(json.dumps(done, indent=2) + "\n")
    table(done)


if __name__ == "__main__":
    main()
