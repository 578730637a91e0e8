"""Speed of tuning: Stemma's loop beside trl's SFTTrainer with peft, on the same network, examples and targets.

    python bench/tune.py [sft] [lora] [--defaults] [--best] [--threads 2] [--turns 4] [--precision fp32] [--layers 30]

A network of SmolLM2-135M's shape with random weights learns the answers of random examples whose lengths are those of
instruction data; all of its weights (`sft`), or adapters of rank 8 beside all linear layers of its blocks (`lora`).
First both sides compute the loss of the same examples with the same weights: they must agree to 1e-5, or nothing is
timed. Then steps are taken in turns in one process; the table shows tokens of examples (none of padding) a second, the
median, and the ratio of neighbouring steps with the extremes.

Stemma is what `stemma tune chat` does without further settings. trl is what SFTTrainer does without any (batches of 8
padded examples, activations computed twice), and at its best: packed rows of 1,024 tokens whose documents do not see
each other, nothing computed twice, as many tokens a step as Stemma. Both in `--precision`; where the processor
multiplies bf16, a second run with `--precision bf16` is the one to read.

trl is no dependency of Stemma's: without it only Stemma is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import warnings
from pathlib import Path

import torch
from shared.turns import line
from training.sft import LAYERS, Examples, base, our_loss, ours, stepper, their_loss, theirs

COMPARED = 8  # examples whose loss is compared


def measure(folder: Path, view: Examples, lora: bool, best: bool, given: argparse.Namespace, there: bool) -> str:
    """A line of the table."""
    own = ours(folder, view, lora, given.precision)
    name = f"{'lora' if lora else 'sft ':5} {'best' if best else 'defaults':9}"
    with tempfile.TemporaryDirectory() as out:
        other = stepper(*theirs(folder, view, lora, given.precision, best, out)) if there else None
        return line(name, own, other, given.turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["sft", "lora"], help="sft, lora")
    parser.add_argument("--defaults", action="store_true", help="only trl's defaults")
    parser.add_argument("--best", action="store_true", help="only trl at its best")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--examples", type=int, default=100)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    there = importlib.util.find_spec("trl") is not None
    view = Examples(given.examples, 49_152)
    longest = view.measured.longest
    print(f"{given.layers} layers, {given.precision}, {given.threads} threads; examples of {view.measured.mean:.0f} "
          f"tokens on average, {longest} at most")  # fmt: skip
    with tempfile.TemporaryDirectory() as made:
        folder = base(Path(made, "base"), given.layers)
        if there:
            losses = (our_loss(folder, view, COMPARED), their_loss(folder, view, COMPARED, made))
            print(f"loss of the same {COMPARED} examples: Stemma {losses[0]:.6f}, trl {losses[1]:.6f}")
            assert abs(losses[0] - losses[1]) <= 1e-5, "the losses differ, so their times are not compared"
        else:
            print("trl is not installed (pip install trl peft): Stemma alone")
        for what in given.what:
            for best in [False] * (not given.best) + [True] * (not given.defaults):
                print(measure(folder, view, what == "lora", best, given, there), flush=True)


if __name__ == "__main__":
    main()
