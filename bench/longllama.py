"""LongLLaMA's crossbatch training against the same training without it: whom memory layers attend to, and what is found
beyond the row.

    python bench/longllama.py [--seeds 1 2 3] [--base 1500] [--steps 200] [--contexts 0 1 6] [--out DIR]

A base (LLaMA, two layers of 64, rows of 64 tokens; see bench/giraffe.py) gets a memory in its second layer and is trained
on, on texts of 256 tokens in four rows each, two texts a pack: rows see 0, up to 1 or up to 6 rows before them, in the
released steps. Texts have keys in common, with other values, and a filler of their own, by which they can be told apart.
Then (1) a row is given the row before it of its own text among rows of d other texts as memory: of the attention on memory
the share on its own text, where 1/(d+1) is chance, and the share of its values said there that are found; (2) texts of 128
to 1,024 tokens are read in windows with the memory, and of the values in the last 32 tokens that were said before these,
those that are found are counted. What is done is kept in --out.
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
from torch import Tensor

from stemma.declare.objectives import CrossBatch
from stemma.nn.attention import Attention
from stemma.nn.masks import AttnMask
from stemma.nn.model import Model
from stemma.nn.parts import Memory
from stemma.objectives.crossbatch import seen_rows

LAST = CONTEXT // 2
OTHERS = (1, 2, 4, 8, 16)  # texts beside one's own
LENGTHS = (2 * CONTEXT, 4 * CONTEXT, 8 * CONTEXT, 16 * CONTEXT)
ROWS = 4  # of a text in training


def rows_of(texts: Tensor) -> Tensor:
    """Rows of `CONTEXT` tokens and the next, of texts one after another: N K*T+1 -> N*K T+1."""
    return texts.unfold(1, CONTEXT + 1, CONTEXT).flatten(0, 1)


@torch.no_grad()
def among(model: Model, others: int, count: int) -> tuple[float, float]:
    """A row with the row before it of its own text as memory, and beside that rows of `others`: of the attention on
    memory the share on the own text, over heads, texts and queries; and the share of the values said there that are
    found."""
    texts = Texts(7_000, 2 * CONTEXT, count, topics=True)
    rows, said = rows_of(texts.ids).view(count, 2, -1), texts.said[:, CONTEXT:]
    attention, own, whole = model.decoder.blocks[1].attention, 0.0, 0.0  # type: ignore[union-attr]
    assert isinstance(attention, Attention)
    inner, right = attention.attend, []

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttnMask, bias: Tensor | None) -> Tensor:
        nonlocal own, whole
        if mask.mask is not None:
            scores = (q * attention.scale @ k.transpose(-1, -2)).masked_fill(~mask.mask, float("-inf"))
            memory = scores.softmax(-1)[..., CONTEXT:].unflatten(-1, (-1, CONTEXT)).sum(-1)  # B H T rows
            own, whole = own + float(memory[..., 0].sum()), whole + float(memory.sum())
        return inner(q, k, v, mask, bias)

    attention.attend = attend  # type: ignore[method-assign]
    for n in range(count):
        beside = [(n + 1 + i) % count for i in range(others)]
        batch = torch.stack([rows[n, 0], *(rows[i, 0] for i in beside), rows[n, 1]])
        logits = predicted(model, batch, [*([()] * (others + 1)), tuple(range(others + 1))])[-1]
        asked = (said[n] >= 0) & (said[n] < CONTEXT)
        right += (logits.argmax(-1) == rows[n, 1, 1:])[asked[1:]].tolist()
    del attention.attend
    return own / whole, statistics.fmean(right)


@torch.no_grad()
def beyond(model: Model, length: int, count: int) -> float:
    """The share of the values in the last tokens that were said before the last window, and that are found."""
    texts, right = Texts(8_000, length, count, topics=True), []
    for row, said in zip(texts.ids, texts.said, strict=True):
        places = torch.arange(length + 1)
        asked = (said >= 0) & (said < length - LAST) & (places > length - LAST)
        logits = model(row[None, :-1]).logits[0]
        right += (logits.argmax(-1) == row[1:])[asked[1:]].tolist()
    return statistics.fmean(right)


def measured(contexts: int | None, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One training; None: the base as it is, with a memory."""
    start = base(seed, args.base, args.out)
    model = like(start, {"mask": Memory((1,), LAST, "float32")}).eval()
    if contexts is not None:
        spec = CrossBatch(contexts, rows=ROWS, texts=2)
        draw, packs = torch.Generator().manual_seed(seed), TOKENS // (CONTEXT * ROWS * spec.texts)
        texts = Texts(200 + seed, CONTEXT * ROWS, min(3000, args.steps * 20), topics=True)
        many = ROWS * spec.texts
        seen = tuple(tuple(n * many + i for i in row) for n in range(packs) for row in seen_rows(spec))

        def loss(step: int) -> Tensor:
            ids = rows_of(texts.batch(packs * spec.texts, draw))
            return next_token(predicted(model, ids, seen), ids)

        learn(model, args.steps, args.rate, loss, warmup=10)
    beside = [among(model, others, args.texts // 2) for others in OTHERS]
    return {
        "own": [own for own, _ in beside],
        "found": [found for _, found in beside],
        "beyond": [beyond(model, length, max(2, args.texts * CONTEXT // length)) for length in LENGTHS],
    }


def shown(values: list[float]) -> str:
    spread = f" ±{(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def table(done: dict[str, dict[str, Any]], order: list[str]) -> None:
    """Means over the seeds, and half of the distance from the least to the most."""
    titles = {
        "own": ("attention on the own text, by other texts beside it", OTHERS),
        "found": ("values of the own text found, by other texts beside it", OTHERS),
        "beyond": ("values found that were said before the window, by tokens of a text", LENGTHS),
    }
    for what, (title, columns) in titles.items():
        print(f"\n{title}\n{'':16}" + "".join(f"{n:>14}" for n in columns))
        for name in order:
            own = [found[what] for key, found in done.items() if key.partition(":")[0] == name]
            if own:
                cells = (shown([one[i] for one in own]) for i in range(len(columns)))
                print(f"{name:16}" + "".join(f"{cell:>14}" for cell in cells))
        if what == "own":
            print(f"{'chance':16}" + "".join(f"{1 / (n + 1):>14.2f}" for n in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--base", type=int, default=1500, help="steps of a base at most")
    parser.add_argument("--steps", type=int, default=200, help="of training across rows")
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--contexts", type=int, nargs="+", default=[0, 1, 6], help="rows before it that a row sees")
    parser.add_argument("--texts", type=int, default=64, help="by which it is judged")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="[default: a new folder]")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out = args.out or Path(tempfile.mkdtemp())
    args.out.mkdir(parents=True, exist_ok=True)
    names: dict[str, int | None] = {"base": None} | {f"C = {n}": n for n in args.contexts}
    done: dict[str, dict[str, Any]] = {}
    for seed in args.seeds:
        kept = args.out / f"longllama-{args.base}-{args.steps}-{args.rate}-{seed}.json"
        own: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
        for name, contexts in names.items():
            if name not in own:
                own[name] = measured(contexts, seed, args)
                kept.write_text(json.dumps(own, indent=1) + "\n")
        done |= {f"{name}:{seed}": found for name, found in own.items()}
    table(done, [*names])


if __name__ == "__main__":
    main()
