"""Every method of alignment on one task, side by side: SFT, a reward model, then RS, PPO, PPO-ptx, DPO and GRPO.

    python bench/methods.py [--data FILE] [--reward model|rule] [--only rs ppo ptx dpo grpo] [--seeds 1 2 3] [--out DIR]

FILE holds compared answers (Anthropic's HH, for one; left out: builtin:preferences, made by rules). Some of its short conversations are
held out. A LLaMA of three layers of 96 is pretrained on the text of all others (--base steps), tuned on the preferred answers of the
short ones, and aligned for each seed:

rs      the best of 8 answers to each prompt by the reward, learnt as demonstrations
ppo     PPO with a value model, 32 answers a step;  ptx: the same with pretraining gradients
dpo     DPO on the pairs of FILE with --reward model; with --reward rule on the best and the worst of 4 sampled answers
grpo    GRPO on 8 groups of 8 answers a step

--reward model is a reward model that learnt the pairs of FILE; rule is a function: answers of about eight words. Every model answers
each held-out prompt four times at temperature 1. Printed are the mean over seeds, the least and the most: the reward, for how many seeds
it rose with a divergence below --target nats an answer, that divergence, and the loss on held-out text of the conversations in nats a
token; and of DPO the share of held-out pairs whose chosen answer it rewards more. What is done is kept in --out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from shared import finished, spread

import stemma
from stemma.alignment import outcome
from stemma.alignment.best import Prompt, best_of, prompts
from stemma.alignment.scoring import scoring
from stemma.conversations import comparisons
from stemma.data.random import permutation
from stemma.errors import DataError
from stemma.tasks.encoder import raw_rows
from stemma.tuning import tune

TEMPLATE, ROW, WIDE, TOKENS = "plain", 96, 192, 40
TIMES = 4  # answers to each held-out prompt
METHODS = ("rs", "ppo", "ptx", "dpo", "grpo")
SIZE: dict[str, Any] = {
    "dims.d_model": 96, "dims.layers": 3, "dims.heads": 4, "dims.kv_heads": 4, "dims.d_ff": 256, "dims.vocab": 1500,
    "dims.context": WIDE, "train.context": ROW, "recipe.batch": 4096, "recipe.lr": 2e-3, "train.eval_tokens": 8000,
}  # fmt: skip
SMALL = {"dims.d_model": 32, "dims.layers": 2, "dims.d_ff": 64, "dims.vocab": 400, "recipe.batch": 1024}
RULE = """
def eight(prompt, answer, record):
    return -abs(len(answer.split()) - 8) / 8
