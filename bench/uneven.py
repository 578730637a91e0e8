"""What a folder of files of very different sizes costs: the same text read in three ways.

    python bench/uneven.py [--steps N] [--families llama bert] [--json FILE]

The folder holds one file of 900 kB, 39 smaller ones and 300 rows, 2.1 MB in all. It is trained on whole documents, as
runs of older versions did; with long documents in pieces, as runs do now; and cut into paragraphs beforehand. All three
are measured on the same 5 % of the text, which none of them reads (four paragraphs here, four there), with the
objective's own measure: bits per byte, or per byte of the targets.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from stemma import data
from stemma.data import Store, random
from stemma.train import pretrain
from stemma.train.assemble import objective_of
from stemma.train.evaluation import evaluate

PIECE, WHOLE = 900_000, {"train.piece": None, "train.unit": "document"}
READ: dict[str, tuple[str, dict[str, Any]]] = {
    "whole documents": ("folder", WHOLE),
    "in pieces": ("folder", {}),
    "cut into paragraphs": ("paragraphs", {}),
}


def paragraphs(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if part.strip()]


def sizes(files: int, total: int) -> list[int]:
    """Sizes of files from 1 to 60 in proportion, in a mixed order."""
    shares = [60 ** (i / (files - 1)) for i in random.permutation((1,), files).tolist()]
    return [round(total * share / sum(shares)) for share in shares]


def taken(texts: Iterator[str], size: int) -> str:
    """Texts of about `size` characters in all."""
    found, n = [], 0
    while n < size and (text := next(texts, None)) is not None:
        found.append(text)
        n += len(text)
    return "\n\n".join(found)


def corpus(folder: Path, scale: float = 1.0) -> list[str]:
    """Write the text as `folder` and as `paragraphs`; the held-out documents are returned."""
    prose = (d.text for d in data.read("builtin:docs").documents())
    verses = (d.text for d in data.read("builtin:bible").documents())
    files = [taken(verses, int(PIECE * scale))]
    files += [taken(prose, size) for size in sizes(39, int(950_000 * scale))]
    rows = [text[:1500] for text in itertools.islice(prose, int(300 * scale))]
    held: list[str] = []
    for name in ("folder", "paragraphs"):
        (folder / name).mkdir(parents=True)
    known: list[str] = []
    for number, text in enumerate(files):
        parts = paragraphs(text)
        fours = ["\n\n".join(parts[i : i + 4]) for i in range(0, len(parts), 4)]
        away = random.uniform((7, number), len(fours)) < 0.05
        held += [four for four, out in zip(fours, away, strict=True) if out]
        kept = "\n\n".join(four for four, out in zip(fours, away, strict=True) if not out)
        known += paragraphs(kept)
        (folder / "folder" / f"{number:02}.txt").write_text(kept, "utf-8")
    (folder / "folder" / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in rows), "utf-8")
    known += [part for row in rows for part in paragraphs(row)]
    lines = "".join(json.dumps({"text": part}) + "\n" for part in known)
    (folder / "paragraphs" / "all.jsonl").write_text(lines, "utf-8")
    return held


def learned(
    family: str, folder: Path, steps: int, held: list[str], changes: dict[str, Any], source: str
) -> dict[str, float]:
    """A run on a text: its quality on the common held-out text and on its own, and how many targets its own has."""
    out = folder / "runs" / f"{family}-{source}-{len(changes)}"
    settings = {"train.save_every": steps, **changes}
    run = pretrain(family, data=str(folder / source), out=out, budget=f"{steps} steps", overrides=settings, quiet=True)
    store = Store.build(data.sources.of(held), run.tokenizer, out / "common")
    found = evaluate(run.model, objective_of(run.plan, run.tokenizer), store)
    own, name = run.summary["val"], "bits_per_byte" if "bits_per_byte" in found else "bits_per_target_byte"
    return {"common": found[name], "own": own[name], "targets": own["targets"], "epochs": run.summary["epochs"]}


def compare(
    family: str, folder: Path, steps: int, held: list[str], ways: Sequence[str] = tuple(READ)
) -> dict[str, Any]:
    """{how the text is read: `learned`} for a family."""
    return {way: learned(family, folder, steps, held, READ[way][1], READ[way][0]) for way in ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the text's size")
    parser.add_argument("--families", nargs="+", default=["llama", "bert"])
    parser.add_argument("--json", help="write the numbers to this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = {}
    with tempfile.TemporaryDirectory() as name:
        held = corpus(Path(name), options.scale)
        for family in options.families:
            found[family] = compare(family, Path(name), options.steps, held)
            best = found[family]["cut into paragraphs"]["common"]
            for way, got in found[family].items():
                print(
                    f"{family:6} {way:20} {got['common']:.3f} bits/byte ({got['common'] / best - 1:+.1%})  "
                    f"own held-out {got['own']:.3f} of {got['targets']:,.0f} targets, {got['epochs']:.2f} epochs",
                    flush=True,
                )
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
