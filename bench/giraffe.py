"""Giraffe's bases: loss and retrieval by length, after the same tokens of continued training from the same base.

    python bench/giraffe.py [--seeds 1 2 3] [--base 1500] [--steps 100] [--only linear xpos ...] [--out DIR]

A base (LLaMA, two layers of 64) learns rows of 64 tokens: keys with values, each said twice, among a filler. It is trained on
for --steps steps of 2,048 tokens at rows of 128 on each basis, with the same rows in the same order, and judged at 64 to 512
tokens: the loss of the filler, which is local, the loss of all tokens, and how many of the values that were said before are
found. A factor is 4, as in the study, where the trained rows are twice as long as before. What is done is kept in --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from recall.base import CONTEXT, TOKENS, base, learn, like, next_token, predicted
from recall.texts import Texts

from stemma.nn.model import Model
from stemma.nn.parts import (
    LinearScaling,
    NTKScaling,
    PowerScaling,
    RandomScaling,
    TruncatedScaling,
    XPosScaling,
    YarnScaling,
)

LONGER = 2 * CONTEXT
LENGTHS = (CONTEXT, LONGER, 2 * LONGER, 4 * LONGER)
BASES: dict[str, Any] = {
    "none": None,
    "linear": LinearScaling(4.0),
    "power": PowerScaling(0.5),
    "truncated": TruncatedScaling(CONTEXT),
    "random": RandomScaling(),
    "xpos": XPosScaling(),
    "xpos-wrong": XPosScaling(neighbours=True),
    "ntk": NTKScaling(4.0),
    "yarn": YarnScaling(4.0, CONTEXT),
}


@torch.no_grad()
def judged(model: Model, count: int) -> dict[str, list[float]]:
    """By length: the loss of the filler and of all tokens in nats, and the share of known values that are found."""
    found: dict[str, list[float]] = {"filler": [], "loss": [], "found": []}
    for length in LENGTHS:
        texts = Texts(9_000, length, max(2, count * CONTEXT // length))
        logits, ids = predicted(model, texts.ids), texts.ids[:, 1:]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
        found["filler"].append(float(each[texts.filler[:, 1:]].mean()))
        found["loss"].append(float(each.mean()))
        found["found"].append(float((logits.argmax(-1) == ids)[texts.asked[:, 1:]].float().mean()))
    return found


def measured(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """A basis after continued training, and what is found with another factor than the one it was trained with."""
    start = base(seed, args.base, args.out)
    model = like(start, {"position.scaling": BASES[name]}, LONGER)
    texts, draw = Texts(100 + seed, LONGER, min(3000, args.steps * 40)), torch.Generator().manual_seed(seed)

    def loss(step: int) -> torch.Tensor:
        ids = texts.batch(TOKENS // LONGER, draw)
        return next_token(predicted(model, ids), ids)

    before = judged(model.eval(), args.texts)
    learn(model, args.steps, args.rate, loss, warmup=10)
    more = {"before": before, "after": judged(model, args.texts)}
    if name == "linear":
        more["factor 8 in use"] = judged(like(model, {"position.scaling": LinearScaling(8.0)}).eval(), args.texts)
    return more


def shown(values: list[float], digits: int) -> str:
    spread = f" ±{(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def table(done: dict[str, dict[str, Any]], order: list[str]) -> None:
    """Means over the seeds, and half of the distance from the least to the most."""
    rows = [(name, when) for name in order for when in ("before", "after", "factor 8 in use")]
    for what, title in (("found", "share of known values found"), ("filler", "loss of the filler"), ("loss", "loss")):
        print(f"\n{title}, by tokens of a text\n{'basis':12} {'':16}" + "".join(f"{n:>14}" for n in LENGTHS))
        for name, when in rows:
            own = [found[when] for key, found in done.items() if key.partition(":")[0] == name and when in found]
            if own:
                cells = (shown([one[what][i] for one in own], 2) for i in range(len(LENGTHS)))
                print(f"{name:12} {when:16}" + "".join(f"{cell:>14}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--base", type=int, default=1500, help="steps of a base at most")
    parser.add_argument("--steps", type=int, default=100, help="of continued training")
    parser.add_argument("--rate", type=float, default=4e-3, help="of continued training")
    parser.add_argument("--texts", type=int, default=256, help="of 64 tokens, by which it is judged")
    parser.add_argument("--only", nargs="+", choices=BASES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="[default: a new folder]")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out = args.out or Path(tempfile.mkdtemp())
    args.out.mkdir(parents=True, exist_ok=True)
    order, done = args.only or [*BASES], {}
    for seed in args.seeds:
        kept = args.out / f"giraffe-{args.base}-{args.steps}-{args.rate}-{seed}.json"
        own: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
        for name in order:
            if name not in own:
                own[name] = measured(name, seed, args)
                kept.write_text(json.dumps(own, indent=1) + "\n")
        done |= {f"{name}:{seed}": found for name, found in own.items()}
    table(done, order)


if __name__ == "__main__":
    main()