"""


def turns(row: Any) -> tuple[Any, ...] | None:
    """The prompt of a row and its preferred answer; None for a row that is none, or has a long prompt."""
    try:
        one, _ = comparisons.compared(row)
    except DataError:
        return None
    return (
        one.turns
        if sum(len(turn.content) for turn in one.turns[:-1]) < 90 and len(one.turns[-1].content) < 160
        else None
    )


class World:
    """Files, and the models that all seeds begin from."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.out, self.quiet = given.out, given.quiet
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "rule.py").write_text(RULE)
        everything = list(raw_rows(given.data))
        short = [i for i, row in enumerate(everything) if turns(row) is not None]
        order = [short[i] for i in permutation((7,), len(short))]
        held = set(order[: max(8, min(64, len(short) // 8))])
        kept = [everything[i] for i in order if i not in held]
        others = [row for i, row in enumerate(everything) if i not in held]
        self.pairs = self.written("pairs", others)
        self.held = prompts(self.written("held", (everything[i] for i in sorted(held))))
        self.prompts = self.written("prompts", ({"prompt": self.asked(row)} for row in kept))
        talk = ("\n\n".join(turn.content for turn in found) for row in others if (found := self.all(row)))
        self.text = self.written("text", ({"text": one} for one in talk))
        size = SIZE | (SMALL if given.small else {})
        self.base = self.kept("base", lambda at: stemma.pretrain(
            "llama", data=self.text, out=at, budget=f"{given.base} steps", overrides=size, resume=True, quiet=self.quiet))  # fmt: skip
        shown = self.written("shown", ({"prompt": self.asked(row), "completion": self.said(row)} for row in kept))
        how = {"recipe.lr": 1e-3, "train.context": ROW}
        self.sft = self.kept("sft", lambda at: tune(
            "chat", start=str(self.base), data=shown, out=at, settings={"template": TEMPLATE}, budget="3 epochs",
            overrides=how, resume=True, quiet=self.quiet))  # fmt: skip
        self.rule = given.reward == "rule"
        self.reward = f"{self.out / 'rule.py'}:eight" if self.rule else str(self.kept("reward", lambda at: stemma.align(
            "reward", start=str(self.base), data=self.pairs, out=at, budget="1 epochs", template=TEMPLATE,
            overrides={"recipe.lr": 3e-4, "train.val_fraction": 0.2}, resume=True, quiet=self.quiet)))  # fmt: skip

    @staticmethod
    def all(row: Any) -> tuple[Any, ...]:
        """The turns of a row; none where it cannot be read."""
        try:
            return comparisons.compared(row)[0].turns
        except DataError:
            return ()

    @staticmethod
    def asked(row: Any) -> list[dict[str, Any]]:
        found = turns(row)
        assert found is not None
        return [{"role": turn.role, "content": turn.content} for turn in found[:-1]]

    @staticmethod
    def said(row: Any) -> list[dict[str, Any]]:
        found = turns(row)
        assert found is not None
        return [{"role": "assistant", "content": found[-1].content}]

    def written(self, name: str, rows: Any) -> str:
        path = self.out / f"{name}.jsonl"
        if not path.exists():
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return str(path)

    def kept(self, name: str, make: Any) -> Path:
        """A run that is made once."""
        at: Path = self.out / name
        if not (at / "summary.json").exists():
            finished(make(at))
        return at

    def ranked(self) -> str:
        """The best and the worst of four sampled answers by the rule."""
        if (path := self.out / "ranked.jsonl").exists():
            return str(path)
        found, asked = [], prompts(self.prompts)
        with scoring([self.reward]) as score:
            for one, pick in zip(asked, best_of(stemma.load(self.sft), asked, score, n=4, tokens=TOKENS, template=TEMPLATE),
                                 strict=True):  # fmt: skip
                both = sorted(zip(pick.rewards, (a.text for a in pick.answers), strict=True))
                if both[0][0] < both[-1][0] and all(text.strip() for _, text in both):
                    pair = ([{"role": "assistant", "content": both[i][1]}] for i in (-1, 0))
                    found.append(dict(zip(("chosen", "rejected"), pair, strict=True)) | {"prompt": one.messages})
        return self.written("ranked", found)


def summary(run: Path) -> Any:
    return json.loads((run / "summary.json").read_text())


def name_of(world: World, what: str, seed: int) -> str:
    return f"{'rule' if world.rule else 'model'}-{what}-{seed}"


def aligned(world: World, what: str, seed: int, steps: int, small: bool) -> Path:
    """The run of a method."""
    name = name_of(world, what, seed)
    common: dict[str, Any] = {"train.context": ROW, "train.threads": 1}
    sample = common | {
        "objective.max_new_tokens": TOKENS, "objective.unfinished": -1.0, "objective.judged": 8, "recipe.lr": 2e-4,
        "objective.kl": 0.1, "recipe.schedule.shape": "constant", "train.save_every": steps, "train.eval_every": steps,
    }  # fmt: skip
    one: dict[str, Any] = {
        "start": str(world.sft), "seed": seed, "template": TEMPLATE, "resume": True, "quiet": world.quiet,
    }  # fmt: skip
    online = one | {"data": world.prompts, "rewards": [world.reward], "budget": f"{steps} steps"}
    if what in ("ppo", "ptx"):
        how = sample | {
            "recipe.lr": 3e-4, "objective.kl": 0.15, "objective.inner": 2,
            "objective.prompts": 8 if small else 32, "objective.minibatch": 8 if small else 16,
        }  # fmt: skip
        if what == "ptx":
            how |= {"objective.ptx": world.text, "objective.ptx_weight": 0.5, "objective.ptx_rows": 0.25}
        return world.kept(name, lambda at: stemma.align("ppo", out=at, overrides=how, **online))
    if what == "grpo":
        how = sample | {"objective.prompts": 2 if small else 8, "objective.samples": 4 if small else 8}
        return world.kept(name, lambda at: stemma.align("grpo", out=at, overrides=how, **online))
    if what == "rs":
        how = common | {"rounds.samples": 2 if small else 8, "rounds.tokens": TOKENS, "recipe.lr": 1e-3}
        own = online | {"budget": "2 epochs"}
        return world.kept(name, lambda at: stemma.align("rs", out=at, overrides=how, **own))
    data = world.ranked() if world.rule else world.pairs
    how = common | {"recipe.lr": 3e-4, "objective.beta": 0.1}
    return world.kept(name, lambda at: stemma.align("dpo", data=data, out=at, budget="2 epochs", overrides=how, **one))


def judged(world: World, runs: dict[str, Path], seed: int) -> dict[str, Any]:
    """What the models answer to held-out prompts, kept in --out."""
    name = f"judged-{'rule' if world.rule else 'model'}-{seed}-{'-'.join(runs)}.json"
    if not (path := world.out / name).exists():
        asked: list[Prompt] = [one for one in world.held for _ in range(TIMES)]
        models = {"sft": str(world.sft)} | {what: str(run) for what, run in runs.items()}
        with scoring([world.reward]) as score:
            found = outcome.compared(models, asked, {"reward": score}, tokens=TOKENS, seed=seed, template=TEMPLATE)
        text = {what: float(bits(world, Path(model))) for what, model in models.items()}
        path.write_text(json.dumps(found["models"] | {"text": text}), "utf-8")
    held: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return held


def bits(world: World, run: Path) -> float:
    """Nats a token of held-out text of the conversations under the model of a run."""
    from stemma.train import prepare
    from stemma.train.evaluation import evaluate, sample
    from stemma.train.source import objective_of

    plan, tokenizer, store = prepare.reopen(world.base, verify=False)
    _, held = prepare.split(plan, store)
    return evaluate(stemma.load(run), objective_of(plan, tokenizer), sample(held, 8000))["loss"]


def rows(found: list[dict[str, Any]], target: float) -> Iterator[str]:
    yield f"{'':<8}{'reward':>26}{'rose':>10}{'nats an answer':>22}{'length':>9}{'loss on text':>24}"
    for what in (name for name in found[0] if name != "text"):
        reward, kl = ([one[what][key] for one in found] for key in ("reward", "kl"))
        up = sum(r > one["sft"]["reward"] and k < target for r, k, one in zip(reward, kl, found, strict=True))
        length = sum(one[what]["length"] for one in found) / len(found)
        text = [one["text"][what] for one in found]
        rose = f"{up} of {len(found)}" if what != "sft" else ""
        yield f"{what:<8}{spread(reward, '.2f'):>26}{rose:>10}{spread(kl, '.1f'):>22}{length:>9.1f}{spread(text, '.2f'):>24}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin:preferences")
    parser.add_argument("--reward", choices=("model", "rule"), default="model")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--base", type=int, default=600)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--target", type=float, default=10.0)
    parser.add_argument("--out", type=Path, help="[default: runs/bench-methods]")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    given = parser.parse_args()
    given.out = given.out or Path(tempfile.mkdtemp() if given.small else "runs/bench-methods")
    world = World(given)
    found = []
    for seed in given.seeds:
        runs = {what: aligned(world, what, seed, given.steps, given.small) for what in given.only}
        found.append(judged(world, runs, seed))
        print(f"seed {seed} is done", file=sys.stderr, flush=True)
    if not world.rule:
        about = summary(Path(world.reward))["val"]
        print(f"reward model: {about['accuracy']:.3f} of {about['targets']:.0f} held-out pairs in order")
    print("\n".join(rows(found, given.target)))
    if "dpo" in given.only:
        own = [summary(world.out / name_of(world, "dpo", seed))["val"] for seed in given.seeds]
        right, pairs = (
            spread([one[key] for one in own], form) for key, form in (("accuracy", ".2f"), ("targets", ".0f"))
        )
        print(f"DPO: {right} of {pairs} held-out pairs in order")


if __name__ == "__main__":
    main()
