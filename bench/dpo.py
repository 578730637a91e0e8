"""DPO on real pairs: how often the learnt rewards prefer the chosen answer, for pairs that no step learnt from.

    python bench/dpo.py --start SmolLM2-135M-Instruct.gguf --data hh/test.jsonl.gz [--seeds 1 2 3] [--lora 8] [--out DIR]

The pairs of --data that fit into --context tokens are put into --parts (3), those of one first question into the
same. Each seed learns once from the other parts and is judged by its own, so that three seeds judge every pair once.
`rewards`: the share of pairs whose chosen answer has the higher reward, which is the log-probability under the policy
less that under the start; before the first step all are 0. `likelier`: the share whose chosen answer is the likelier
one under the start. Brackets hold 95 % of Wilson's intervals. What is done is kept in --out, so that the table can be
made in pieces.

Without --start a LLaMA of two layers of 32 is made at random; without --data it learns from `builtin:preferences`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import numpy as np
import torch
from shared import finished

import stemma
from stemma import samples
from stemma.conversations.comparisons import Compared
from stemma.declare.alignment import PreferTask
from stemma.errors import DataError
from stemma.objectives import continuations
from stemma.objectives.preference import interval
from stemma.tasks.base import reader
from stemma.text import Specials, Tokenizer

Row = dict[str, Any]
PAIRS = 8  # that are read at once
Gaps = list[float]  # of pairs: the log-probability of the chosen answer less that of the other


def begun(args: argparse.Namespace, rows: Sequence[Row]) -> str:
    """The model that DPO begins from."""
    if args.start:
        return str(args.start)
    base = args.out / "base"
    if not base.exists():
        specials = Specials(bos="<s>", eos="</s>", pad="<pad>")
        tokenizer = Tokenizer.train("bpe", [json.dumps(row) for row in rows], 300, specials)
        size = {"layers": 2, "d_model": 32, "heads": 4, "d_ff": 64, "context": args.context}
        model = stemma.build("llama", vocab=tokenizer.vocab_size, **size)
        model.tokenizer = tokenizer
        model.save(str(base))
    return str(base)


def rows_of(args: argparse.Namespace) -> list[Row]:
    """The rows of --data."""
    if args.data is None:
        return list(samples.rows("preferences"))[:120]
    opened = gzip.open if args.data.suffix == ".gz" else open
    with opened(args.data, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


class Pairs:
    """The pairs that can be read, as the model `start` reads them."""

    def __init__(self, start: str, rows: Sequence[Row], args: argparse.Namespace) -> None:
        self.model = stemma.load(start)
        read = reader(PreferTask(template=args.template), self.model.tokenizer, args.context, "decoder")
        self.rows: list[Row] = []
        self.read: list[list[continuations.Answer]] = []
        groups: dict[str, list[int]] = {}
        for row in rows:
            try:
                found: Compared = read.read(row)
                marked = read.marked(found)
            except DataError:
                continue
            groups.setdefault(found.prompt[0].content, []).append(len(self.rows))
            self.rows.append(row)
            self.read.append(continuations.answers(np.asarray(marked.ids), marked.marks))
        self.groups = sorted(groups.values())
        random.Random("parts").shuffle(self.groups)

    def part(self, number: int, parts: int) -> list[int]:
        """The pairs of a part."""
        return sorted(i for group in self.groups[number % parts :: parts] for i in group)

    @torch.inference_mode()
    def gaps(self, model: Any, chosen: Sequence[int]) -> Gaps:
        """What a model says of some pairs."""
        found: Gaps = []
        for begin in range(0, len(chosen), PAIRS):
            texts = [text for i in chosen[begin : begin + PAIRS] for text in self.read[i]]
            batch = continuations.collate(texts, 0)
            sums = continuations.summed(continuations.logprobs(model, batch), batch["lengths"])
            found += (sums[::2] - sums[1::2]).tolist()
        return found


def kept(file: Path, make: Any) -> Gaps:
    """Numbers that are made once."""
    if not file.exists():
        file.write_text(json.dumps(make()))
    found: Gaps = json.loads(file.read_text())
    return found


def learnt(pairs: Pairs, start: str, seed: int, own: Sequence[int], args: argparse.Namespace) -> Any:
    """A finished run on all pairs but those of a part."""
    data, left_out = args.out / f"pairs-{seed}.jsonl", set(own)
    data.write_text("".join(json.dumps(row) + "\n" for i, row in enumerate(pairs.rows) if i not in left_out))
    changes = {
        "recipe.lr": args.lr,
        "recipe.batch": args.batch,
        "train.context": args.context,
        "train.micro": 4,  # for a few gigabytes of memory
        "train.val_fraction": 0.05,
        "train.eval_every": 1000,
    }
    return finished(
        stemma.align(
            "dpo", start=start, data=str(data), out=args.out / f"dpo-{seed}", budget=args.budget, seed=seed, lora=args.lora,
            template=args.template or None, overrides=changes, resume=True, quiet=args.quiet,
        )
    )  # fmt: skip


def cell(gaps: Sequence[float]) -> str:
    """The share of pairs with a gap above 0, and its interval; half of those without a gap count."""
    share = statistics.fmean((gap > 0) + (gap == 0) / 2 for gap in gaps)
    low, high = interval(share, len(gaps))
    return f"{share:6.1%} ({low:.1%} to {high:.1%})"


def table(args: argparse.Namespace) -> Iterator[str]:
    """The lines of the table, each as soon as it is known."""
    rows = rows_of(args)
    start = begun(args, rows)
    pairs = Pairs(start, rows, args)
    yield f"{len(pairs.rows):,} of {len(rows):,} pairs have at most {args.context} tokens"
    yield f"{'':<6}{'learnt':>8}{'judged':>8}{'rewards':>26}{'likelier':>26}"
    rewards: Gaps = []
    before: Gaps = []
    for seed in args.seeds:
        own = pairs.part(seed - 1, args.parts)
        run = learnt(pairs, start, seed, own, args)
        first = kept(args.out / f"start-{seed}.json", lambda own=own: pairs.gaps(pairs.model, own))
        path = str(run.directory)
        last = kept(args.out / f"end-{seed}.json", lambda own=own, path=path: pairs.gaps(stemma.load(path), own))
        moved = [b - a for a, b in zip(first, last, strict=True)]
        yield line(f"seed {seed}", len(pairs.rows) - len(own), moved, first)
        rewards, before = rewards + moved, before + first
    if len(args.seeds) > 1:
        yield line("all", "", rewards, before)


def line(name: str, learns: int | str, rewards: Gaps, before: Gaps) -> str:
    return f"{name:<6}{learns:>8}{len(rewards):>8}{cell(rewards):>26}{cell(before):>26}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--template", default="")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--parts", type=int, default=3)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1024, help="tokens of a step")
    parser.add_argument("--budget", default="1 epochs")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--lora", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    if args.start is None:
        args.template = args.template or "plain"
    args.out = args.out or Path(tempfile.mkdtemp(prefix="dpo-"))
    args.out.mkdir(parents=True, exist_ok=True)
    for text in table(args):
        print(text, flush=True)


if __name__ == "__main__":
    main()
