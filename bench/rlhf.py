"""InstructGPT's claims in small: PPO raises a reward near its reference, and PPO-ptx keeps what was pretrained.

    python bench/rlhf.py [--seeds 1 2 3] [--steps 40] [--base 300] [--only ppo ptx proxy] [--out DIR]

A LLaMA of two layers of 64 is pretrained here for --base steps on small stories and tuned on demonstrations, which tell of things
with as many bad words as good ones, and on more stories. All seeds share both. Then, for each seed, --steps steps of 64 answers each:

ppo     PPO against a rule: the good words of an answer less its bad ones
ptx     the same with pretraining gradients
proxy   PPO without a penalty against a reward model that learnt from 300 pairs, a tenth of them the wrong way round; the rule
        judges too, where an answer's words count once: the more the model is followed, the less it says

The table has, of each, the reward of held-out prompts before and after, for how many seeds it rose at less than 10 nats, the
divergence in nats an answer, and the loss on held-out stories; ptx.svg and proxy.svg in --out draw that loss, and both rewards,
against the divergence. What is done is kept in --out, so that the table can be made in pieces.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from shared import finished, spread
from shared.drawing import Line, draw

import stemma
from stemma.train import read_metrics
from stemma.tuning import tune

ROW = 64
TARGET = 10.0  # nats an answer that a policy should stay below
SIZE: dict[str, Any] = {
    "dims.d_model": 64, "dims.layers": 2, "dims.heads": 4, "dims.kv_heads": 4, "dims.d_ff": 160, "dims.vocab": 460,
    "dims.context": ROW, "recipe.batch": 2048, "recipe.lr": 3e-3, "train.eval_tokens": 4000,
}  # fmt: skip
SMALL = {"dims.d_model": 32, "dims.d_ff": 64}
THINGS = ["cat", "dog", "bird", "king", "river", "stone", "tree", "house", "star", "road"]
GOOD = ["happy", "bright", "kind", "brave", "warm", "gentle"]
BAD = ["sad", "dark", "cruel", "weak", "cold", "rude"]
DOES = ["sees", "finds", "keeps", "hears", "loves"]
RULE = f"""
GOOD, BAD = {GOOD!r}, {BAD!r}

def words(answer):
    return answer.replace(".", " ").split()

def good(prompt, answer, record):
    found = words(answer)
    return 0.25 * (sum(w in GOOD for w in found) - sum(w in BAD for w in found))

def gold(prompt, answer, record):
    found = words(answer)
    return 0.25 * (len(set(found) & set(GOOD)) - sum(w in BAD for w in found) - 0.2 * (len(found) - len(set(found))))
