"""Speed of alignment: a step of Stemma beside one of trl, on the same network, rows and rewards.

    python bench/align.py [dpo] [lora] [grpo] [ppo] [--defaults] [--best] [--threads 2] [--turns 4] [--layers 30]

A network of SmolLM2-135M's shape with random weights. `dpo`: a whole step of DPO on pairs whose lengths are those of
Anthropic's HH, all weights with a second network as the reference; `lora`: the same with adapters of rank 8 beside all
linear layers, and the reference by switching them off. First both sides compute the loss of the same pairs with the same
two sets of weights: they must agree to 1e-5, or nothing is timed. Then steps are taken in turns in one process; the
table shows tokens of both texts of the pairs (prompt and answer, none of padding) a second, the median, and the ratio of
neighbouring steps with the extremes.

`grpo`: a whole step of GRPO, from prompts of such lengths to the update, without a reference: 16 prompts with 8 answers
of 64 tokens each, sampled at temperature 1; the table shows tokens of answers a second. trl does what GRPOTrainer does
without settings (one prompt with 8 answers a step), and at its best 16 prompts with nothing computed twice.

Stemma is what `stemma align dpo` does without further settings. trl is what DPOTrainer does without any (8 pairs a step,
padded, activations computed twice), and at its best: nothing computed twice, 16 pairs a step as Stemma. Both in
`--precision`.

`ppo`: a whole step of PPO (16 prompts of 120 tokens, 48 new tokens each, two updates, a reference and a value model of the same
size) beside a plain loop of PyTorch and transformers (bench/training/rl.py), since trl has PPO no longer; tokens are those of
prompts and answers. Both must give the same answers the same log-probabilities.

trl is no dependency of Stemma's: without it only Stemma is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shared.turns import line
from training import groups, pairs, rl
from training.sft import LAYERS, base

COMPARED = 4  # pairs whose loss is compared


def dpo(folder: Path, given: argparse.Namespace, there: bool, lora: bool) -> None:
    """The lines of DPO."""
    view = pairs.Pairs(given.pairs, longest=given.longest)
    print(f"pairs of {view.tokens_total / len(view):.0f} tokens on average, texts of {given.longest} at most")
    with tempfile.TemporaryDirectory() as out:
        if there and not lora:
            other = base(Path(out, "other"), given.layers, seed=2)
            losses = (
                pairs.our_loss(folder, other, view, COMPARED), pairs.their_loss(folder, other, view, COMPARED, out)
            )  # fmt: skip
            print(f"loss of the same {COMPARED} pairs: Stemma {losses[0]:.6f}, trl {losses[1]:.6f}")
            assert abs(losses[0] - losses[1]) <= 1e-5 * max(1.0, losses[0]), "the losses differ: nothing is timed"
        for best in [False] * (not given.best) + [True] * (not given.defaults):
            own = pairs.ours(folder, view, lora, given.precision)
            steps = (
                pairs.stepper(*pairs.theirs(folder, None, view, lora, given.precision, best, out)) if there else None
            )
            name = f"{'lora' if lora else 'dpo'} {'best' if best else 'defaults'}"
            print(line(name, own, steps, given.turns), flush=True)


def grpo(folder: Path, given: argparse.Namespace, there: bool) -> None:
    """The lines of GRPO: tokens of the answers that are sampled and learnt."""
    view = groups.Prompts(given.pairs)
    print(f"prompts of {view.tokens_total / len(view):.0f} tokens on average, answers of {given.tokens}")
    with tempfile.TemporaryDirectory() as out:
        for best in [False] * (not given.best) + [True] * (not given.defaults):
            how = (folder, view, given.precision, given.prompts, given.tokens)
            steps = groups.theirs(*how, best, out) if there else None
            print(line(f"grpo {'best' if best else 'defaults'}", groups.ours(*how), steps, given.turns), flush=True)


def ppo(folder: Path, given: argparse.Namespace, there: bool) -> None:
    """The line of PPO."""
    with tempfile.TemporaryDirectory() as out:
        loop = rl.ours(folder, Path(out), given.precision)
        plain = rl.Plain(folder, loop, given.precision)
        gap = rl.apart(loop, plain)
        print(f"log-probabilities of the same answers are at most {gap:.1e} apart")
        assert gap < (1e-4 if given.precision == "fp32" else 0.1), "the networks differ: nothing is timed"
        print(line("ppo", rl.stepper(loop), plain, given.turns, "plain"), flush=True)
        loop.close()


METHODS: dict[str, Callable[[Path, argparse.Namespace, bool], None]] = {
    "dpo": lambda *given: dpo(*given, lora=False),
    "lora": lambda *given: dpo(*given, lora=True),
    "grpo": grpo,
    "ppo": ppo,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[*METHODS], help=", ".join(METHODS))
    parser.add_argument("--defaults", action="store_true", help="only trl's defaults")
    parser.add_argument("--best", action="store_true", help="only trl at its best")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--longest", type=int, default=pairs.LONGEST, help="tokens of a prompt with an answer at most")
    parser.add_argument("--prompts", type=int, default=16, help="of a step of GRPO, each with 8 answers")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    given: Any = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    there = importlib.util.find_spec("trl") is not None
    print(f"{given.layers} layers, {given.precision}, {given.threads} threads")
    if not there:
        print("trl is not installed (pip install trl peft): Stemma alone")
    with tempfile.TemporaryDirectory() as made:
        folder = base(Path(made, "base"), given.layers)
        for what in given.what:
            METHODS[what](folder, given, there)


if __name__ == "__main__":
    main()
