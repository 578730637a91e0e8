"""Ghost Attention at a small scale: how long a model follows an instruction that was given once.

    python bench/ghost.py [--seeds 1 2 3] [--steps 600] [--more 300] [--small] [--out DIR]

A LLaMA of three layers of 128 learns conversations in which an instruction ("Sign every answer with Ida.") is followed by the
answer to the turn that has it, as demonstrations have them (plain SFT, --steps steps). From there three models go on for --more
steps: on the same demonstrations (SFT on), on conversations of `stemma data ghost` as Ghost Attention learns them (GAtt), and
on the same conversations with every answer learnt (all answers). Held-out conversations of eight turns are answered greedily
with the instruction before the first turn alone; printed is the share of answers that follow it, by turn.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from shared import finished, spread

import stemma
from stemma.conversations import Conversation, Turn, ghost
from stemma.instruct import ghosts
from stemma.instruct.writers import Continuation, LocalWriter, Sampling
from stemma.samples.facts import CAPITALS, KINDS, OPPOSITES
from stemma.text import Specials, Tokenizer

TURNS, HELD = 8, 24  # of a conversation, and conversations that are asked
NAMES = ("Ida", "Max", "Nora", "Hugo", "Lena", "Paul", "Emma", "Felix")
KIND = {"Name": ghosts.Attribute("Sign every answer with {}.", NAMES)}
THINGS = {thing: kind for kind, things in KINDS.items() for thing in things}
FACTS = [
    *((f"What is the capital of {a}?", f"It is {b}.") for a, b in CAPITALS.items()),
    *((f"What is the opposite of {a}?", f"It is {b}.") for a, b in OPPOSITES.items()),
    *((f"What kind of thing is {a}?", f"It is a {b}.") for a, b in THINGS.items()),
]
TEMPLATE = "vicuna"


def talk(draw: random.Random, turns: int, told: Sequence[str]) -> Conversation:
    """`turns` rounds; an answer is signed with the name that its own turn asks for (`told`, "": none)."""
    found = []
    for (asked, answer), name in zip(draw.sample(FACTS, turns), told, strict=True):
        words = f"{KIND['Name'].form.format(name)}\n\n{asked}" if name else asked
        found += [Turn("user", words), Turn("assistant", f"{answer} {name}" if name else answer)]
    return Conversation(tuple(found))


def demonstrations(draw: random.Random, many: int) -> list[Conversation]:
    """Conversations of one to eight turns: in some every turn has the instruction, in some one has, in some none."""
    found = []
    for _ in range(many):
        turns, name, how = draw.randint(1, TURNS), draw.choice(NAMES), draw.random()
        at = draw.randrange(turns)
        told = [name if how < 0.4 or (how < 0.7 and i == at) else "" for i in range(turns)]
        found.append(talk(draw, turns, told))
    return found


def written(path: Path, talks: Sequence[Conversation]) -> str:
    path.write_text("".join(json.dumps({"messages": one.messages}) + "\n" for one in talks), "utf-8")
    return str(path)


class Signs:
    """Writes conversations in the place of a network that has hardly learnt anything (--small)."""

    name = "a script"

    def answer(self, talks: Sequence[Sequence[Turn]], how: Sampling, seeds: Sequence[int]) -> list[Continuation]:
        """An answer with the name that the last words ask for."""
        return [Continuation(f"It is so. {next(n for n in NAMES if n in talk[-1].content)}", True) for talk in talks]


def followed(path: Path, seed: int) -> list[float]:
    """By turn, the share of held-out conversations whose answer is signed with the name that was asked for once."""
    draw = random.Random(f"held {seed}")
    writer = LocalWriter(stemma.load(path), "model", batch=HELD, template=TEMPLATE)
    talks = [talk(draw, TURNS, [""] * TURNS) for _ in range(HELD)]
    names = [draw.choice(NAMES) for _ in talks]
    said: list[list[Turn]] = [[] for _ in talks]
    shares = []
    for number in range(TURNS):
        asked = []
        for i, one in enumerate(talks):
            said[i].append(one.turns[2 * number])
            told = KIND["Name"].form.format(names[i])
            asked.append(ghost.at_first(Conversation(tuple(said[i])), told).turns)
        answers = writer.answer(asked, Sampling(16, 0.0), [1] * len(asked))
        for i, answer in enumerate(answers):
            said[i].append(Turn("assistant", answer.text.strip() or "?"))
        shares.append(sum(a.text.strip().endswith(names[i]) for i, a in enumerate(answers)) / len(answers))
    return shares


def base(out: Path, seed: int, small: bool) -> Path:
    """A network that has learnt nothing, with a tokenizer of the words here."""
    made = out / "base"
    if not (made / "config.json").exists():
        texts = ["\n".join([*(f"{a} {b}" for a, b in FACTS), *(KIND["Name"].form.format(n) for n in NAMES)])] * 3
        own = Tokenizer.train("bpe", texts, 700, Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>"))
        width = 32 if small else 128
        model = stemma.build(
            "llama", layers=3, d_model=width, heads=4, d_ff=3 * width, vocab=own.vocab_size, context=640, seed=seed
        )
        model.tokenizer = own
        stemma.save(model, made)
    return made


def tuned(start: Path, data: str, out: Path, steps: int, seed: int, task: dict[str, Any]) -> Path:
    """The run of a model that learns conversations."""
    changes: dict[str, Any] = {"recipe.lr": 2e-3, "recipe.batch": 4 * 640, "train.context": 640}
    changes |= {f"objective.task.{name}": value for name, value in task.items()}
    more: dict[str, Any] = {"budget": f"{steps} steps", "resume": out.exists(), "quiet": True, "seed": seed}
    finished(stemma.tune("chat", start=str(start), data=data, out=out, overrides=changes, **more))
    return out


def measured(seed: int, args: argparse.Namespace) -> dict[str, list[float]]:
    """The shares by turn of each model."""
    out = args.out / str(seed)
    out.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    shown = written(out / "sft.jsonl", demonstrations(draw, 60 if args.small else 1500))
    plain: dict[str, Any] = {"template": TEMPLATE}
    sft = tuned(base(out, seed, args.small), shown, out / "sft", args.steps, seed, plain)
    many = 16 if args.small else 300
    talks = [talk(draw, n, [""] * n) for n in (draw.randint(2, TURNS) for _ in range(many))]
    writer = Signs() if args.small else LocalWriter(stemma.load(sft), "sft", batch=16)
    plan = ghosts.Plan("sft", ghosts.facts(talks, KIND), seed=seed, short=0.0, tokens=16, temperature=0.7, round=16)
    made = ghosts.Ghosts(plan, writer, talks, KIND, out / "ghost")
    made.run()
    found = {"SFT": followed(sft, seed)}
    for name, data, task in (
        ("SFT on", shown, plain),
        ("GAtt", str(made.rows), {**plain, "ghost": "Ghost()"}),
        ("all answers", str(made.rows), plain),
    ):
        run = tuned(sft, data, out / name.replace(" ", "-"), args.more, seed, task)
        found[name] = followed(run, seed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--more", type=int, default=300)
    parser.add_argument("--small", action="store_true", help="a smaller network and less data, to try the bench")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        args.out = args.out or Path(scratch)
        rows = [measured(seed, args) for seed in args.seeds]
    print(f"share of answers that follow the instruction, by turn; {len(rows)} seeds, {HELD} conversations each")
    for name in rows[0]:
        by_turn = [spread([row[name][turn] for row in rows]) for turn in range(TURNS)]
        print(f"{name:12} " + "  ".join(f"{turn}: {value}" for turn, value in enumerate(by_turn, 1)))


if __name__ == "__main__":
    main()