"""


def story(draw: random.Random) -> str:
    """Five sentences, most of which say neither good nor bad."""
    one, two = draw.sample(THINGS, 2)
    forms = [
        f"the {one} {draw.choice(DOES)} the {two}.",
        f"the {two} is near the {draw.choice(THINGS)}.",
        f"{draw.randint(2, 9)} of the {one}s go to the {two}.",
        f"the {one} is {draw.choice(GOOD + BAD)}.",
        f"then the {two} and the {draw.choice(THINGS)} go home.",
    ]
    return " ".join(draw.choice(forms) for _ in range(5))


def telling(draw: random.Random, thing: str, good: float = 0.5) -> str:
    """A demonstration: two or three sentences about a thing."""

    def word() -> str:
        return draw.choice(GOOD if draw.random() < good else BAD)

    forms = [
        f"the {thing} is {word()} and {word()}.",
        f"a {word()} {thing} {draw.choice(DOES)} the {draw.choice(THINGS)}.",
    ]
    return " ".join(draw.choice(forms) for _ in range(draw.randint(2, 3)))


def write(path: Path, rows: Iterator[dict[str, Any]]) -> str:
    if not path.exists():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def asked(draw: random.Random) -> tuple[str, str]:
    thing = draw.choice(THINGS)
    return thing, f"{draw.choice(['tell of', 'what of', 'say more of'])} the {thing}?"


class World:
    """Files of the world, and the models that all seeds begin from."""

    def __init__(self, out: Path, base: int, small: bool, quiet: bool) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.quiet = out, quiet
        (out / "rewards.py").write_text(RULE)
        draw = random.Random("stories")
        self.text = write(out / "stories.jsonl", ({"text": story(draw)} for _ in range(2000)))
        size = SIZE | (SMALL if small else {})
        budget = f"{base} steps"
        self.base = self.kept("base", lambda at: stemma.pretrain(
            "llama", data=self.text, out=at, budget=budget, overrides=size, resume=True, quiet=quiet))  # fmt: skip
        shown = write(out / "shown.jsonl", self.demonstrations())
        steps = {
            "recipe.lr": 1e-3,
            "recipe.batch": 2048,
            "train.context": ROW,
            "train.best": "",
            "train.budget": budget,
        }
        self.sft = self.kept("sft", lambda at: tune(
            "chat", start=str(self.base), data=shown, out=at, settings={"template": "flan", "texts": True}, overrides=steps,
            resume=True, quiet=quiet))  # fmt: skip
        self.prompts = write(out / "prompts.jsonl", self.questions())

    def kept(self, name: str, make: Any) -> Path:
        """A run that is made once."""
        at = self.out / name
        if not (at / "summary.json").exists():
            finished(make(at))
        return at

    def demonstrations(self) -> Iterator[dict[str, Any]]:
        """Answers, and as many stories, so that these are not forgotten before reinforcement begins."""
        draw = random.Random("shown")
        for _ in range(1500):
            thing, question = asked(draw)
            yield {"prompt": question, "completion": telling(draw, thing)}
            yield {"text": story(draw)}

    def questions(self) -> Iterator[dict[str, Any]]:
        draw = random.Random("prompts")
        for i in range(640):
            yield {"prompt": asked(draw)[1], "number": i}

    def pairs(self) -> Iterator[dict[str, Any]]:
        """Answers of which the one with the better words is mostly the chosen one."""
        draw = random.Random("pairs")
        for _ in range(300):
            thing, question = asked(draw)
            better, worse = telling(draw, thing, 0.8), telling(draw, thing, 0.3)
            if draw.random() < 0.1:
                better, worse = worse, better
            yield {"prompt": question, "chosen": better, "rejected": worse}

    def proxy(self) -> Path:
        """The reward model."""
        data = write(self.out / "pairs.jsonl", self.pairs())
        how = {"recipe.lr": 1e-3, "train.best": ""}
        return self.kept("proxy", lambda at: stemma.align(
            "reward", start=str(self.sft), data=data, out=at, budget="4 epochs", overrides=how, resume=True, quiet=self.quiet
        ))  # fmt: skip


def ppo(world: World, kind: str, seed: int, steps: int, more: dict[str, Any]) -> Path:
    how: dict[str, Any] = {
        "objective.prompts": 64, "objective.minibatch": 32, "objective.inner": 2, "objective.max_new_tokens": 36,
        "objective.kl": 1e-6 if kind == "proxy" else 0.25, "objective.ptx": world.text, "objective.ptx_weight": 0.0,
        "objective.unfinished": -1.0, "recipe.lr": 3e-4, "recipe.schedule.shape": "constant",
        "train.eval_every": max(1, steps // 12), "train.context": ROW, "train.threads": 1, "train.save_every": steps,
    }  # fmt: skip
    how |= {"objective.ptx_weight": 1.0} if kind == "ptx" else {}
    rewards = [f"{world.out / 'rewards.py'}:good"]
    if kind == "proxy":
        how |= {"objective.gates.kl": None}
        rewards = [str(world.proxy()), f"{world.out / 'rewards.py'}:gold@0"]
    return world.kept(f"{kind}-{seed}", lambda at: stemma.align(
        "ppo", start=str(world.sft), data=world.prompts, out=at, rewards=rewards, budget=f"{steps} steps", seed=seed,
        overrides=how | more, resume=True, quiet=world.quiet))  # fmt: skip


def curve(run: Path, name: str) -> Line:
    """A number of each evaluation against its divergence, from before the first step to after the last."""
    about, summary = (json.loads((run / file).read_text()) for file in ("run.json", "summary.json"))
    rows = [{k[4:]: v for k, v in record.items() if k.startswith("val_")} for record in read_metrics(run)]
    return [(row["kl"], row[name]) for row in (about["before"], *rows, summary["val"]) if name in row]


def at(line: Line, kl: float) -> float:
    """What a curve comes to where its divergence first reaches `kl`, between two evaluations in proportion."""
    for (a, b), (c, d) in itertools.pairwise(line):
        if a <= kl <= c:
            return b + (d - b) * (kl - a) / ((c - a) or 1.0)
    return line[-1][1]


NAMES = {"ppo": "PPO", "ptx": "PPO-ptx", "proxy": "PPO against a reward model"}


def row(name: str, runs: list[Path]) -> str:
    reward, loss = ([curve(run, of) for run in runs] for of in ("reward", "pretraining_loss"))
    up = sum(line[-1][1] > line[0][1] and line[-1][0] < TARGET for line in reward)
    return (
        f"{name:<28}{spread([line[0][1] for line in reward], '.2f'):>24}{spread([line[-1][1] for line in reward], '.2f'):>24}"
        f"{f'{up} of {len(runs)}':>10}{spread([line[-1][0] for line in reward], '.1f'):>22}"
        f"{spread([line[-1][1] for line in loss], '.2f'):>24}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--base", type=int, default=300)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--out", type=Path, help="[default: runs/bench-rlhf]")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    given = parser.parse_args()
    given.out = given.out or Path(tempfile.mkdtemp() if given.small else "runs/bench-rlhf")
    world = World(given.out, given.base, given.small, given.quiet)
    few = {"objective.prompts": 8, "objective.minibatch": 8, "objective.judged": 8, "objective.max_new_tokens": 12}
    more = few if given.small else {}
    runs = {kind: [ppo(world, kind, seed, given.steps, more) for seed in given.seeds] for kind in given.only}
    print(f"{'':<28}{'reward before':>24}{'after':>24}{'rose':>10}{'nats an answer':>22}{'loss on stories':>24}")
    for kind, made in runs.items():
        print(row(NAMES[kind], made), flush=True)
    if {"ppo", "ptx"} <= runs.keys():
        lines = {NAMES[kind]: [curve(run, "pretraining_loss") for run in runs[kind]] for kind in ("ppo", "ptx")}
        draw(given.out / "ptx.svg", lines, "divergence from the reference, nats an answer", "loss on held-out stories")
        pairs = list(zip(*lines.values(), strict=True))
        for kl in (0.5, 1.0, 1.5):
            one, two = ([at(pair[i], kl) for pair in pairs] for i in (0, 1))
            print(f"loss on stories at {kl:g} nats: PPO {spread(one, '.3f')}, PPO-ptx {spread(two, '.3f')}")
    if "proxy" in runs:
        names = {"reward model": "reward_proxy", "rule": "reward_gold"}
        lines = {label: [curve(run, name) for run in runs["proxy"]] for label, name in names.items()}
        draw(
            given.out / "proxy.svg",
            lines,
            "divergence from the reference, nats an answer",
            "reward of held-out prompts",
        )
        for label, found in lines.items():
            best = [max(line, key=lambda p: p[1]) for line in found]
            print(
                f"{label}: best {spread([b for _, b in best], '.2f')} at {spread([a for a, _ in best], '.1f')} nats, "
                f"at the end {spread([line[-1][1] for line in found], '.2f')}"
            )


if __name__ == "__main__":
    main()
